"""Commands that show runs and what came of them."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.base.errors import INTERRUPTED, SpecError
from orchestrator.cli.command_group import echo, main
from orchestrator.cli.options import (
    JOB_SERVER,
    RUN,
    STORE,
    find_run,
    open_store,
    output_format,
    print_as,
    require_job_server,
    run_there,
)


@main.command()
@STORE
@JOB_SERVER
def runs(store: str | Path | None, *, server: str | None) -> None:
    """List the runs of a store with state, age, wall time and size, the latest first."""
    run_there(server, None)
    from orchestrator.report.command_text.plans_and_runs import run_lines  # noqa: PLC0415

    opened = open_store(store)
    lines = run_lines(opened.root)
    if not lines:
        text = f"no runs in {opened.name}; submit a spec, or name another store with --store"
        echo(text, err=True)
    for line in lines:
        echo(line)


@main.command()
@RUN
@STORE
@JOB_SERVER
@output_format("table", "json")
def status(run: str, store: str | Path | None, form: str, *, server: str | None) -> None:
    """Show stages, trials and the best score of a run, live or finished."""
    run_there(server, run)
    from orchestrator.report.command_text.plans_and_runs import status_lines  # noqa: PLC0415
    from orchestrator.report.command_text.run_status import status_view  # noqa: PLC0415

    view = status_view(find_run(store, run).root)
    print_as(form, view, status_lines(view))


@main.command()
@RUN
@STORE
@JOB_SERVER
@output_format("table", "csv", "json")
def results(run: str, store: str | Path | None, form: str, *, server: str | None) -> None:
    """Print the trials and the ensemble of a run."""
    run_there(server, run)
    from orchestrator.report.command_text.result_tables import render_results  # noqa: PLC0415

    paths = find_run(store, run, has="trials")
    echo(render_results(paths.root, form), nl=False)


@main.command()
@click.argument("names", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Write the page of several runs, or with --address that of one, here.  [default: in the folder "
    "of the first one; with --address, RUN.html in this folder]",
)
@STORE
@JOB_SERVER
def report(
    names: tuple[str, ...], out: Path | None, store: str | Path | None, *, server: str | None
) -> None:
    """Rewrite the HTML report of a run and print its path; with several runs, one page of them all.

    `report/result.svg` beside the page is the result as a picture, for a README. With --address the
    page is written on the cluster and brought here.
    """
    if server is not None:
        require_job_server(server)
        if len(names) > 1:
            raise SpecError(f"--address: one run was required, found {len(names)}; name one")
        from orchestrator.run import remote  # noqa: PLC0415

        echo(str(remote.report(server, names[0], store, out)))
        return
    runs = [find_run(store, name, has="report" if len(names) == 1 else None) for name in names]
    if len(runs) == 1:
        if out is not None:
            raise SpecError("--out: several runs were required, found one; leave --out away")
        from orchestrator.report.page import build  # noqa: PLC0415

        echo(str(build(runs[0].root)))
        return
    from orchestrator.report.summaries.comparison_page import build_together  # noqa: PLC0415

    others = "+".join(run.run_id for run in runs[1:])
    place = out or runs[0].root / "report" / f"with-{others[:180]}.html"
    echo(str(build_together([run.root for run in runs], place)))


@main.command()
@RUN
@click.argument("item", required=False)
@STORE
@JOB_SERVER
def why(run: str, item: str | None, store: str | Path | None, *, server: str | None) -> None:
    """Explain the state of a run, or of ITEM: a stage, a trial or a setting."""
    run_there(server, run)
    from orchestrator.report.command_text.state_reasons import why as explain  # noqa: PLC0415

    echo("\n".join(explain(find_run(store, run), item)))


@main.command()
@RUN
@click.argument("trial", required=False)
@STORE
@JOB_SERVER
@click.option("--follow", "-f", is_flag=True, help="Follow until the run ends.")
def logs(
    run: str, trial: str | None, store: str | Path | None, *, server: str | None, follow: bool
) -> None:
    """Print the events of a run, or the output of one TRIAL."""
    run_there(server, run)
    from orchestrator.report.command_text.run_story import printed, story  # noqa: PLC0415

    paths = find_run(store, run)
    try:
        for line in printed(paths, trial) if trial else story(paths, follow=follow):
            echo(line)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED) from None  # the run continues


@main.command()
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="RUN")
@STORE
@output_format("table", "json")
def compare(first: str, second: str, store: str | Path | None, form: str) -> None:
    """Compare two runs' ensembles on the test photos that both classified, with a paired interval.

    If the test set has a public half, only its private half is used.
    """
    from orchestrator.ensemble.run_comparison import compare_lines, compare_runs  # noqa: PLC0415

    comparison = compare_runs(find_run(store, first), find_run(store, second))
    print_as(form, comparison, compare_lines(comparison))


@main.command()
@STORE
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=8266, show_default=True, help="0 takes a free one.")
def board(store: str | Path | None, host: str, port: int) -> None:
    """Show the runs of a store in a browser, live, until Ctrl-C.

    The printed address holds a token; who has it can also stop, cancel, resume and submit runs.
    """
    from orchestrator.board.server import serve  # noqa: PLC0415

    serve(open_store(store), host=host, port=port)
