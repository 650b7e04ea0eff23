"""The audit's quick models: the leak gap is there where people leak, and only there."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from data_prep.catalog.images import MAX_BYTES
from data_prep.catalog.label_schema import Schema
from data_prep.config import Split
from data_prep.errors import MachineError
from data_prep.roots.places import read_ahead
from orchestrator.evaluation.scores_with_intervals import scorer_of
from orchestrator.spec.score import parse_score
from orchestrator.stages import audit_models as module
from orchestrator.stages import quick_features as features
from orchestrator.stages.audit_models import compress, leak_gap, probe

SCHEMA = Schema({"state": ["a", "b"], "kind": ["x", "y", "z"]})
N_PHOTOS = 6


def people(n: int, seed: int, *, told: float = 0.0):
    """Features that show who somebody is, and as much of the kind as `told` says."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(n), N_PHOTOS)
    codes = np.column_stack([np.arange(len(owner)) % 2, rng.integers(0, 3, n)[owner]])
    x = rng.normal(size=(n, 40))[owner] * 2 + rng.normal(size=(len(owner), 40)) * 0.3
    x[:, 0] += 6 * codes[:, 0]
    x[:, 1:4] += told * np.eye(3)[codes[:, 1]]
    names = [f"p{one:03}" for one in owner]
    ids = [f"train/{name}/{at % N_PHOTOS}.jpg" for at, name in enumerate(names)]
    rows = pa.table({"sample_id": ids, "group": names, "label": SCHEMA.encode(codes)})
    return compress(x), rows, names


def test_a_random_split_of_photos_promises_too_much():
    x, rows, owners = people(40, 1)
    gap = leak_gap(x, rows, owners, SCHEMA, Split(strategy="random"))
    assert gap.low > 0.2
    assert gap.split - gap.disjoint == pytest.approx(gap.difference)
    assert (gap.n_seeds, gap.n_folds, gap.n_photos, gap.n_groups) == (10, 5, 240, 40)


def test_one_photo_per_person_leaves_nothing_to_leak():
    x, rows, owners = people(120, 2, told=1.0)
    one = np.arange(0, len(owners), N_PHOTOS) + np.arange(120) % 2
    gap = leak_gap(
        x[one], rows.take(one), [owners[at] for at in one], SCHEMA, Split(strategy="random")
    )
    assert gap.low < 0 < gap.high


def test_both_sides_train_on_equally_many_and_answer_every_photo(monkeypatch):
    x, rows, owners = people(11, 3)
    seen = []
    real = module.answer

    def counting(values, codes, train, asked, sizes):
        seen.append((len(train), asked.tolist()))
        return real(values, codes, train, asked, sizes)

    monkeypatch.setattr(module, "answer", counting)
    leak_gap(x, rows, owners, SCHEMA, Split(strategy="random", val=0.25), n_seeds=2)
    by_side = [seen[start : start + 4] for start in range(0, len(seen), 4)]
    assert all(
        sorted(row for _, asked in side for row in asked) == list(range(66)) for side in by_side
    )
    for theirs, ours in zip(by_side[::2], by_side[1::2], strict=True):
        assert [n for n, _ in theirs] == [n for n, _ in ours]


def test_joined_people_are_held_apart_and_a_grouped_split_of_them_leaks():
    x, rows, owners = people(40, 4)
    split_ids = pa.array(
        [f"{name}{at % 2}" for at, name in enumerate(owners)]
    )  # every person under two ids
    rows = rows.set_column(1, "group", split_ids)
    gap = leak_gap(x, rows, owners, SCHEMA, Split(strategy="profile"))
    assert gap.low > 0.1


def test_a_probe_tells_the_hard_label_from_the_easy_one_and_a_shortcut():
    x, rows, owners = people(60, 5, told=0.5)
    other, _, _ = people(60, 6)
    found = probe({"whole": x, "rim": other}, rows, owners, SCHEMA, seed=0)["labels"]
    assert found["state"]["macro_f1"]["estimate"] > 0.8 > found["kind"]["macro_f1"]["estimate"]
    assert found["kind"]["rim"]["low"] < found["kind"]["chance"]["high"]
    assert np.sum(found["kind"]["confusion"]) == 360
    assert found["kind"]["chance"]["estimate"] == pytest.approx(1 / 3, abs=0.08)


def test_a_quick_model_sees_whole_groups_up_to_its_limit(monkeypatch):
    monkeypatch.setattr(features, "MAX_PHOTOS", 100)
    _, rows, _ = people(40, 7)
    catalog = rows.append_column("status", pa.array(["ok"] * len(rows)))
    kept = features.chosen(catalog)
    assert len(kept) == 96
    assert set(Counter(kept["group"].to_pylist()).values()) == {N_PHOTOS}
    assert kept.equals(
        features.chosen(catalog.take(np.arange(len(rows))[::-1])).sort_by("sample_id")
    )
    wide = catalog.set_column(1, "group", pa.array([f"g{at % 2}" for at in range(len(rows))]))
    assert Counter(features.chosen(wide)["group"].to_pylist()).total() == 100


def test_a_photo_that_changed_since_the_catalog_is_black_and_a_broken_disk_stops_the_audit(
    tmp_path,
):
    photo = tmp_path / "a.jpg"
    Image.fromarray(np.full((120, 120, 3), 200, np.uint8)).save(photo)
    sha256 = hashlib.sha256(photo.read_bytes()).hexdigest()
    (read,) = read_ahead([str(photo)], MAX_BYTES)
    assert features._seen(str(photo), read, sha256, "whole").min() > 190
    assert 0 == features._seen(str(photo), read, "0" * 64, "whole").max()

    def fail():
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(MachineError, match="a disk that answers was required"):
        features._seen(str(photo), fail, sha256, "whole")


def test_quick_models_go_by_the_score_of_the_spec():
    x, rows, owners = people(24, 5, told=1.0)
    plain = probe({"whole": x, "rim": x}, rows, owners, SCHEMA, seed=0)["labels"]["kind"]
    by_accuracy = probe({"whole": x, "rim": x}, rows, owners, SCHEMA, seed=0, metric="accuracy")[
        "labels"
    ]["kind"]
    n_right = np.trace(np.array(by_accuracy["confusion"]))
    assert by_accuracy["score"]["estimate"] == pytest.approx(n_right / len(rows))
    assert by_accuracy["rim"] == by_accuracy["score"]
    assert by_accuracy["macro_f1"] == plain["macro_f1"] == plain["rim"]
    assert "score" not in plain
    split = Split(strategy="random")
    of_state = scorer_of(parse_score("accuracy of state"), SCHEMA)
    gap = leak_gap(x, rows, owners, SCHEMA, split, n_seeds=2, metric=of_state)
    assert gap.disjoint > 0.9 > leak_gap(x, rows, owners, SCHEMA, split, n_seeds=2).disjoint


@pytest.mark.ray
@pytest.mark.models
@pytest.mark.slow
def test_an_audit_says_what_a_leak_is_worth_and_trains_nothing(workplace):
    text = workplace.spec.read_text()
    variants = "variants:\n  disjoint: {}\n  random: {data.split.strategy: random}\n"
    workplace.spec.write_text(
        re.sub(r"variants:.*?hypotheses: .*?\n", variants, text, flags=re.DOTALL)
    )
    done = workplace.run("audit", workplace.spec, "--probe")
    assert done.returncode == 0, done.stderr
    folder = next((workplace.root / "store/audits").iterdir())
    facts = json.loads((folder / "audit.json").read_text())
    assert facts["leak_gap"]["random"]["low"] > 0
    assert "disjoint" not in facts["leak_gap"]
    assert set(facts["probe"]["labels"]) == {"mask", "gender", "age"}
    assert facts["warnings"][0]["kind"] == "leak"
    assert "macro F1 too well by it" in done.stdout
    assert str(folder / "index.html") in done.stderr
    page = (folder / "index.html").read_text()
    assert "could not be drawn" not in page
    assert "Which labels are hard" in page
    assert not (workplace.root / "store/trial").exists()
    again = workplace.run("audit", workplace.spec, "--format", "json")
    assert (
        json.loads(again.stdout)["leak_gap"] == facts["leak_gap"]
    )  # the features are found in the store
    assert json.loads(again.stdout)["probe"] is None
