"""Commands for a first spec, the machine, the weights and the store."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from orchestrator.base.errors import SpecError, UserError
from orchestrator.cli.command_group import echo, main
from orchestrator.cli.options import RUN, STORE, find_run, open_store


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
    from orchestrator.spec.starter_spec import starter_spec  # noqa: PLC0415

    text = starter_spec(folder, (out.resolve().parent if out else Path.cwd()))
    if out is None:
        echo(text, nl=False)
        return
    if out.exists():
        raise SpecError(f"{out}: a new file was required, it exists; choose another name")
    out.write_text(text, encoding="utf-8")
    echo(f"wrote {out}; next: python -m orchestrator check {out}", err=True)


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
    from orchestrator.spec.starter_spec import write_examples  # noqa: PLC0415

    try:
        build(folder / "data" / "sample", people, size=(144, 192), jobs=2)
    except ValueError as error:
        raise SpecError(str(error).replace("--out ", "")) from None
    specs = write_examples(folder / "experiments")
    echo(f"wrote {', '.join(map(str, specs))}; next: submit {specs[0]}", err=True)


@main.command()
def schema() -> None:
    """Print the JSON Schema of a spec, for editors."""
    from orchestrator.spec.models import schema as make  # noqa: PLC0415

    echo(json.dumps(make(), indent=1))


@main.command()
def doctor() -> None:
    """List what this machine has and lacks; exit with 1 if a required part is missing."""
    from orchestrator.run.doctor import examine  # noqa: PLC0415

    lines, healthy = examine()
    echo("\n".join(lines))
    sys.exit(0 if healthy else 1)


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
            echo(f"{name}\t{size}\t{facts.licence}\t{pin}\t{local(name) or 'not here'}")
        return
    try:
        fetched = fetch_all(names or None, allow_unpinned=allow_download)
    except WeightsError as error:
        raise UserError(str(error)) from None
    for name, path in fetched.items():
        echo(f"{name}\t{path}")


@main.command()
@STORE
@click.option("--dry-run", is_flag=True, help="Only list what would be deleted.")
def gc(store: str | Path | None, *, dry_run: bool) -> None:
    """Delete what no run of the store needs. To give up a run, delete its folder."""
    from orchestrator.planning.garbage import collect, find_garbage  # noqa: PLC0415
    from orchestrator.stages import STAGES  # noqa: PLC0415

    opened = open_store(store)
    unneeded = find_garbage(opened, STAGES)
    for item in unneeded.items:
        echo(f"{item.size_bytes / 1e6:>10.1f} MB  {item.place}  ({item.why})")
    if not dry_run:
        collect(opened, unneeded)
    freed = "would be freed" if dry_run else "freed"
    size = f"{len(unneeded.items)} items, {unneeded.size_bytes / 1e6:.1f} MB {freed}"
    echo(f"{size}; {unneeded.kept_bytes / 1e6:.1f} MB are needed", err=True)


@main.command()
@RUN
@STORE
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(run: str, store: str | Path | None, *, yes: bool) -> None:
    """Delete the folder of a run; `gc` then deletes the artifacts that no other run needs."""
    from orchestrator.run.control import remove_run  # noqa: PLC0415

    paths = find_run(store, run)
    if not yes:
        click.confirm(f"delete run {paths.run_id} with its results and report?", abort=True)
    remove_run(paths)
    echo(f"deleted run {paths.run_id}; `gc` deletes what only it needed", err=True)
