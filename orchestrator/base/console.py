"""The output of a running command on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from orchestrator.base.wording import printable

_LINE_EVERY_S = 10.0
SYMBOLS = {
    "SUCCEEDED": "[green]✔[/]",
    "CACHED": "[cyan]=[/]",
    "FAILED": "[red]✘[/]",
    "BLOCKED": "[yellow]·[/]",
    "WOULD_RUN": "[blue]>[/]",
}

Advance = Callable[[int, str], None]
"""Takes the number of finished items and a short note."""


@dataclass(frozen=True)
class PhaseSnapshot:
    """The state of a phase of trials at one moment."""

    n_ended: int
    counts: dict[str, int]  # by status
    best: float | None
    left_s: float | None  # until the last trial ends; None while nothing has ended
    running: tuple[str, ...]  # a line each

    def line(self, title: str, total: int) -> str:
        """Return all but the running trials as one line."""
        parts = [f"{title}: {self.n_ended}/{total}"]
        if self.counts:
            counts = sorted(self.counts.items())
            parts.append(", ".join(f"{n} {status.lower()}" for status, n in counts))
        parts.append(f"{len(self.running)} running")
        if self.best is not None:
            parts.append(f"best {self.best:.4f}")
        if self.left_s is not None:
            parts.append(f"about {duration(self.left_s)} left")
        return " · ".join(parts)


def duration(seconds: float) -> str:
    """Return a time span for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class Reporter:
    """Prints what happens to stderr; with `quiet` nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)

    def say(self, text: str) -> None:
        """Print one line; square brackets are markup of rich."""
        self.console.print(printable(text), soft_wrap=True)

    def outcome(self, name: str, outcome: str, why: str, wall_s: float | None = None) -> None:
        """Print how a stage ended; `why` is plain text, without markup."""
        took = ""
        if wall_s is not None and wall_s >= 0.05:
            took = f" [dim]{wall_s:.1f} s[/]"
        symbol = SYMBOLS.get(outcome, " ")
        self.say(f"{symbol} {name:<11} {outcome:<10}{took} {escape(why)}".rstrip())

    @contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Advance]:
        """Show one bar, or a plain line every ten seconds without a terminal."""
        if self.console.is_terminal and not self.console.quiet:
            yield from self._bar(title, total)
        else:
            yield from self._lines(title, total)

    @contextmanager
    def trials(
        self, title: str, total: int, snapshot: Callable[[], PhaseSnapshot]
    ) -> Iterator[Callable[[], None]]:
        """Show a phase and its running trials, or a plain line every ten seconds.

        Yields:
            What the caller has to call often.
        """
        if self.console.is_terminal and not self.console.quiet:

            def draw() -> Group:
                now = snapshot()
                running = [f"    [dim]{line}[/]" for line in now.running]
                return Group(f"  {now.line(title, total)}", *running)

            with Live(
                get_renderable=draw, console=self.console, transient=True, refresh_per_second=2
            ):
                yield lambda: None
            return
        last_line = time.monotonic()

        def tick() -> None:
            nonlocal last_line
            if time.monotonic() - last_line >= _LINE_EVERY_S:
                last_line = time.monotonic()
                self.say(f"  {snapshot().line(title, total)}")

        yield tick

    def _bar(self, title: str, total: int | None) -> Iterator[Advance]:
        columns = (
            TextColumn("  {task.description:<11}"),
            BarColumn(30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(title, total=total, note="")

            def advance(done: int, note: str = "") -> None:
                bar.update(task, completed=done, note=note)

            yield advance

    def _lines(self, title: str, total: int | None) -> Iterator[Advance]:
        started = last_line = time.monotonic()

        def advance(done: int, note: str = "") -> None:
            nonlocal last_line
            now = time.monotonic()
            if now - last_line >= _LINE_EVERY_S:
                last_line = now
                count = f"{done}/{total}" if total else str(done)
                self.say(f"  {title}: {count} after {now - started:.0f} s {note}".rstrip())

        yield advance
