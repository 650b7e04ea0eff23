"""What a person sees while a run goes on: bars on a terminal, plain lines elsewhere, always on stderr."""

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

_LINE_EVERY_S = 10.0
SYMBOLS = {
    "SUCCEEDED": "[green]✔[/]",
    "CACHED": "[cyan]=[/]",
    "FAILED": "[red]✘[/]",
    "BLOCKED": "[yellow]·[/]",
    "WOULD_RUN": "[blue]>[/]",
}

Advance = Callable[[int, str], None]
"""Takes how many are done in all and a short note."""


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
        counts = ", ".join(f"{n} {status.lower()}" for status, n in sorted(self.counts.items()))
        parts = [f"{title}: {self.n_ended}/{total}", counts, f"{len(self.running)} running"]
        parts += [f"best {self.best:.4f}"] if self.best is not None else []
        parts += [f"about {duration(self.left_s)} left"] if self.left_s is not None else []
        return " · ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """Return a time span for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Reporter:
    """Says what happens on stderr. `quiet` keeps everything but errors to itself."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)

    def say(self, text: str) -> None:
        """Print one line; square brackets are markup of rich."""
        self.console.print(text, soft_wrap=True)

    def outcome(self, name: str, outcome: str, why: str, wall_s: float | None = None) -> None:
        """Print the line that ends a stage; `why` is plain text, whatever names of files stand in it."""
        took = f" [dim]{wall_s:.1f} s[/]" if wall_s is not None and wall_s >= 0.05 else ""
        self.say(
            f"{SYMBOLS.get(outcome, ' ')} {name:<11} {outcome:<10}{took} {escape(why)}".rstrip()
        )

    @contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Advance]:
        """Show one bar, or a plain line every ten seconds where there is no terminal."""
        if self.console.is_terminal and not self.console.quiet:
            yield from self._bar(title, total)
        else:
            yield from self._lines(title, total)

    @contextmanager
    def trials(
        self, title: str, total: int, snapshot: Callable[[], PhaseSnapshot]
    ) -> Iterator[Callable[[], None]]:
        """Show a phase's state and one line per running trial, or a plain line every ten seconds; yields a tick."""
        if self.console.is_terminal and not self.console.quiet:

            def draw() -> Group:
                now = snapshot()
                return Group(
                    f"  {now.line(title, total)}",
                    *(f"    [dim]{line}[/]" for line in now.running),
                )

            with Live(
                get_renderable=draw, console=self.console, transient=True, refresh_per_second=2
            ):
                yield lambda: None
            return
        last = time.monotonic()

        def tick() -> None:
            nonlocal last
            if time.monotonic() - last >= _LINE_EVERY_S:
                last = time.monotonic()
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
        began = last = time.monotonic()

        def advance(done: int, note: str = "") -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _LINE_EVERY_S:
                last = now
                of = f"/{total}" if total else ""
                self.say(f"  {title}: {done}{of} after {now - began:.0f} s {note}".rstrip())

        yield advance
