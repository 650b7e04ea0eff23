"""Arguments and options that several commands share, and what the commands do with them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from orchestrator.base.errors import SpecError
from orchestrator.cli.command_group import echo

Command = TypeVar("Command", bound=Callable[..., Any])

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


def require_job_server(server: str) -> None:
    """Require that an address is one of a job server.

    Raises:
        SpecError: it is not.
    """
    if not server.startswith(("http://", "https://")):
        raise SpecError(f"--address {server}: http(s)://HEAD:8265 was required, the job server")


def run_there(server: str | None, run: str | None) -> None:
    """Run this command on a cluster and exit; return where no cluster is named."""
    if server is None:
        return
    require_job_server(server)
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


def print_as(form: str, value: Any, lines: list[str]) -> None:
    """Print a value as JSON, or the lines that say it to a reader."""
    echo(json.dumps(value, indent=1) if form == "json" else "\n".join(lines))


def open_store(place: str | Path | None) -> Any:
    """Return the store at a place, or at the default one."""
    from orchestrator.store.store_address import default_place, open_to_read  # noqa: PLC0415

    place = place or default_place()
    return open_to_read(place.resolve() if isinstance(place, Path) else place)


def find_run(store: str | Path | None, run: str, has: str | None = None) -> Any:
    """Return the paths of the run that a name, its beginning or `latest` stands for."""
    from orchestrator.store import run_dir  # noqa: PLC0415

    return run_dir.find_run(open_store(store).root, run, has)


def read_spec(
    spec: Path,
    overrides: tuple[str, ...] = (),
    base: Path | None = None,
    *,
    try_components: bool = False,
    allow_code: bool | None = None,
) -> Any:
    """Return the experiment of a spec file; all its problems are one error."""
    from orchestrator.spec.load import read  # noqa: PLC0415

    changes = list(overrides)
    return read(spec, changes, base=base, try_components=try_components, allow_code=allow_code)
