import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.base.errors import UserError
from orchestrator.evaluation.hypotheses import judge
from orchestrator.evaluation.predictions import Predictions
from orchestrator.evaluation.selection import candidate, choose, finalists, rank
from orchestrator.planning.run_environment import Env
from orchestrator.planning.stage import SUCCEEDED
from orchestrator.report.command_text.result_tables import ensemble_lines
from orchestrator.report.page import build
from orchestrator.spec.claims import Claim, parse
from orchestrator.stages import hypotheses
from orchestrator.stages.confirm import Confirmed
from orchestrator.stages.search import Searched
from orchestrator.stages.split import Split
from orchestrator.store import tables
from orchestrator.store.event_types import TrialEnded, TrialStarted
from orchestrator.store.ledger import TrialRecord
from orchestrator.store.run_dir import RunPaths
from tests.orchestrator.report.fake_run import SCHEMA, SETTINGS, write_run
from tests.orchestrator.stages.planted import (
    open_env,
    plant_catalog,
    planted_candidate,
)


def test_robust_order_goes_down_its_list():
    rows = [
        planted_candidate(name, **changes)
        for name, changes in (
            ("f", {}),
            ("e", {}),
            ("d", {"n_params": 9}),
            ("c", {"total_variation": 0.09}),
            ("b", {"compared_recall": 0.3}),
            ("a", {"low_rounded": 0.51, "compared_recall": 0.0}),
        )
    ]
    assert [row.setting for row in rank(rows, "robust")] == ["a", "b", "c", "d", "e", "f"]


@pytest.mark.parametrize(("n_people", "first"), [(7, "a"), (40, "b")])
def test_a_tie_is_broken_by_a_recall_of_many_people_alone(n_people, first):
    """One photo of seven decided between arms that are equal within .01. Here a has one error
    among the rare class and few parameters, b one error among a hundred."""
    targets = np.array([0, 1] * 100 + [2] * n_people)
    ids = [f"s{i:03}" for i in range(len(targets))]
    rows = []
    for name, place, answer, n_params in (("a", 200, 0, 10), ("b", 0, 1, 20)):
        preds = targets.copy()
        preds[place] = answer
        arm = Predictions(ids, targets, preds[None], 3, ids)
        row = candidate(name, name, arm, search_score=None, n_params=n_params, seed=0)
        rows.append(replace(row, low_rounded=0.9))
    assert rows[0].worst_class_recall < rows[1].worst_class_recall
    assert rows[0].total_variation == pytest.approx(rows[1].total_variation)
    assert rank(rows, "robust")[0].setting == first


def test_every_variant_has_a_finalist_and_the_rest_are_the_best():
    ranking = [
        ("s1", "a", 0.9),
        ("s2", "a", 0.8),
        ("s3", "a", 0.7),
        ("s4", "b", 0.1),
        ("s1", "a", 0.2),
    ]
    assert finalists(ranking, 3, ["a", "b"]) == ["s1", "s2", "s4"]
    assert finalists(ranking, 1, ["a", "b"]) == ["s1", "s4"]


def test_fewer_candidates_than_members_is_said():
    found = choose([planted_candidate("a")], "robust", 3)
    assert (found.members, found.short_of) == (
        ["a"],
        "1 member instead of 3: there are no more candidates",
    )


def test_an_explicit_list_takes_the_best_of_each_variant_in_its_order():
    rows = [
        planted_candidate("x", variant="a", search_score=0.1),
        planted_candidate("y", variant="a"),
        planted_candidate("z", variant="b"),
    ]
    assert choose(rows, ["b", "a"], 5).members == ["z", "y"]
    with pytest.raises(UserError, match="required one of robust, validation, leaderboard, diverse"):
        rank(rows, "best")


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("a > b", Claim("a", "b")),
        (" a > b on accuracy", Claim("a", "b", "accuracy")),
        ("a > b on f1", None),
    ],
)
def test_claims_read_like_sentences(text, claim):
    if claim is None and "on" in text:
        with pytest.raises(ValueError, match="a score out of"):
            parse(text)
    elif claim is not None:
        assert claim == parse(text)


def test_a_planted_effect_is_supported_its_reverse_refuted_and_none_undecided():
    rng = np.random.default_rng(0)
    targets, groups = rng.integers(0, 3, 300), [f"g{at // 5}" for at in range(300)]

    def arm(skill):
        preds = np.where(rng.random(300) < skill, targets, rng.integers(0, 3, 300))[None]
        return Predictions([f"s{at}" for at in range(300)], targets, preds, 3, groups)

    rows = judge(
        ["good > bad", "bad > good", "same > same2"],
        {"good": arm(0.9), "bad": arm(0.4), "same": arm(0.6), "same2": arm(0.6)},
    )
    assert [row["verdict"] for row in rows] == ["supported", "refuted", "undecided"]
    assert rows[0]["n_groups"] == 60


def test_a_claim_about_an_arm_whose_trials_failed_is_undecided_with_the_reason_and_the_others_are_judged(
    tmp_path, monkeypatch
):
    env, *outputs = half_failed(
        tmp_path, ["half-cutmix > single", "shallow > single", "single > single on accuracy"]
    )
    monkeypatch.setattr(Env, "schema", SCHEMA)
    assert hypotheses.run(env, *outputs).outcome == "SUCCEEDED"
    lost, judged, same = json.loads(env.paths.hypotheses.read_text())
    assert (lost["verdict"], lost["difference"], lost["p_value"], lost["n_groups"]) == (
        "undecided",
        None,
        None,
        0,
    )
    assert "'half-cutmix' has no finalist that finished all its trials" in lost["reason"]
    assert (judged["reason"], judged["n_groups"] > 40, same["p_value"]) == (None, True, 1.0)
    assert judged["p_adjusted"] == pytest.approx(
        min(1, 3 * judged["p_value"])
    )  # all that was claimed counts
    assert f"half-cutmix > single: undecided ({lost['reason']})" in ensemble_lines(env.paths.root)
    assert lost["reason"].replace("'", "&#39;") in build(env.paths.root).read_text()


def half_failed(folder, claims):
    """A run of three arms, of which every trial of one failed in confirm: its Env and outputs."""
    paths = RunPaths(write_run(folder / "run"))
    trials, ranking = {"search": [], "confirm": []}, []
    for row in tables.read(paths.trials).to_pylist():
        facts = {name: row[name] for name in ("trial_id", "setting", "variant", "phase")}
        failed = row["phase"] == "confirm" and row["variant"] == "half-cutmix"
        status = "FAILED" if failed else row["status"]
        metrics = {"val_macro_f1": row["val_macro_f1"]}
        trial = TrialRecord(TrialStarted(**facts, key="k"))
        trial.ended = TrialEnded(trial_id=row["trial_id"], status=status, metrics=metrics)
        trials[row["phase"]].append(trial)
        if row["phase"] == "search" and status == "COMPLETE":
            ranking.append((row["setting"], row["variant"], row["val_macro_f1"]))
    checkpoints = {}
    for trial in trials["confirm"]:
        checkpoints.setdefault(trial.setting, []).append(trial)
    predictions = tables.read(paths.predictions)
    photos = tables.read(
        paths.predictions, filters=[("seed", "=", 0), ("setting", "=", SETTINGS[0])]
    )
    samples = photos["sample_id"].to_pylist()
    groups = [sample.split("/")[-2] for sample in samples]
    env = open_env(folder)
    spec = env.experiment.spec.model_copy(update={"hypotheses": claims, "search": None, "seed": 0})
    env = replace(env, experiment=replace(env.experiment, spec=spec), paths=paths)
    catalog = pa.table({"sample_id": samples, "group": groups, "label": photos["target"]})
    return (
        env,
        plant_catalog(env.store, catalog),
        Split(SUCCEEDED, "", {}, {}),
        Searched(SUCCEEDED, "", tuple(trials["search"]), tuple(ranking)),
        Confirmed(SUCCEEDED, "", "oof", tuple(trials["confirm"]), checkpoints, predictions),
    )
