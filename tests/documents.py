"""What README and docs/ say, read by tests: their links, their commands, their folders."""

import itertools
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs/tutorial.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
_TOOL = re.compile(r"^(?:\.venv/bin/)?(?:python -m orchestrator|robust-vote) ")
_FENCE = re.compile(r"^```", re.MULTILINE)


def prose(text):
    """Return the text without code, where links and headings stand."""
    without_fences = "".join(_FENCE.split(text)[::2])
    lines = [line for line in without_fences.splitlines() if not line.startswith("    ")]
    return re.sub(r"`[^`]*`", lambda found: "x" * len(found[0]), "\n".join(lines))


def links(page):
    """Return the targets of a page's links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text()))


def anchors(page):
    """Return the names of a page's headings, as GitHub and the site make them."""
    text = page.read_text()
    headings = re.findall(r"^#+ (.+)$", "".join(_FENCE.split(text)[::2]), re.MULTILINE)
    names = [re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in headings]
    return {name.replace(" ", "-") for name in names}


def commands(page):
    """Return the commands of this package in a page, as lists of arguments."""
    text = page.read_text()
    lines = re.findall(r"^ *(?:\$ )?(.+)$", text, re.MULTILINE)
    lines += re.findall(r"`([^`\n]+)`", text)
    calls = []
    for line in lines:
        if _TOOL.match(line):
            arguments = shlex.split(_TOOL.sub("", line), comments=True)
            if re.fullmatch("[a-z]+", arguments[0]):
                calls.append(arguments)
    return calls


def targets(page):
    """Return the targets of make that a page names."""
    return set(re.findall(r"(?:^ +|`)make ([a-z-]+)", page.read_text(), re.MULTILINE))


def console(page):
    """Return the commands of a page after `$`, as they are typed."""
    return re.findall(r"^\$ (.+)$", page.read_text(), re.MULTILINE)


def own_photos():
    """Return README's commands for somebody's own photos, as they are typed."""
    section = README.read_text().split("## Your own photos")[1].split("\n## ")[0]
    return [line.strip() for line in re.findall(r"^    (.+)$", section, re.MULTILINE)]


def layouts():
    """Yield title, tree and lines of a spec of every section of layouts.md that has them."""
    for section in (ROOT / "docs/layouts.md").read_text().split("\n## ")[1:]:
        blocks = re.findall(r"(?:^(?:    .*)?\n)+", section, re.MULTILINE)
        code = [block for block in blocks if block.strip()]
        if len(code) == 2:
            tree, spec = (re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in code)
            yield section.splitlines()[0], tree, spec.strip("\n").splitlines()


def plant_tree(folder, tree):
    """Make the folder that a drawn tree shows; photos are empty files. Return its root."""
    root, *entries = tree.strip("\n").splitlines()
    table = None
    for entry in entries:
        name = entry.strip()
        if entry.startswith("    "):
            table.write_text(f"{table.read_text()}{name}\n")
            continue
        for spelled in expand(name):
            path = folder / root / spelled
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            table = path
    return folder / root


def expand(text):
    """Return the texts that a shell makes of braces: `{1..3}` and `{a,b}`."""
    parts = re.split(r"\{([^}]*)\}", text)
    choices = []
    for place, part in enumerate(parts):
        first, dots, last = part.partition("..")
        if place % 2 == 0:
            choices.append([part])
        elif dots:
            choices.append(list(map(str, range(int(first), int(last) + 1))))
        else:
            choices.append(part.split(","))
    return ["".join(chosen) for chosen in itertools.product(*choices)]
