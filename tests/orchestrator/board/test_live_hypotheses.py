"""Claims are shown while confirm trains, from the trainings that both arms have finished."""

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.board.run_cache import Hub
from orchestrator.evaluation.paired_test import paired_difference
from orchestrator.evaluation.predictions import (
    GroupMean,
    by_setting,
    groups_of,
    with_group_means,
)
from orchestrator.store import tables
from orchestrator.store.artifacts import Store
from orchestrator.store.event_types import TrialEnded, TrialStarted
from tests.orchestrator.board.planted import LiveDriver

N_PHOTOS = 120
N_FOLDS = 2


@pytest.fixture
def driver(tmp_path):
    store = Store(tmp_path)
    driver = LiveDriver(store)
    rows = [
        {"sample_id": f"train/{i}", "group": f"p{i // 3}", "label": i % 2} for i in range(N_PHOTOS)
    ]
    tables.write(pa.Table.from_pylist(rows), driver.root / "catalog.parquet")
    (driver.root / "resolved.yaml").write_text(
        "name: live\nhypotheses: [half > none, other > none]\nconfirm: {seeds: [0, 1], folds: 2}\n"
    )
    yield driver, store
    driver.leave()


def train(driver, store, variant, seed, fold, right):
    """Leave a finished training of confirm that answers a share of its held-out photos rightly."""
    rng = np.random.default_rng([seed, fold, len(variant)])
    name, setting = f"c-{variant}-{seed}-{fold}", f"{variant}0000"
    rows = []
    for i in range(N_PHOTOS):
        if (i // 3 + seed) % N_FOLDS == fold:
            pred = i % 2 if rng.random() < right else 1 - i % 2
            facts = {
                "trial_id": name,
                "setting": setting,
                "variant": variant,
                "seed": seed,
                "fold": fold,
            }
            answer = {"sample_id": f"train/{i}", "split": "oof", "target": i % 2, "pred": pred}
            rows.append({**facts, **answer, "probs": [float(pred == 0), float(pred == 1)]})
    table = tables.from_rows(rows, tables.PREDICTIONS)
    with store.draft("trial", name, params={}, inputs={}) as draft:
        tables.write(table, draft.path / "predictions.parquet")
    facts = {"setting": setting, "variant": variant, "phase": "confirm", "seed": seed, "fold": fold}
    driver.append(TrialStarted(trial_id=name, key=name, **facts))
    driver.append(TrialEnded(trial_id=name, status="COMPLETE", checkpoint=f"trial/{name}"))
    return table


def claims_of(store):
    opened = Hub(store, store.root).open("live-1")
    opened.live._next_s = 0.0
    opened.live.refresh(60)
    return opened.claims.of(opened.live, opened.report([]))


def test_a_claim_is_the_paired_difference_of_what_both_have_finished(driver):
    driver, store = driver
    assert [0, 0] == [claim.n_trainings for claim in claims_of(store)]
    made = {"half": [], "none": []}
    for seed, fold in ((0, 0), (0, 1), (1, 0)):
        made["half"].append(train(driver, store, "half", seed, fold, 0.95))
        made["none"].append(train(driver, store, "none", seed, fold, 0.6))
    half, other = claims_of(store)
    assert ("half > none", 3, 4) == (half.text, half.n_trainings, half.n_wanted)
    groups = groups_of(tables.read(driver.root / "catalog.parquet"))
    arms = []
    for tables_of in made.values():  # the seed that has all folds
        arms += by_setting(pa.concat_tables(tables_of[:2]), 2, groups).values()
    expected = paired_difference(*arms)
    assert (expected.difference, expected.low) == (half.difference.difference, half.difference.low)
    assert half.difference.difference > 0.2
    assert (0, None) == (other.n_trainings, other.difference)


def test_photos_of_a_group_agree_as_they_will_in_the_verdict(driver):
    driver, store = driver
    made = {"half": [], "none": []}
    for fold in (0, 1):
        for name, tables_of in made.items():
            tables_of.append(train(driver, store, name, 0, fold, 0.8 if name == "half" else 0.6))
    (plain, _) = claims_of(store)
    text = (driver.root / "resolved.yaml").read_text()
    (driver.root / "resolved.yaml").write_text(text + "vote: {group_mean: [mask]}\n")
    (averaged, _) = claims_of(store)
    groups = groups_of(tables.read(driver.root / "catalog.parquet"))
    mean = GroupMean((2,), (0,))
    arms = []
    for tables_of in made.values():
        rows = with_group_means(pa.concat_tables(tables_of), mean, groups)
        arms += by_setting(rows, 2, groups).values()
    assert paired_difference(*arms).difference == averaged.difference.difference
    assert plain.difference.difference != averaged.difference.difference


def test_where_the_verdicts_are_there_nothing_else_is_shown(driver):
    driver, store = driver
    (driver.root / "hypotheses.json").write_text("[]")
    assert [] == claims_of(store)
