"""What a person sees while a run goes on: bars on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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


class Reporter:
    """Says what happens on stderr. `quiet` keeps everything but errors to itself."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)

    def say(self, text: str) -> None:
        """Print one line; square brackets are markup of rich."""
        self.console.print(text, soft_wrap=True)

    def outcome(self, name: str, outcome: str, why: str, wall_s: float | None = None) -> None:
        """Print the line that ends a stage."""
        took = f" [dim]{wall_s:.1f} s[/]" if wall_s is not None and wall_s >= 0.05 else ""
        self.say(f"{SYMBOLS.get(outcome, ' ')} {name:<11} {outcome:<10}{took} {why}".rstrip())

    @contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Advance]:
        """Show one bar, or a plain line every ten seconds where there is no terminal."""
        if self.console.is_terminal and not self.console.quiet:
            yield from self._bar(title, total)
        else:
            yield from self._lines(title, total)

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
