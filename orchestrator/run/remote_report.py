"""What a job does on the cluster when somebody elsewhere wants a report: it prints the page, packed."""

from __future__ import annotations

import json
import sys

import click

from orchestrator.base.errors import UserError
from orchestrator.report.page import build
from orchestrator.run.remote import default_store_of_cluster, packed
from orchestrator.store.run_dir import find_run
from orchestrator.store.store_address import open_to_read


@click.command()
@click.argument("run")
@click.option("--store")
def main(run: str, store: str | None) -> None:
    """Print the run's id and its page as JSON, or what is missing; then the exit code is not 0."""
    try:
        opened = open_to_read(store or default_store_of_cluster())
        paths = find_run(opened.root, run, "report")
        page = build(paths.root)
    except UserError as error:
        click.echo(str(error))
        sys.exit(error.exit_code)
    click.echo(json.dumps({"run": paths.run_id, "page": packed(page.read_bytes())}))


if __name__ == "__main__":
    main()
