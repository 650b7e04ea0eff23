"""The pages of the board: what each address answers."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from orchestrator.board import actions, trial_overview
from orchestrator.board.live_run_state import LiveTrial, trial_events
from orchestrator.board.run_cache import Hub, OpenedRun
from orchestrator.board.server_sent_events import list_versions, run_versions, stream
from orchestrator.board.trial_table import Query, as_csv
from orchestrator.report import charts, page
from orchestrator.report.command_text.state_reasons import trial_lines
from orchestrator.report.load import Run
from orchestrator.report.models_section import settings_text
from orchestrator.report.result_section import head
from orchestrator.store.ledger import replay
from orchestrator.store.run_files.trials import EpochRow

_LOG_BYTES = 2**16
_N_CURVES = 60
_N_POINTS = 400
_MAX_RUNNING = 30
RESULTS = (
    "hypotheses",
    "result",
    "selection",
    "certificate",
    "board",
    "confusion",
    "classes",
    "subgroups",
    "suspects",
    "gallery",
    "calibration",
    "agreement",
)
DATA = ("audit", "distributions", "preparation")
FILES = {
    "trials.parquet": "trials",
    "curves.parquet": "curves",
    "predictions.parquet": "predictions",
    "votes.parquet": "votes",
    "submission.csv": "submission",
    "selection.json": "selection",
    "hypotheses.json": "hypotheses",
    "certificate.json": "certificate",
    "suspects.csv": "suspects",
    "catalog.parquet": "catalog",
    "folds.parquet": "folds",
    "audit.json": "audit",
    "prep.json": "prep",
    "spec.yaml": "spec",
    "resolved.yaml": "resolved",
}
"""File of a run that may be fetched, and its name in RunPaths."""
_DONE = {
    "stop": "The trial was asked to stop; it stops within about a second.",
    "cancel": "The run was asked to end. `resume` goes on with it.",
    "resume": "The run goes on.",
    "submit": "The run was started.",
}


class Pages:
    """Answers requests. Handlers that read files are plain functions: the server runs them in threads."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.templates = page.make_environment("orchestrator.board")
        report_style = files("orchestrator.report").joinpath("style.css").read_text("utf-8")
        style = files("orchestrator.board").joinpath("board.css").read_text("utf-8")
        script = files("orchestrator.board").joinpath("board.js").read_text("utf-8")
        self._style = f"{report_style}\n{style}"
        self._script = f"{self.templates.get_template('page.js.j2').render()}\n{script}"
        text = self._style + self._script
        self._build = hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]

    def _page(self, template_name: str, code: int = 200, /, **values: Any) -> HTMLResponse:
        template = self.templates.get_template(f"{template_name}.html.j2")
        html = template.render(build=self._build, store=str(self.hub.store.root), **values)
        return HTMLResponse(html.encode("utf-8", "backslashreplace"), code)

    def _open(self, request: Request) -> OpenedRun:
        run_id = request.path_params["run_id"]
        opened = self.hub.open(run_id)
        if opened is None:
            raise HTTPException(404, f"no run {run_id} in {self.hub.store.root}")
        opened.live.refresh()
        return opened

    def _run_page(
        self, request: Request, opened: OpenedRun, tab: str, run: Run, **values: Any
    ) -> HTMLResponse:
        """Return a page of one run, below its heading and its tabs."""
        live = opened.live
        state = live.state()
        done = _DONE.get(request.query_params.get("done", ""), "")
        return self._page(
            f"run_{tab}",
            run=live,
            run_id=live.paths.run_id,
            name=run.resolved.name or live.paths.run_id,
            state=state,
            head=head(run),
            counts=trial_overview.counts(live),
            tab=tab,
            done=done,
            n_unread=live.n_unread_bytes,
            **values,
        )

    # ------------------------------------------------------------------------------ the store

    def runs(self, request: Request) -> Response:
        """Show the runs of the store."""
        del request
        return self._page("runs", lines=self.hub.runs.lines())

    def style(self, request: Request) -> Response:
        """Return the styles of report and board."""
        del request
        return Response(self._style, media_type="text/css")

    def script(self, request: Request) -> Response:
        """Return the script of report and board."""
        del request
        return Response(self._script, media_type="text/javascript")

    def problem(self, request: Request, error: Exception) -> Response:
        """Show why an address has no page."""
        del request
        status = error.status_code if isinstance(error, HTTPException) else 500
        text = error.detail if isinstance(error, HTTPException) else str(error)
        return self._page("problem", status, status=status, text=text)

    def refusal(self, request: Request, error: Exception) -> Response:
        """Show why something that was asked for was not done."""
        del request
        return self._page("problem", 409, status=409, text=str(error))

    # --------------------------------------------------------------------------------- a run

    def overview(self, request: Request) -> Response:
        """Show how far a run is, and its result when there is one."""
        opened = self._open(request)
        live = opened.live
        with live.lock:
            running = live.running()
            run = opened.report(opened.telling_trials())
            stages = live.stages()
            best = live.best()
            best_setting = live.best_setting()
            claims = opened.claims.of(live, run)
        wanted: tuple[str, ...] = ()
        if run.has_selection:
            wanted = ("result", "hypotheses", "findings")
        elif run.audit is not None or not live.is_live:  # else nothing is found yet
            wanted = ("findings",)
        return self._run_page(
            request,
            opened,
            "overview",
            run,
            stages=stages,
            running=running[:_MAX_RUNNING],
            n_running=len(running),
            best=best,
            best_setting=best_setting,
            claims=claims,
            sections=page.draw(run, wanted),
        )

    def trials(self, request: Request) -> Response:
        """Show one page of the table of trials."""
        opened = self._open(request)
        query = Query.of(request.query_params)
        run = opened.report([])
        table = opened.table.page(query)
        return self._run_page(
            request,
            opened,
            "trials",
            run,
            table=table,
            query=table.query,
            settings=settings_text,
            members=set(run.members),
        )

    def trials_csv(self, request: Request) -> Response:
        """Return the trials of a query as a file."""
        opened = self._open(request)
        with opened.live.lock:
            matching = opened.table.matching(Query.of(request.query_params))
            text = as_csv(opened.live, matching)
        name = f"{opened.live.paths.run_id}-trials.csv"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(text, media_type="text/csv", headers=headers)

    def trial(self, request: Request) -> Response:
        """Show one trial: why it is in its state, its curves and its output."""
        opened = self._open(request)
        live = opened.live
        trial = self._trial(request, opened)
        with live.lock:
            run = opened.report([])
            epochs = list(trial.epochs())
        events = trial_events(live.paths, trial.trial_id)
        record = replay(events).trials.get(trial.trial_id)
        log = live.paths.logs / f"{trial.trial_id}.log"
        return self._run_page(
            request,
            opened,
            "trial",
            run,
            trial=trial,
            status=live.shown_status(trial),
            lines=trial_lines(live.paths, record, events) if record else [],
            plots=_trial_plots(epochs),
            log=_tail(log) if "/" not in trial.trial_id else "",
        )

    def curves(self, request: Request) -> Response:
        """Show learning curves, rungs, and the effect of the settings."""
        opened = self._open(request)
        live = opened.live
        with live.lock:
            trials = list(live.trials.values())
            shown: list[LiveTrial] = []
            for phase in ("search", "confirm"):
                ranked = [t for t in trials if t.phase == phase and t.score is not None]
                ranked.sort(key=lambda trial: -(trial.score or 0.0))
                shown += ranked[:_N_CURVES]
            searched = [trial for trial in trials if trial.phase == "search"]
            points = trial_overview.spread(searched, _N_POINTS)
            with_curves = opened.report(shown, with_curves=True)
            run = opened.report(points)
            rungs = trial_overview.rungs(trials)
        return self._run_page(
            request,
            opened,
            "curves",
            run,
            sections=[*page.draw(with_curves, ("curves",)), *page.draw(run, ("search",))],
            rungs=rungs,
            n_points=len(points),
            n_searched=len([trial for trial in searched if trial.score is not None]),
        )

    def results(self, request: Request) -> Response:
        """Show what came out of a run."""
        return self._sections(request, "results", RESULTS)

    def data(self, request: Request) -> Response:
        """Show what is known of the data and their preparation."""
        return self._sections(request, "data", DATA)

    def _sections(self, request: Request, tab: str, wanted: tuple[str, ...]) -> Response:
        opened = self._open(request)
        run = opened.report(opened.telling_trials())
        sections = page.draw(run, wanted)
        paths = opened.live.paths
        present = [name for name, field in FILES.items() if getattr(paths, field).is_file()]
        return self._run_page(request, opened, tab, run, sections=sections, files=present)

    def logs(self, request: Request) -> Response:
        """Show what happened in a run, and what its driver printed."""
        opened = self._open(request)
        live = opened.live
        with live.lock:
            run = opened.report([])
            sentences = live.sentences()
        return self._run_page(
            request,
            opened,
            "logs",
            run,
            sentences=sentences[::-1],
            driver_log=_tail(live.paths.driver_log),
            error=_tail(live.paths.error),
            sections=page.draw(run, ("provenance",)),
        )

    def file(self, request: Request) -> Response:
        """Return one file of a run."""
        opened = self._open(request)
        field = FILES.get(request.path_params["name"])
        if field is None or not getattr(opened.live.paths, field).is_file():
            raise HTTPException(404, f"no file {request.path_params['name']} in this run")
        path = getattr(opened.live.paths, field)
        name = f"{opened.live.paths.run_id}-{path.name}"
        return FileResponse(path, filename=name, content_disposition_type="attachment")

    def _trial(self, request: Request, opened: OpenedRun) -> LiveTrial:
        trial_id = request.path_params["trial_id"]
        trial = opened.live.trials.get(trial_id)
        if trial is None:
            raise HTTPException(404, f"no trial {trial_id} in run {opened.live.paths.run_id}")
        return trial

    # ------------------------------------------------------------------------------- changes

    def stop(self, request: Request) -> Response:
        """Ask one trial to stop."""
        opened = self._open(request)
        trial = self._trial(request, opened)
        actions.stop(opened.live, trial)
        return _back(opened, f"/trials/{trial.trial_id}", "stop")

    def cancel(self, request: Request) -> Response:
        """Ask a run to end."""
        opened = self._open(request)
        actions.cancel(opened.live)
        return _back(opened, "", "cancel")

    def resume(self, request: Request) -> Response:
        """Go on with a run."""
        opened = self._open(request)
        actions.resume(opened.live)
        return _back(opened, "", "resume")

    def submit(self, request: Request) -> Response:
        """Ask for a spec."""
        del request
        return self._page("submit", base=str(self.hub.base), upload=None)

    async def check(self, request: Request) -> Response:
        """Show the problems of an uploaded spec, or what it would run."""
        async with request.form(max_files=1, max_fields=4) as form:
            upload = await actions.read_upload(form, self.hub.base)
        checked = await run_in_threadpool(actions.check, self.hub, upload)
        status = 200 if checked.plan is not None else 422
        return self._page("submit", status, base=str(upload.base), upload=upload, checked=checked)

    async def start(self, request: Request) -> Response:
        """Start a run of a spec that was checked."""
        async with request.form(max_files=1, max_fields=4) as form:
            upload = await actions.read_upload(form, self.hub.base)
        run_id = await run_in_threadpool(actions.submit, self.hub, upload)
        return RedirectResponse(f"/runs/{run_id}?done=submit", 303)

    # -------------------------------------------------------------------------------- events

    async def list_events(self, request: Request) -> Response:
        """Send a message whenever the list of runs has changed."""
        return stream(list_versions(self.hub, request))

    async def run_events(self, request: Request) -> Response:
        """Send a message whenever something that is shown of a run has changed."""
        opened = await run_in_threadpool(self._open, request)
        return stream(run_versions(self.hub, request, opened))


def _back(opened: OpenedRun, place: str, done: str) -> Response:
    return RedirectResponse(f"/runs/{opened.live.paths.run_id}{place}?done={done}", 303)


def _trial_plots(epochs: list[EpochRow]) -> list[object]:
    plots: list[object] = []
    for metric, words in {"score": "validation score", "val_loss": "val loss"}.items():
        points = []
        for row in epochs:
            value = getattr(row, metric)
            if value is not None:
                points.append((float(row.epoch), value))
        if points:
            series = [charts.Series(words, points, 0, strong=True)]
            plots.append(charts.lines(series, "epoch", words, title=f"{words} by epoch"))
    return plots


def _tail(path: Any) -> str:
    """Return the end of a text file; empty where there is none."""
    try:
        with path.open("rb") as handle:
            size = handle.seek(0, 2)
            handle.seek(max(0, size - _LOG_BYTES))
            text: str = handle.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return text
