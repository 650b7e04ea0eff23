"""The command line: parse, call, print. Each command imports what it needs."""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from orchestrator import __version__
from orchestrator.base.errors import INTERRUPTED, SpecError, UserError
from orchestrator.base.wording import printable

Command = TypeVar("Command", bound=Callable[..., Any])


def _echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text that may hold names out of somebody's data."""
    click.echo(printable(text), err=err, nl=nl)


class Commands(click.Group):
    """A command group that turns user errors into a message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            _echo(str(error), err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            text = "interrupted; to continue the run, submit the same spec or `resume latest`"
            _echo(text, err=True)
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:  # noqa: BLE001 - a sentence instead of a traceback
            if ctx.params.get("debug"):
                traceback.print_exc()
            hint = "run again with `python -m orchestrator --debug ...` for the traceback"
            _echo(f"{type(error).__name__}: {error}; {hint}", err=True)
            ctx.exit(1)


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="orchestrator")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def main(*, debug: bool) -> None:
    """Run experiments in image classification, and get an ensemble with an interval."""
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
    help="Override a value of the spec; the run records it.",
)


class StorePlace(click.ParamType):
    """A folder, or the URL of a bucket."""

    name = "FOLDER|URL"

    def convert(self, value: Any, param: Any, ctx: Any) -> str | Path:
        """Return a URL as text and a folder as a path."""
        if "://" in str(value):
            return str(value)
        path: Path = click.Path(path_type=Path, file_okay=False).convert(value, param, ctx)
        return path


STORE = click.option(
    "--store",
    type=StorePlace(),
    default=None,
    help="Artifacts and runs: a folder, or s3://BUCKET/PREFIX (gs://, az://).  "
    "[default: $ORCHESTRATOR_STORE or ./runs-store]",
)
ADDRESS = click.option(
    "--address",
    default=None,
    envvar="RAY_ADDRESS",
    help="Ray cluster to connect to (HOST:6379); without it a local one is started.",
)
INSECURE = click.option(
    "--insecure", is_flag=True, help="Connect to another machine's cluster without a token."
)


ALLOW_CODE = click.option(
    "--allow-code",
    is_flag=True,
    help="Allow code that the spec or the ensemble names to run, with your rights.",
)
MAX_RUNS = click.option(
    "--max-runs",
    type=click.IntRange(min=1),
    default=None,
    envvar="ORCHESTRATOR_MAX_RUNS",
    help="Runs that train at a time on the cluster, others wait for their turn; the smallest number that "
    "a live run names counts.  [default: all]",
)
JOB_SERVER = click.option(
    "--address",
    "server",
    default=None,
    envvar="RAY_API_SERVER_ADDRESS",
    metavar="http(s)://HEAD:8265",
    help="Run the command on this cluster, where the store is.",
)


def _run_there(server: str | None, run: str | None) -> None:
    """Run this command on a cluster and exit; return where no cluster is named."""
    if server is None:
        return
    if not server.startswith(("http://", "https://")):
        raise SpecError(f"--address {server}: http(s)://HEAD:8265 was required, the job server")
    from orchestrator.run import remote  # noqa: PLC0415

    words = sys.argv[1:]
    for place, word in enumerate(words):
        if word == "--address":
            del words[place : place + 2]
            break
        if word.startswith("--address="):
            del words[place]
            break
    if words[0] == "logs" and run is not None:
        sys.exit(remote.logs(server, words, run))
    sys.exit(remote.call(server, words, run))


def output_format(*forms: str) -> Callable[[Command], Command]:
    """Add the option --format to a command."""
    return click.option(
        "--format",
        "form",
        type=click.Choice(forms),
        default=forms[0],
        show_default=True,
        help="Format of the output.",
    )


def _print(form: str, value: Any, lines: list[str]) -> None:
    _echo(json.dumps(value, indent=1) if form == "json" else "\n".join(lines))


def _store(place: str | Path | None) -> Any:
    from orchestrator.store.store_address import default_place, open_to_read  # noqa: PLC0415

    place = place or default_place()
    return open_to_read(place.resolve() if isinstance(place, Path) else place)


def _find_run(store: str | Path | None, run: str, has: str | None = None) -> Any:
    from orchestrator.store.run_dir import find_run  # noqa: PLC0415

    return find_run(_store(store).root, run, has)


def _read(
    spec: Path,
    overrides: tuple[str, ...] = (),
    base: Path | None = None,
    *,
    try_components: bool = False,
    allow_code: bool | None = None,
) -> Any:
    from orchestrator.spec.load import read  # noqa: PLC0415

    return read(
        spec,
        list(overrides),
        base=base,
        try_components=try_components,
        allow_code=allow_code,
    )


@main.command()
@SPEC
@SET
@click.option(
    "--offline", is_flag=True, help="Do not read the data; they may be on another machine."
)
@ALLOW_CODE
def check(spec: Path, overrides: tuple[str, ...], *, offline: bool, allow_code: bool) -> None:
    """Check a spec and its tables, and list all problems with line and column."""
    from orchestrator.spec.load import read  # noqa: PLC0415

    experiment = read(
        spec,
        list(overrides),
        need_data=not offline,
        try_components=True,
        allow_code=allow_code,
    )
    lines = []
    if not offline:
        from orchestrator.spec.data_checks import check_data  # noqa: PLC0415

        lines = check_data(experiment, spec).text()
    names = ", ".join(experiment.arms)
    _echo(f"{spec}: valid; {len(experiment.arms)} variant(s): {names}", err=True)
    for line in lines:
        _echo(f"  {line}", err=True)


@main.command()
@SPEC
@SET
@STORE
@output_format("table", "json")
def plan(spec: Path, overrides: tuple[str, ...], store: str | Path | None, form: str) -> None:
    """Show what would run, what is cached and why, the number of trials, and the possible cost."""
    from orchestrator.planning.plan import make_plan  # noqa: PLC0415
    from orchestrator.report.command_output import plan_lines  # noqa: PLC0415
    from orchestrator.stages import STAGES  # noqa: PLC0415

    planned = make_plan(_read(spec, overrides), _store(store), STAGES)
    _print(form, planned.to_json(), plan_lines(planned))


@main.command()
@SPEC
@SET
@STORE
@click.option(
    "--address",
    default=None,
    envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"],
    help="Ray cluster: HOST:6379 to drive the run from here, http(s)://HOST:8265 to send it there "
    "as a job. Without it a local one is started.",
)
@INSECURE
@click.option("--detach", is_flag=True, help="Run in the background and print the run's id.")
@click.option(
    "--smoke", is_flag=True, help="First run one training step of each variant through all stages."
)
@click.option("--allow-download", is_flag=True, help="Allow downloads of missing model weights.")
@ALLOW_CODE
@MAX_RUNS
@click.option(
    "--base",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder that relative paths of the spec start from.  [default: the spec's own]",
)
def submit(
    spec: Path,
    overrides: tuple[str, ...],
    store: str | Path | None,
    *,
    address: str | None,
    insecure: bool,
    detach: bool,
    smoke: bool,
    allow_download: bool,
    allow_code: bool,
    max_runs: int | None,
    base: Path | None,
) -> None:
    """Check, plan, run and report an experiment; continue it if it was interrupted."""
    if address is not None and address.startswith(("http://", "https://")):
        from orchestrator.run import remote  # noqa: PLC0415

        order = remote.Order(
            spec,
            overrides,
            base,
            store,
            insecure,
            detach,
            smoke,
            allow_download,
            max_runs,
            allow_code,
        )
        sys.exit(remote.submit(address, order))
    if base is not None and not base.is_dir():
        raise SpecError(f"--base {base}: a folder was required, found none")
    from orchestrator.run.driver import Options  # noqa: PLC0415
    from orchestrator.run.driver import submit as execute  # noqa: PLC0415

    experiment = _read(spec, overrides, base, try_components=True, allow_code=allow_code)
    if detach:
        from orchestrator.run.driver import detach as start_detached  # noqa: PLC0415

        _echo(start_detached(experiment, _store(store), sys.argv[1:]))
        return
    options = Options(
        address=address,
        insecure=insecure,
        smoke=smoke,
        allow_download=allow_download,
        allow_code=allow_code,
        max_runs=max_runs,
    )
    sys.exit(execute(experiment, _store(store), options))


@main.command()
@SPEC
@SET
@STORE
@ADDRESS
@INSECURE
@click.option(
    "--probe",
    is_flag=True,
    help="Train a quick model per label; it shows hard labels, and those that the background reveals.",
)
@output_format("table", "json")
def audit(
    spec: Path,
    overrides: tuple[str, ...],
    store: str | Path | None,
    *,
    address: str | None,
    insecure: bool,
    probe: bool,
    form: str,
) -> None:
    """Check only the data: their content, leaks, and what to change in the spec."""
    from orchestrator.run import audit_only as audits  # noqa: PLC0415

    experiment = _read(spec, overrides)
    paths = audits.run(experiment, _store(store), probe=probe, address=address, insecure=insecure)
    if form == "json":
        _echo(paths.audit.read_text(encoding="utf-8"))
    else:
        _echo("\n".join(audits.lines(paths)))
    _echo(f"page: {paths.root / 'index.html'}", err=True)


@main.command()
@RUN
@STORE
@ADDRESS
@INSECURE
@MAX_RUNS
@ALLOW_CODE
def resume(
    run: str,
    store: str | Path | None,
    *,
    address: str | None,
    insecure: bool,
    max_runs: int | None,
    allow_code: bool,
) -> None:
    """Continue an interrupted run with its recorded spec, even if the spec file has changed."""
    from orchestrator.run.driver import Options  # noqa: PLC0415
    from orchestrator.run.driver import resume as execute  # noqa: PLC0415

    options = Options(address=address, insecure=insecure, max_runs=max_runs, allow_code=allow_code)
    sys.exit(execute(_find_run(store, run), _store(store), options))


@main.command()
@RUN
@click.argument("trial")
@STORE
@JOB_SERVER
def stop(run: str, trial: str, store: str | Path | None, *, server: str | None) -> None:
    """Stop one running trial; its epochs count, and the run continues."""
    _run_there(server, run)
    from orchestrator.run.control import stop_trial  # noqa: PLC0415

    name = stop_trial(_find_run(store, run), trial)
    _echo(f"asked {name} to stop; it stops within about a second", err=True)


@main.command()
@RUN
@STORE
@JOB_SERVER
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    default=30.0,
    show_default=True,
    help="Seconds to wait until the run ends.",
)
def cancel(run: str, store: str | Path | None, *, server: str | None, timeout_s: float) -> None:
    """End a live run; `resume` or the same `submit` continues it."""
    _run_there(server, run)
    from orchestrator.run.control import cancel as ask  # noqa: PLC0415

    paths = _find_run(store, run)
    if not ask(paths, timeout_s=timeout_s):
        raise UserError(
            f"run {paths.run_id}: asked to end, still live after {timeout_s:g} s; "
            "check it again with `status`"
        )
    _echo(f"cancelled {paths.run_id}; continue with `resume {paths.run_id}`", err=True)


@main.command()
@RUN
@click.argument("item", required=False)
@STORE
@JOB_SERVER
def why(run: str, item: str | None, store: str | Path | None, *, server: str | None) -> None:
    """Explain the state of a run, or of ITEM: a stage, a trial or a setting."""
    _run_there(server, run)
    from orchestrator.report.state_reasons import why as explain  # noqa: PLC0415

    _echo("\n".join(explain(_find_run(store, run), item)))


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
    _run_there(server, run)
    from orchestrator.report.state_reasons import printed, story  # noqa: PLC0415

    paths = _find_run(store, run)
    try:
        for line in printed(paths, trial) if trial else story(paths, follow=follow):
            _echo(line)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED) from None  # the run continues


@main.command()
@STORE
@click.option("--dry-run", is_flag=True, help="Only list what would be deleted.")
def gc(store: str | Path | None, *, dry_run: bool) -> None:
    """Delete what no run of the store needs. To give up a run, delete its folder."""
    from orchestrator.planning.garbage import collect, find_garbage  # noqa: PLC0415
    from orchestrator.stages import STAGES  # noqa: PLC0415

    opened = _store(store)
    unneeded = find_garbage(opened, STAGES)
    for item in unneeded.items:
        _echo(f"{item.size_bytes / 1e6:>10.1f} MB  {item.place}  ({item.why})")
    if not dry_run:
        collect(opened, unneeded)
    freed = "would be freed" if dry_run else "freed"
    size = f"{len(unneeded.items)} items, {unneeded.size_bytes / 1e6:.1f} MB {freed}"
    _echo(f"{size}; {unneeded.kept_bytes / 1e6:.1f} MB are needed", err=True)


@main.command()
@STORE
@JOB_SERVER
def runs(store: str | Path | None, *, server: str | None) -> None:
    """List the runs of a store with state, age, wall time and size, the latest first."""
    _run_there(server, None)
    from orchestrator.report.command_output import run_lines  # noqa: PLC0415

    opened = _store(store)
    lines = run_lines(opened.root)
    if not lines:
        text = f"no runs in {opened.name}; submit a spec, or name another store with --store"
        _echo(text, err=True)
    for line in lines:
        _echo(line)


@main.command()
@RUN
@STORE
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(run: str, store: str | Path | None, *, yes: bool) -> None:
    """Delete the folder of a run; `gc` then deletes the artifacts that no other run needs."""
    from orchestrator.run.control import remove_run  # noqa: PLC0415

    paths = _find_run(store, run)
    if not yes:
        click.confirm(f"delete run {paths.run_id} with its results and report?", abort=True)
    remove_run(paths)
    _echo(f"deleted run {paths.run_id}; `gc` deletes what only it needed", err=True)


@main.command()
@RUN
@STORE
@JOB_SERVER
@output_format("table", "json")
def status(run: str, store: str | Path | None, form: str, *, server: str | None) -> None:
    """Show stages, trials and the best score of a run, live or finished."""
    _run_there(server, run)
    from orchestrator.report.command_output import status_lines  # noqa: PLC0415
    from orchestrator.report.result_tables import status_view  # noqa: PLC0415

    view = status_view(_find_run(store, run).root)
    _print(form, view, status_lines(view))


@main.command()
@RUN
@STORE
@JOB_SERVER
@output_format("table", "csv", "json")
def results(run: str, store: str | Path | None, form: str, *, server: str | None) -> None:
    """Print the trials and the ensemble of a run."""
    _run_there(server, run)
    from orchestrator.report.result_tables import render_results  # noqa: PLC0415

    paths = _find_run(store, run, has="trials")
    _echo(render_results(paths.root, form), nl=False)


@main.command()
@click.argument("names", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Write the page of several runs here.  [default: in the folder of the first one]",
)
@STORE
def report(names: tuple[str, ...], out: Path | None, store: str | Path | None) -> None:
    """Rewrite the HTML report of a run and print its path; with several runs, one page of them all.

    `report/result.svg` beside the page is the result as a picture, for a README.
    """
    runs = [_find_run(store, name, has="report" if len(names) == 1 else None) for name in names]
    if len(runs) == 1:
        if out is not None:
            raise SpecError("--out: several runs were required, found one; leave --out away")
        from orchestrator.report.page import build  # noqa: PLC0415

        _echo(str(build(runs[0].root)))
        return
    from orchestrator.report.summaries.comparison_page import build_together  # noqa: PLC0415

    others = "+".join(run.run_id for run in runs[1:])
    place = out or runs[0].root / "report" / f"with-{others[:180]}.html"
    _echo(str(build_together([run.root for run in runs], place)))


@main.command()
def schema() -> None:
    """Print the JSON Schema of a spec, for editors."""
    from orchestrator.spec.models import schema as make  # noqa: PLC0415

    _echo(json.dumps(make(), indent=1))


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
        _echo(text, nl=False)
        return
    if out.exists():
        raise SpecError(f"{out}: a new file was required, it exists; choose another name")
    out.write_text(text, encoding="utf-8")
    _echo(f"wrote {out}; next: python -m orchestrator check {out}", err=True)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--people",
    type=click.IntRange(36, 10_000),
    default=40,
    show_default=True,
    help="Drawn people, in train and test together.",
)
def sample(folder: Path, people: int) -> None:
    """Draw sample photos into FOLDER/data/sample and write specs for them to FOLDER/experiments."""
    from data_prep.sample.portrait_data_set import build  # noqa: PLC0415
    from orchestrator.spec.template import write_examples  # noqa: PLC0415

    try:
        build(folder / "data" / "sample", people, size=(144, 192), jobs=2)
    except ValueError as error:
        raise SpecError(str(error).replace("--out ", "")) from None
    specs = write_examples(folder / "experiments")
    _echo(f"wrote {', '.join(map(str, specs))}; next: submit {specs[0]}", err=True)


@main.command()
@click.argument("run", metavar="RUN|BUNDLE")
@click.argument("photos", type=click.Path(path_type=Path, exists=True, allow_dash=True))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="CSV to write: ImageID, ans."
)
@click.option(
    "--probabilities",
    is_flag=True,
    help="Also write names, confidence, votes, and the probability of every class.",
)
@click.option(
    "--fill",
    type=click.Choice(["empty", "majority"]),
    default="empty",
    show_default=True,
    help="The answer of photos that cannot be read.",
)
@click.option(
    "--folders-are-groups",
    "by_folder",
    is_flag=True,
    help="The photos of a folder are one group, over which vote.group_mean averages.",
)
@ALLOW_CODE
@STORE
def predict(
    run: str,
    photos: Path,
    out: Path,
    store: str | Path | None,
    *,
    probabilities: bool,
    fill: str,
    by_folder: bool,
    allow_code: bool,
) -> None:
    """Classify PHOTOS with the ensemble of a run or of a bundle.

    PHOTOS is a folder, one photo, a text file with a path per line, or - for such lines from
    standard input.

    A bundle is the folder or zip that `bundle` writes; it needs no store, and each of its files is
    checked before use. The photos get the preparation that the members were trained with.
    """
    from data_prep.catalog.label_schema import Schema  # noqa: PLC0415
    from orchestrator.ensemble import bundle  # noqa: PLC0415
    from orchestrator.ensemble import members as ensemble  # noqa: PLC0415
    from orchestrator.ensemble.predict import predict_photos  # noqa: PLC0415

    how = {
        "with_probabilities": probabilities,
        "fill": fill == "majority",
        "by_folder": by_folder,
    }
    if bundle.is_bundle(Path(run)):
        with bundle.open_bundle(Path(run)) as members:
            members.allow_code(allowed=allow_code)
            counts = predict_photos(members, photos, out, **how)
    else:
        members = ensemble.of_run(_find_run(store, run, has="selection"), _store(store))
        members.allow_code(allowed=allow_code)
        counts = predict_photos(members, photos, out, **how)
    schema = Schema(dict(members.classes))
    names = [f"{code} {schema.class_name(code)}" for code in range(schema.n_classes)]
    _echo(f"ans: {', '.join(names)}", err=True)
    filled = ""
    if counts["quarantined"]:
        filled = ", without an answer (--fill majority gives them one)"
        if fill == "majority":
            filled = ", answered with the majority class"
    _echo(
        f"wrote {out}: {counts['answered']} photos answered, {counts['quarantined']} quarantined"
        f"{filled}",
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
@click.option(
    "--onnx",
    "with_onnx",
    is_flag=True,
    help="Add the members as ONNX, and a script that answers with onnxruntime alone.",
)
@ALLOW_CODE
@STORE
def bundle(
    run: str, out: Path, store: str | Path | None, *, with_onnx: bool, allow_code: bool
) -> None:
    """Write a run's ensemble as one folder or zip, for `predict` on any machine."""
    from orchestrator.ensemble.bundle import write_bundle  # noqa: PLC0415

    paths = _find_run(store, run, has="selection")
    facts = write_bundle(paths, _store(store), out, with_onnx=with_onnx, allow_code=allow_code)
    _echo(
        f"wrote {out}: {facts['n_members']} members, {facts['n_checkpoints']} checkpoints, "
        f"{facts['size_bytes'] / 1e6:.1f} MB; sha256 of its manifest {facts['manifest_sha256']}",
        err=True,
    )


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

    comparison = compare_runs(_find_run(store, first), _find_run(store, second))
    _print(form, comparison, compare_lines(comparison))


@main.command()
@click.argument("names", nargs=-1)
@click.option(
    "--list", "listing", is_flag=True, help="Only list all names with size, licence and location."
)
@click.option(
    "--allow-download",
    is_flag=True,
    help="Also fetch files without a published sha256, and record theirs.",
)
def weights(names: tuple[str, ...], *, listing: bool, allow_download: bool) -> None:
    """Fetch and verify model weights; without NAMES, all with a known sha256."""
    from data_prep.weights.cache import fetch_all, local  # noqa: PLC0415
    from data_prep.weights.registry import WeightsError, describe, known  # noqa: PLC0415

    unknown = sorted(set(names) - set(known()))
    if unknown:
        names_known = ", ".join(known())
        raise SpecError(f"weights {', '.join(unknown)}: required names out of {names_known}")
    if listing:
        for name in names or known():
            facts = describe(name)
            size = f"{facts.size_bytes / 1e6:.1f} MB" if facts.size_bytes else "?"
            pin = "pinned" if facts.files else "unpinned"
            _echo(f"{name}\t{size}\t{facts.licence}\t{pin}\t{local(name) or 'not here'}")
        return
    try:
        fetched = fetch_all(names or None, allow_unpinned=allow_download)
    except WeightsError as error:
        raise UserError(str(error)) from None
    for name, path in fetched.items():
        _echo(f"{name}\t{path}")


@main.command()
def doctor() -> None:
    """List what this machine has and lacks; exit with 1 if a required part is missing."""
    from orchestrator.run.doctor import examine  # noqa: PLC0415

    lines, healthy = examine()
    _echo("\n".join(lines))
    sys.exit(0 if healthy else 1)


@main.command()
@STORE
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=8266, show_default=True, help="0 takes a free one.")
def board(store: str | Path | None, host: str, port: int) -> None:
    """Show the runs of a store in a browser, live, until Ctrl-C.

    The printed address holds a token; who has it can also stop, cancel, resume and submit runs.
    """
    from orchestrator.board.server import serve  # noqa: PLC0415

    serve(_store(store), host=host, port=port)
