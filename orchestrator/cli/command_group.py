"""The group of all commands: what an error, a Ctrl-C and a bug look like to a user."""

from __future__ import annotations

import signal
import traceback
from typing import Any

import click

from orchestrator import __version__
from orchestrator.base.errors import INTERRUPTED, Interrupted, UserError
from orchestrator.base.wording import printable


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
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
            echo(str(error), err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            text = "interrupted; to continue the run, submit the same spec or `resume latest`"
            echo(text, err=True)
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:  # noqa: BLE001 - a sentence instead of a traceback
            if ctx.params.get("debug"):
                traceback.print_exc()
            hint = "run again with `python -m orchestrator --debug ...` for the traceback"
            echo(f"{type(error).__name__}: {error}; {hint}", err=True)
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
    raise Interrupted
