// The pages work without this script. It follows a run, and turns table pages without loading them whole.
const live = () => document.querySelectorAll("[data-live]");
const note = document.getElementById("connection");
let request = null;
let isStale = false;

// Fetches a page and puts its live parts into the places of the old ones. What a person asks for ends a fetch that
// follows the run; the other way round the run waits.
async function load(address, isAsked = true) {
  if (request && !isAsked) { isStale = true; return; }
  request?.abort();
  const mine = new AbortController();
  request = mine;
  const late = setTimeout(() => mine.abort(), 30000);
  try {
    const answer = await fetch(address, { headers: { Accept: "text/html" }, signal: mine.signal });
    const text = await answer.text();
    if (answer.ok && request === mine) put(new DOMParser().parseFromString(text, "text/html"));
  } catch { /* the connection's own state is shown below */ }
  clearTimeout(late);
  if (request !== mine) return;
  request = null;
  if (isStale) { isStale = false; load(location.href, false); }
}

function put(page) {
  document.title = page.title;
  for (const old of live()) {
    const part = page.getElementById(old.id);
    if (!part || part.innerHTML === old.innerHTML) continue;
    const focus = place(old, document.activeElement);
    const opened = [...old.querySelectorAll("details")].map((item) => item.open);
    const scrolled = [...old.querySelectorAll(".scroll, .log")].map((item) => [item.scrollLeft, item.scrollTop]);
    old.replaceChildren(...part.childNodes);
    old.querySelectorAll("details").forEach((item, n) => { if (n in opened) item.open = opened[n]; });
    old.querySelectorAll(".scroll, .log").forEach((item, n) => {
      if (n in scrolled) [item.scrollLeft, item.scrollTop] = scrolled[n];
    });
    if (focus >= 0) old.querySelectorAll("a, button, pre, summary")[focus]?.focus({ preventScroll: true });
    bindTables(old);
    letScroll(old);
  }
}

// Where the focus stands among what can have it, or -1.
function place(part, element) {
  return part.contains(element) ? [...part.querySelectorAll("a, button, pre, summary")].indexOf(element) : -1;
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-swap]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  history.pushState(null, "", link.href);
  load(link.href);
});
window.addEventListener("popstate", () => load(location.href));

let typed = 0;
function filter(form) {
  const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
  const address = `${form.action}?${query}`;
  history.replaceState(null, "", address);
  load(address);
}
document.addEventListener("input", (event) => {
  const form = event.target.closest("form[data-swap]");
  if (!form) return;
  clearTimeout(typed);
  typed = setTimeout(() => filter(form), 100);
});
for (const field of document.querySelectorAll("form[data-swap] input[type=search]")) {
  if (field.value !== field.defaultValue) filter(field.form); // typed before this script was there
}
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.confirm && !confirm(form.dataset.confirm)) event.preventDefault();
  if (form.matches("form[data-swap]")) { event.preventDefault(); filter(form); }
});

// Server-sent events say that something has changed; at most one page a second is fetched for it.
const { events, on } = document.body.dataset;
if (events) {
  const source = new EventSource(events);
  let known = null;
  let timer = 0;
  source.addEventListener("change", (event) => {
    const mark = JSON.parse(event.data)[on];
    note.textContent = "live";
    if (mark === known) return;
    const isFirst = known === null;
    known = mark;
    if (isFirst && on === "files") return;
    if (!timer) timer = setTimeout(() => { timer = 0; if (!document.hidden) load(location.href, false); }, isFirst ? 0 : 1000);
  });
  source.addEventListener("error", () => {
    note.textContent = source.readyState === EventSource.CLOSED
      ? "The board has ended. Start it again and open its new address."
      : "Not connected; trying again.";
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) load(location.href, false); });
  window.addEventListener("pagehide", () => source.close());
}
