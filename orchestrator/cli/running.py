"""Commands that check a spec, run it, and steer a run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from orchestrator.base.errors import SpecError, UserError
from orchestrator.cli.command_group import echo, main
from orchestrator.cli.interrupts import ending_in_time
from orchestrator.cli.options import (
    ADDRESS,
    ALLOW_CODE,
    INSECURE,
    JOB_SERVER,
    MAX_RUNS,
    RUN,
    SET,
    SPEC,
    STORE,
    find_run,
    open_store,
    output_format,
    print_as,
    read_spec,
    run_there,
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
    echo(f"{spec}: valid; {len(experiment.arms)} variant(s): {names}", err=True)
    for line in lines:
        echo(f"  {line}", err=True)


@main.command()
@SPEC
@SET
@STORE
@output_format("table", "json")
def plan(spec: Path, overrides: tuple[str, ...], store: str | Path | None, form: str) -> None:
    """Show what would run, what is cached and why, the number of trials, and the possible cost."""
    from orchestrator.planning.plan import make_plan  # noqa: PLC0415
    from orchestrator.report.command_text.plans_and_runs import plan_lines  # noqa: PLC0415
    from orchestrator.stages import STAGES  # noqa: PLC0415

    planned = make_plan(read_spec(spec, overrides), open_store(store), STAGES)
    print_as(form, planned.to_json(), plan_lines(planned))


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

    experiment = read_spec(spec, overrides, base, try_components=True, allow_code=allow_code)
    if detach:
        from orchestrator.run.driver import detach as start_detached  # noqa: PLC0415

        echo(start_detached(experiment, open_store(store), sys.argv[1:]))
        return
    options = Options(
        address=address,
        insecure=insecure,
        smoke=smoke,
        allow_download=allow_download,
        allow_code=allow_code,
        max_runs=max_runs,
    )
    with ending_in_time():
        code = execute(experiment, open_store(store), options)
    sys.exit(code)


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

    experiment = read_spec(spec, overrides)
    paths = audits.run(
        experiment, open_store(store), probe=probe, address=address, insecure=insecure
    )
    if form == "json":
        echo(paths.audit.read_text(encoding="utf-8"))
    else:
        echo("\n".join(audits.lines(paths)))
    echo(f"page: {paths.root / 'index.html'}", err=True)


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
    with ending_in_time():
        code = execute(find_run(store, run), open_store(store), options)
    sys.exit(code)


@main.command()
@RUN
@click.argument("trial")
@STORE
@JOB_SERVER
def stop(run: str, trial: str, store: str | Path | None, *, server: str | None) -> None:
    """Stop one running trial; its epochs count, and the run continues."""
    run_there(server, run)
    from orchestrator.run.control import stop_trial  # noqa: PLC0415

    name = stop_trial(find_run(store, run), trial)
    echo(f"asked {name} to stop; it stops within about a second", err=True)


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
    run_there(server, run)
    from orchestrator.run.control import cancel as ask  # noqa: PLC0415

    paths = find_run(store, run)
    if not ask(paths, timeout_s=timeout_s):
        raise UserError(
            f"run {paths.run_id}: asked to end, still live after {timeout_s:g} s; "
            "check it again with `status`"
        )
    echo(f"cancelled {paths.run_id}; continue with `resume {paths.run_id}`", err=True)
