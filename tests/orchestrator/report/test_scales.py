"""Scales of charts: ticks are few and inside."""

from __future__ import annotations

import pytest

from orchestrator.report.scales import nice_ticks


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-0.07, 0.07), (1.0, 1.0), (0.512, 0.537), (3, 20000)]
)
def test_ticks_are_few_and_inside(low, high):
    ticks = nice_ticks(low, high, 5)
    assert 1 <= len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks)
