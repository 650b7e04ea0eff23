"""What a long ledger says of each trial, in little time and memory.

Most records are reports of epochs, and most of these are never looked at: they stay text. Only what
is kept of a record is read; a driver, which goes on with a run, reads and checks all of it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.store.event_types import (
    EpochReported,
    Event,
    Metrics,
    TrialEnded,
    TrialEvent,
    TrialReopened,
    TrialStarted,
    from_json,
    objective,
)
from orchestrator.store.fold_means import FoldPlace, place_of
from orchestrator.store.ledger import LedgerDamaged, Tail

_BATCH_BYTES = 2**22
_HEAD = rb'\{"n": \d+, "time": [-+.\de]+, "event": "%s", "trial_id": "([^"\\]+)", '
_REPORT = re.compile(_HEAD % b"report" + rb'("epoch": [^\r\n]*\}\})\n')
_RECORD = re.compile(
    rb'\{"n": \d+, "time": [-+.\de]+, "event": '
    rb'(?:"report", "trial_id": "(?P<reported>[^"\\]+)", (?P<report>"epoch": [^\r\n]*\}\})'
    rb'|"trial_started", "trial_id": "(?P<started>[^"\\]+)", "setting": "(?P<setting>[^"\\]*)", '
    rb'"variant": "(?P<variant>[^"\\]*)", "phase": "(?P<phase>[a-z]+)", '
    rb'"seed": (?P<seed>\d+), "fold": (?P<fold>\d+|null), [^\n]*\}'
    rb'|"trial_ended", "trial_id": "(?P<ended>[^"\\]+)", "status": "(?P<status>[A-Z]+)", '
    rb'"epochs": \d+, "wall_s": [^,]+, "metrics": (?P<metrics>\{[^{}]*\}|null), [^\n]*\})\n'
)


@dataclass(frozen=True, kw_only=True)
class RawReport(EpochReported):
    """An epoch of a trial as text; most are never looked at, so few are decoded."""

    text: bytes  # epoch and metrics


def raw_report(line: bytes) -> RawReport | None:
    """Return a report without decoding it; None for other records."""
    match = _REPORT.fullmatch(line)
    if match is None:
        return None
    report = object.__new__(RawReport)  # its `__init__` takes most of the time
    vars(report).update(trial_id=match[1].decode(), text=match[2])
    return report


def decode_reports(trial_id: str, lines: bytes | bytearray) -> Iterator[EpochReported]:
    """Yield the reports of a trial that were kept as text, one a line.

    Raises:
        LedgerDamaged: one cannot be read.
    """
    head = {"event": EpochReported.record_kind, "trial_id": trial_id}
    for line in lines.splitlines():
        try:
            event = from_json({**head, **json.loads(b"{" + line)})
        except ValueError as error:
            raise _damaged(trial_id, "report", error) from None
        if isinstance(event, EpochReported):
            yield event


def _damaged(trial_id: str, what: str, error: Exception) -> LedgerDamaged:
    return LedgerDamaged(
        f"trial {trial_id}: a complete {what} was required, found one that cannot be read "
        f"({error}); nothing was changed. Restore events.jsonl from a copy"
    )


_TAKEN = EpochReported(trial_id="", epoch=0, metrics={})
"""Stands for a record whose text was taken in."""


@dataclass(slots=True)
class TrialSummary:
    """A trial, as far as a summary needs it."""

    trial_id: str
    phase: str
    variant: str
    lines: bytearray = field(default_factory=bytearray)  # its reports, as text
    status: str | None = None  # COMPLETE, PRUNED or FAILED; None while it has not ended
    best_text: bytes | None = None  # metrics of its best epoch, as the record of its end has them
    place: FoldPlace | None = None  # of a search training that holds out a fold

    def reports(self) -> dict[int, Metrics]:
        """Return epoch -> metrics; a trial that is tried again repeats earlier epochs.

        Raises:
            LedgerDamaged: one cannot be read.
        """
        return {event.epoch: event.metrics for event in decode_reports(self.trial_id, self.lines)}

    def best(self) -> Metrics | None:
        """Return the metrics of its best epoch; None before its first report.

        Raises:
            LedgerDamaged: they cannot be read.
        """
        return self.end_metrics() or max(self.reports().values(), key=objective, default=None)

    def end_metrics(self) -> Metrics | None:
        """Return the metrics that the record of its end has.

        Raises:
            LedgerDamaged: they cannot be read.
        """
        if self.best_text is None:
            return None
        try:
            metrics: Metrics | None = json.loads(self.best_text)
            if metrics:
                objective(metrics)
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(self.trial_id, "record of its end", error) from None
        return metrics


@dataclass
class LedgerSummary:
    """What all events of a run add up to."""

    trials: dict[str, TrialSummary] = field(default_factory=dict)  # in the order they were started
    events: list[Event] = field(default_factory=list)  # those of no trial

    def take_line(self, line: bytes) -> Event:
        """Take in one more record; return its event, or what stands for it.

        Raises:
            ValueError: it cannot be read.
        """
        match = _RECORD.fullmatch(line)
        if match is None:
            event = from_json(json.loads(line))
            self._take(event)
            return event
        kind = match.lastgroup
        if kind == "report":
            if trial := self.trials.get(match["reported"].decode()):
                trial.lines += match["report"] + b"\n"
        elif kind == "metrics":
            if trial := self.trials.get(match["ended"].decode()):
                trial.status = sys.intern(match["status"].decode())
                trial.best_text = match["metrics"]
        else:
            name = match["started"].decode()
            phase = match["phase"].decode()
            place = None
            if match["fold"] != b"null":
                setting = match["setting"].decode()
                place = place_of(phase, setting, int(match["seed"]), int(match["fold"]))
            self._start(name, phase, match["variant"].decode(), place)
        return _TAKEN

    def _start(self, trial_id: str, phase: str, variant: str, place: FoldPlace | None) -> None:
        if trial_id not in self.trials:
            trial = TrialSummary(trial_id, sys.intern(phase), sys.intern(variant), place=place)
            self.trials[trial_id] = trial

    def _take(self, event: Event) -> None:
        if not isinstance(event, TrialEvent):
            self.events.append(event)
        elif isinstance(event, TrialStarted):
            place = place_of(event.phase, event.setting, event.seed, event.fold)
            self._start(event.trial_id, event.phase, event.variant, place)
        elif trial := self.trials.get(event.trial_id):
            if isinstance(event, EpochReported):
                record = {"epoch": event.epoch, "metrics": event.metrics}
                trial.lines += json.dumps(record)[1:].encode() + b"\n"
            elif isinstance(event, TrialEnded):
                trial.status = event.status
                trial.best_text = json.dumps(event.metrics).encode()
            elif isinstance(event, TrialReopened):
                trial.status = None
                trial.best_text = None


def summarize(path: Path) -> LedgerSummary:
    """Read a ledger bit by bit; nothing where there is no file.

    Raises:
        LedgerDamaged: a record other than the last one cannot be read.
    """
    summary = LedgerSummary()
    tail = Tail(path)
    while tail.n_unread_bytes:
        take = summary.take_line
        # a batch that begins with a damaged record has no event: the rest tells whether it is torn
        if not (tail.read(_BATCH_BYTES, take) or tail.read(shortcut=take)):
            break
    return summary
