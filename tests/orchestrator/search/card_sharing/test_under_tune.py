"""`gpu: auto` under real Tune, in a cluster that is told it has a GPU."""

import json
import time
from pathlib import Path

import pytest

from orchestrator.cluster.connection import connect, prepare_environment
from orchestrator.search.card_sharing.capacity import TrialSize
from orchestrator.search.card_sharing.shares import MeasuredShares
from orchestrator.search.controller import TrialController
from orchestrator.store.event_types import CardMeasured
from orchestrator.store.ledger import Ledger
from tests.orchestrator.search import toy
from tests.orchestrator.search.card_sharing.fixed_card import GB, FixedCard

prepare_environment(None, insecure=False)  # before anything in this process imports Ray


@pytest.mark.ray
@pytest.mark.slow
def test_the_first_trial_is_alone_on_its_card_and_the_next_ones_are_side_by_side(tmp_path):
    from orchestrator.search.ray_tune import run

    def note(spec, report):
        began = time.time()
        time.sleep(2)
        times = Path(spec.store) / f"{spec.trial_id}.json"
        times.write_text(json.dumps([began, time.time()]))
        report(1, {"val_macro_f1": 0.5})

    make = toy.spec_maker(tmp_path)
    specs = [make(name, name, {"what": name}) for name in ("a", "b", "c")]
    size = TrialSize("toy", "single", False, 64, 32, "fp32")
    with connect(None, num_cpus=2, num_gpus=1, dashboard=False), Ledger(tmp_path) as ledger:
        controller = TrialController(
            ledger,
            "search",
            iter([(spec, None) for spec in specs]),
            shares=MeasuredShares(1, lambda spec: size),
        )
        run(
            controller,
            tmp_path / "tune/search",
            cpu=0.5,
            max_concurrent=4,
            body=note,
            modules=(),
            meter=FixedCard,
        )
        (measured,) = [event for event in ledger.events if isinstance(event, CardMeasured)]
    assert {"COMPLETE": 3} == controller.counts
    assert ("s-a", 30 * GB) == (measured.trial_id, measured.use["peak_bytes"])
    a, b, c = (json.loads((tmp_path / f"s-{name}.json").read_text()) for name in "abc")
    assert a[1] <= min(b[0], c[0])
    assert max(b[0], c[0]) < min(b[1], c[1])
