"""Errors that end a command with a message instead of a traceback."""

from __future__ import annotations

INTERRUPTED = 130
"""The exit code of a command that was interrupted, as shells have it."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM.

    Where a `KeyboardInterrupt` itself passed code that `exec` ran, as the makers of data classes do
    during an import, Python ends by SIGINT afterwards, whatever exit code was asked for.
    """


class UserError(Exception):
    """An error that the user can correct; it says what was required, what was found, what to do.

    `exit_code` is 2 for a bad spec or usage, 1 for a missing tool or a stage that failed.
    """

    exit_code = 1


class SpecError(UserError):
    """A spec or a command line that cannot be run."""

    exit_code = 2
