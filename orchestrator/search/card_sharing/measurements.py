"""What earlier trials of a store did to their cards, as the ledgers of its runs keep it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from orchestrator.search.card_sharing.capacity import CardUse, TrialSize
from orchestrator.store.artifacts import Store
from orchestrator.store.event_types import CardMeasured, RecordInvalid, from_json

_MARK = f'"{CardMeasured.record_kind}"'.encode()  # a ledger may have a million other records


def measured_uses(store: Store) -> dict[TrialSize, CardUse]:
    """Return the newest measurement of each size.

    Where a cluster has several kinds of cards, that is the card which was measured last.
    """
    events: list[CardMeasured] = []
    for path in (store.root / "runs").glob("*/events.jsonl"):
        events += _measured_in(path)
    events.sort(key=lambda event: event.time)
    return {TrialSize(**event.size): CardUse(**event.use) for event in events}


def _measured_in(path: Path) -> Iterator[CardMeasured]:
    with path.open("rb") as file:
        for line in file:
            if _MARK not in line:
                continue
            try:
                event = from_json(json.loads(line))
            except (ValueError, RecordInvalid):
                continue  # the last line of a killed driver
            if isinstance(event, CardMeasured):
                yield event


def measurement(trial_id: str, size: TrialSize, use: CardUse) -> CardMeasured:
    """Return the event of a measurement."""
    return CardMeasured(trial_id=trial_id, size=asdict(size), use=asdict(use))
