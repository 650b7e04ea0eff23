"""The command line: parse, call, print. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from orchestrator import __version__
from orchestrator.base.errors import INTERRUPTED, SpecError, UserError


class Commands(click.Group):
    """Turns errors that a user can put right into a message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            click.echo(str(error), err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo(
                "interrupted; the run can be continued: submit the same spec again, or `resume latest`",
                err=True,
            )
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:  # noqa: BLE001 - the last line of defense: a sentence instead of a traceback
            if ctx.params.get("debug"):
                traceback.print_exc()
            text = f"{type(error).__name__}: {error}; run again with `python -m orchestrator --debug ...` for the traceback"
            click.echo(text, err=True)
            ctx.exit(1)


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="orchestrator")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def main(*, debug: bool) -> None:
    """Run image-classification experiments from declarative specs, and end with an ensemble that can be trusted."""
    del debug  # read from the context by Commands
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: Any) -> None:
    del number, frame
    raise KeyboardInterrupt


SPEC = click.argument("spec", type=click.Path(path_type=Path))
RUN = click.argument("run")
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Override a value of the spec; recorded.",
)
STORE = click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder of artifacts and runs.  [default: $ORCHESTRATOR_STORE or ./runs-store]",
)
FORMAT = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
)


def _store(folder: Path | None) -> Any:
    from orchestrator.store.artifacts import Store  # noqa: PLC0415
    from orchestrator.store.run_dir import default_store  # noqa: PLC0415

    return Store((folder or default_store()).resolve())


def _read(spec: Path, overrides: tuple[str, ...] = ()) -> Any:
    from orchestrator.spec.load import read  # noqa: PLC0415

    return read(spec, list(overrides))


@main.command()
@SPEC
@SET
def check(spec: Path, overrides: tuple[str, ...]) -> None:
    """Say everything that is wrong with a spec, with line and column."""
    experiment = _read(spec, overrides)
    click.echo(
        f"{spec}: valid; {len(experiment.arms)} variant(s): {', '.join(experiment.arms)}", err=True
    )


@main.command()
@SPEC
@SET
@STORE
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True
)
def plan(spec: Path, overrides: tuple[str, ...], store: Path | None, form: str) -> None:
    """Show what would run, what is cached and why, how many trials, and what it may cost."""
    from orchestrator.planning.plan import make_plan  # noqa: PLC0415
    from orchestrator.report.views import plan_lines  # noqa: PLC0415
    from orchestrator.stages import STAGES  # noqa: PLC0415

    made = make_plan(_read(spec, overrides), _store(store), STAGES)
    click.echo(
        json.dumps(made.to_json(), indent=1) if form == "json" else "\n".join(plan_lines(made))
    )


@main.command()
@SPEC
@SET
@STORE
@click.option(
    "--address",
    default=None,
    envvar="RAY_ADDRESS",
    help="Ray cluster to attach to; a local one is started otherwise.",
)
@click.option(
    "--insecure", is_flag=True, help="Attach to another machine's cluster without a token."
)
@click.option("--detach", is_flag=True, help="Run in the background and print the run's id.")
@click.option(
    "--smoke", is_flag=True, help="Send one step of every variant through the whole path first."
)
@click.option("--allow-download", is_flag=True, help="Let missing model weights be fetched.")
def submit(
    spec: Path,
    overrides: tuple[str, ...],
    store: Path | None,
    *,
    address: str | None,
    insecure: bool,
    detach: bool,
    smoke: bool,
    allow_download: bool,
) -> None:
    """Check, plan, run and report an experiment; go on with it if it was interrupted."""
    from orchestrator.run.driver import Options  # noqa: PLC0415
    from orchestrator.run.driver import submit as execute  # noqa: PLC0415

    experiment = _read(spec, overrides)
    if detach:
        from orchestrator.run.driver import detach as start_detached  # noqa: PLC0415

        click.echo(start_detached(experiment, _store(store), sys.argv[1:]))
        return
    options = Options(
        address=address, insecure=insecure, smoke=smoke, allow_download=allow_download
    )
    sys.exit(execute(experiment, _store(store), options))


@main.command()
@SPEC
@SET
@STORE
@click.option("--address", default=None, envvar="RAY_ADDRESS")
@click.option("--insecure", is_flag=True)
@click.option(
    "--probe",
    is_flag=True,
    help="Train a quick model of each label: which is hard, which is told by the rim.",
)
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True
)
def audit(
    spec: Path,
    overrides: tuple[str, ...],
    store: Path | None,
    *,
    address: str | None,
    insecure: bool,
    probe: bool,
    form: str,
) -> None:
    """Check the data alone: what is in them, what leaks, and what to put into the spec."""
    from orchestrator.run import audit_only as audits  # noqa: PLC0415

    experiment = _read(spec, overrides)
    paths = audits.run(experiment, _store(store), probe=probe, address=address, insecure=insecure)
    click.echo(
        paths.audit.read_text(encoding="utf-8")
        if form == "json"
        else "\n".join(audits.lines(paths))
    )
    click.echo(f"page: {paths.root / 'index.html'}", err=True)


@main.command()
@RUN
@STORE
@click.option("--address", default=None, envvar="RAY_ADDRESS")
@click.option("--insecure", is_flag=True)
def resume(run: str, store: Path | None, *, address: str | None, insecure: bool) -> None:
    """Go on with an interrupted run as it was resolved, whatever its spec says now."""
    from orchestrator.run.driver import Options  # noqa: PLC0415
    from orchestrator.run.driver import resume as execute  # noqa: PLC0415
    from orchestrator.store.run_dir import find_run  # noqa: PLC0415

    home = _store(store)
    sys.exit(execute(find_run(home.root, run), home, Options(address=address, insecure=insecure)))


@main.command()
@RUN
@click.argument("trial")
@STORE
def stop(run: str, trial: str, store: Path | None) -> None:
    """End one running trial; what it has reported counts, the rest goes on."""
    from orchestrator.run.control import stop_trial  # noqa: PLC0415
    from orchestrator.store.run_dir import find_run  # noqa: PLC0415

    name = stop_trial(find_run(_store(store).root, run), trial)
    click.echo(f"asked for the end of {name}; it comes within a second or so", err=True)


@main.command()
@RUN
@STORE
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    default=30.0,
    show_default=True,
    help="Seconds to wait for its end.",
)
def cancel(run: str, store: Path | None, *, timeout_s: float) -> None:
    """End a live run; `resume` or the same submit goes on with it."""
    from orchestrator.run.control import cancel as ask  # noqa: PLC0415
    from orchestrator.store.run_dir import find_run  # noqa: PLC0415

    paths = find_run(_store(store).root, run)
    if not ask(paths, timeout_s=timeout_s):
        raise UserError(
            f"run {paths.run_id}: asked to end, still live after {timeout_s:g} s; look again with `status`"
        )
    click.echo(f"cancelled {paths.run_id}; go on with `resume {paths.run_id}`", err=True)


@main.command()
@RUN
@click.argument("item")
@STORE
def why(run: str, item: str, store: Path | None) -> None:
    """Say why a stage, a trial or the trials of a setting are in their state."""
    from orchestrator.report.explain import why as explain  # noqa: PLC0415
    from orchestrator.store.run_dir import find_run  # noqa: PLC0415

    click.echo("\n".join(explain(find_run(_store(store).root, run), item)))


@main.command()
@RUN
@click.argument("trial", required=False)
@STORE
@click.option("--follow", "-f", is_flag=True, help="Go on until the run ends.")
def logs(run: str, trial: str | None, store: Path | None, *, follow: bool) -> None:
    """Print the story of a run, or what one TRIAL has printed."""
    from orchestrator.report.explain import printed, story  # noqa: PLC0415
    from orchestrator.store.run_dir import find_run  # noqa: PLC0415

    paths = find_run(_store(store).root, run)
    try:
        for line in printed(paths, trial) if trial else story(paths, follow=follow):
            click.echo(line)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED) from None  # the run goes on


@main.command()
@STORE
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
def gc(store: Path | None, *, dry_run: bool) -> None:
    """Delete what no run of the store needs any more. A run is given up by deleting its folder."""
    from orchestrator.planning.garbage import collect, find_garbage  # noqa: PLC0415
    from orchestrator.stages import STAGES  # noqa: PLC0415

    found = find_garbage(_store(store), STAGES)
    for item in found.items:
        click.echo(f"{item.size_bytes / 1e6:>10.1f} MB  {item.path}  ({item.why})")
    if not dry_run:
        collect(found)
    done = "would be freed" if dry_run else "freed"
    click.echo(
        f"{len(found.items)} items, {found.size_bytes / 1e6:.1f} MB {done}; {found.kept_bytes / 1e6:.1f} MB are needed",
        err=True,
    )


@main.command()
@STORE
def runs(store: Path | None) -> None:
    """List the runs of a store, the latest first."""
    from orchestrator.store.run_dir import all_runs, state_of  # noqa: PLC0415

    root = _store(store).root
    if not (found := all_runs(root)):
        click.echo(
            f"no runs in {root}; submit a spec, or name another store with --store", err=True
        )
    for run in found:
        state = state_of(run)
        click.echo(f"{run.run_id:<40} {state['state']:<12} {state['wall_s']:>8.0f} s")


@main.command()
@RUN
@STORE
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True
)
def status(run: str, store: Path | None, form: str) -> None:
    """Show stages, trials and the best so far of a run, live or finished."""
    from orchestrator.report.results import status_view  # noqa: PLC0415
    from orchestrator.store.run_dir import find_run  # noqa: PLC0415

    view = status_view(find_run(_store(store).root, run).root)
    if form == "json":
        click.echo(json.dumps(view, indent=1))
    else:
        from orchestrator.report.views import status_lines  # noqa: PLC0415

        click.echo("\n".join(status_lines(view)))


@main.command()
@RUN
@STORE
@FORMAT
def results(run: str, store: Path | None, form: str) -> None:
    """Print the trials and the ensemble of a run."""
    from orchestrator.report.results import render_results  # noqa: PLC0415
    from orchestrator.store.run_dir import find_run  # noqa: PLC0415

    click.echo(render_results(find_run(_store(store).root, run).root, form), nl=False)


@main.command()
@RUN
@STORE
def report(run: str, store: Path | None) -> None:
    """Write the HTML report of a run again and print its path."""
    from orchestrator.report.page import build  # noqa: PLC0415
    from orchestrator.store.run_dir import find_run  # noqa: PLC0415

    click.echo(build(find_run(_store(store).root, run).root))


@main.command()
def schema() -> None:
    """Print the JSON Schema of a spec, for editors."""
    from orchestrator.spec.models import schema as make  # noqa: PLC0415

    click.echo(json.dumps(make(), indent=1))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="Write here instead of standard output.",
)
def init(folder: Path, out: Path | None) -> None:
    """Print a starter spec for the photos in a folder."""
    from orchestrator.spec.template import starter_spec  # noqa: PLC0415

    text = starter_spec(folder, (out.resolve().parent if out else Path.cwd()))
    if out is None:
        click.echo(text, nl=False)
        return
    if out.exists():
        raise SpecError(f"{out}: a new file was required, it exists; choose another name")
    out.write_text(text, encoding="utf-8")
    click.echo(f"wrote {out}; next: python -m orchestrator check {out}", err=True)


@main.command()
@click.argument("run", metavar="RUN|BUNDLE")
@click.argument("photos", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="CSV to write: ImageID, ans."
)
@STORE
def predict(run: str, photos: Path, out: Path, store: Path | None) -> None:
    """Answer a folder of photos with the ensemble of a run, or of a bundle (a folder or zip that `bundle` wrote).

    The photos go through the preparation that the members were trained with. A bundle needs no store; each of its
    files is checked before it is used.
    """
    from data_prep.catalog.labels import Schema  # noqa: PLC0415
    from orchestrator.ensemble import bundle  # noqa: PLC0415
    from orchestrator.ensemble import members as ensemble  # noqa: PLC0415
    from orchestrator.ensemble.predict import predict_folder  # noqa: PLC0415
    from orchestrator.store.run_dir import find_run  # noqa: PLC0415

    if bundle.is_bundle(place := Path(run)):
        with bundle.open_bundle(place) as found:
            counts = predict_folder(found, photos, out)
    else:
        home = _store(store)
        found = ensemble.of_run(find_run(home.root, run), home)
        counts = predict_folder(found, photos, out)
    schema = Schema(dict(found.classes))
    meaning = ", ".join(
        f"{number} {schema.class_name(number)}" for number in range(schema.n_classes)
    )
    click.echo(f"ans: {meaning}", err=True)
    click.echo(
        f"wrote {out}: {counts['answered']} photos answered, {counts['quarantined']} quarantined",
        err=True,
    )


@main.command()
@RUN
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="New folder, or new file ending in .zip.",
)
@STORE
def bundle(run: str, out: Path, store: Path | None) -> None:
    """Write a run's ensemble as one folder or zip that `predict` can use anywhere, without the store."""
    from orchestrator.ensemble.bundle import write_bundle  # noqa: PLC0415
    from orchestrator.store.run_dir import find_run  # noqa: PLC0415

    home = _store(store)
    facts = write_bundle(find_run(home.root, run), home, out)
    click.echo(
        f"wrote {out}: {facts['n_members']} members, {facts['n_checkpoints']} checkpoints, "
        f"{facts['size_bytes'] / 1e6:.1f} MB; sha256 of its manifest {facts['manifest_sha256']}",
        err=True,
    )


@main.command()
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="RUN")
@STORE
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True
)
def compare(first: str, second: str, store: Path | None, form: str) -> None:
    """Compare the ensembles of two runs on the test photos that both answered, with the paired interval.

    Where the spec names a public part, on the private one.
    """
    from orchestrator.ensemble.compare import compare_lines, compare_runs  # noqa: PLC0415
    from orchestrator.store.run_dir import find_run  # noqa: PLC0415

    home = _store(store)
    found = compare_runs(find_run(home.root, first), find_run(home.root, second))
    click.echo(json.dumps(found, indent=1) if form == "json" else "\n".join(compare_lines(found)))


@main.command()
@click.argument("names", nargs=-1)
@click.option(
    "--list", "listing", is_flag=True, help="Only show every name with size, licence and place."
)
@click.option(
    "--allow-download",
    is_flag=True,
    help="Also fetch files whose sha256 nobody publishes, and record it.",
)
def weights(names: tuple[str, ...], *, listing: bool, allow_download: bool) -> None:
    """Fetch and verify model weights; without NAMES, all whose sha256 is known."""
    from data_prep.weights.cache import fetch_all, local  # noqa: PLC0415
    from data_prep.weights.registry import WeightsError, describe, known  # noqa: PLC0415

    unknown = sorted(set(names) - set(known()))
    if unknown:
        raise SpecError(f"weights {', '.join(unknown)}: required names out of {', '.join(known())}")
    if listing:
        for name in names or known():
            facts = describe(name)
            size = f"{facts.size_bytes / 1e6:.1f} MB" if facts.size_bytes else "?"
            pin = "pinned" if facts.files else "unpinned"
            click.echo(f"{name}\t{size}\t{facts.licence}\t{pin}\t{local(name) or 'not here'}")
        return
    try:
        found = fetch_all(names or None, allow_unpinned=allow_download)
    except WeightsError as error:
        raise UserError(str(error)) from None
    for name, path in found.items():
        click.echo(f"{name}\t{path}")


@main.command()
def doctor() -> None:
    """Say what this machine has and lacks; exit 1 if something needed is missing."""
    from orchestrator.run.doctor import examine  # noqa: PLC0415

    lines, healthy = examine()
    click.echo("\n".join(lines))
    sys.exit(0 if healthy else 1)
