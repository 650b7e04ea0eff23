"""What a job finds out on the cluster before a run is sent there: its plan, its store, its versions."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

from orchestrator.base.errors import UserError
from orchestrator.planning.plan import make_plan
from orchestrator.run.remote import Facts, default_store_of_cluster, versions
from orchestrator.spec.load import read
from orchestrator.stages import STAGES
from orchestrator.store.store_address import open_to_read


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True)
@click.option("--base", type=click.Path(path_type=Path))
@click.option("--store")
def main(spec: Path, overrides: tuple[str, ...], base: Path, store: str | None) -> None:
    """Print the facts as JSON, or what is missing; then the exit code is not 0."""
    try:
        experiment = read(spec, list(overrides), base=base, try_components=True)
        opened = open_to_read(store or default_store_of_cluster())
        _require_writable(opened.root)
        plan = make_plan(experiment, opened, STAGES)
    except UserError as error:
        click.echo(str(error))
        sys.exit(error.exit_code)
    click.echo(json.dumps(asdict(Facts(plan.run_id, opened.name, versions()))))


def _require_writable(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{root}: a store was required, found: {error.strerror}") from None
    if not os.access(root, os.W_OK):
        raise UserError(f"{root}: a store that can be written was required, it cannot be")


if __name__ == "__main__":
    main()
