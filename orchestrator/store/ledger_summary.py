"""What a long ledger says of each trial, in little time and memory.

Most records are reports of epochs, and most of these are never looked at: they stay text.
"""

from __future__ import annotations

import json
import re
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
from orchestrator.store.ledger import LedgerDamaged, Tail

_BATCH_BYTES = 2**22
_HEAD = rb'\{"n": \d+, "time": [-+.\de]+, "event": "%s", "trial_id": "([^"\\]+)", '
_REPORT = re.compile(_HEAD % b"report" + rb'("epoch": [^\n]*\}\})\n')


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


@dataclass(slots=True)
class TrialSummary:
    """A trial, as far as a summary needs it."""

    trial_id: str
    phase: str
    variant: str
    lines: bytearray = field(default_factory=bytearray)  # its reports, as text
    ended: TrialEnded | None = None  # None while it has not ended

    @property
    def status(self) -> str | None:
        """COMPLETE, PRUNED or FAILED; None while it has not ended."""
        return self.ended.status if self.ended else None

    def reports(self) -> dict[int, Metrics]:
        """Return epoch -> metrics; a trial that is tried again repeats earlier epochs.

        Raises:
            LedgerDamaged: one cannot be read.
        """
        reports: dict[int, Metrics] = {}
        head = {"event": EpochReported.record_kind, "trial_id": self.trial_id}
        for line in self.lines.splitlines():
            try:
                event = from_json({**head, **json.loads(b"{" + line)})
            except ValueError as error:
                raise LedgerDamaged(
                    f"trial {self.trial_id}: a complete report was required, found one that cannot "
                    f"be read ({error}); nothing was changed. Restore events.jsonl from a copy"
                ) from None
            if isinstance(event, EpochReported):
                reports[event.epoch] = event.metrics
        return reports

    def best(self) -> Metrics | None:
        """Return the metrics of its best epoch; None before its first report."""
        if not self.lines:
            return None
        if self.ended and self.ended.metrics:
            return self.ended.metrics
        return max(self.reports().values(), key=objective)


@dataclass
class LedgerSummary:
    """What all events of a run add up to."""

    trials: dict[str, TrialSummary] = field(default_factory=dict)  # in the order they were started
    events: list[Event] = field(default_factory=list)  # those of no trial

    def take(self, event: Event) -> None:
        """Take in one more event."""
        if not isinstance(event, TrialEvent):
            self.events.append(event)
            return
        trial = self.trials.get(event.trial_id)
        if isinstance(event, TrialStarted) and trial is None:
            summary = TrialSummary(event.trial_id, event.phase, event.variant)
            self.trials[event.trial_id] = summary
        elif trial is None:
            return
        elif isinstance(event, RawReport):
            trial.lines += event.text + b"\n"
        elif isinstance(event, EpochReported):
            record = {"epoch": event.epoch, "metrics": event.metrics}
            trial.lines += json.dumps(record)[1:].encode() + b"\n"
        elif isinstance(event, TrialEnded):
            trial.ended = event
        elif isinstance(event, TrialReopened):
            trial.ended = None


def summarize(path: Path) -> LedgerSummary:
    """Read a ledger bit by bit; nothing where there is no file.

    Raises:
        LedgerDamaged: a record other than the last one cannot be read.
    """
    summary = LedgerSummary()
    tail = Tail(path)
    while tail.n_unread_bytes:
        # a batch that begins with a damaged record has no event: the rest tells whether it is torn
        events = tail.read(_BATCH_BYTES, raw_report) or tail.read(shortcut=raw_report)
        if not events:
            break
        for event in events:
            summary.take(event)
    return summary
