"""The contest's specs: each reads, can be planned in both profiles, and says what it asks."""

import itertools
import json
import shutil
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.evaluation.metrics import macro_f1
from orchestrator.planning.plan import make_plan, n_trials
from orchestrator.spec.load import read
from orchestrator.stages import STAGES
from orchestrator.store import tables
from orchestrator.store.artifacts import Store
from orchestrator.store.event_types import StageEnded, TrialEnded, TrialStarted
from orchestrator.store.run_dir import RunPaths
from tests.campaign import contest, contest_results

HEAD = ("Question:", "Published:", "Command:", "Time:", "Changes:")


@pytest.fixture(scope="module")
def no_photos(tmp_path_factory):
    """A data set of one person, in the contest's layout: a plan only lists files."""
    root = tmp_path_factory.mktemp("contest")
    for place in ("train/images/1_female_x_30/normal.jpg", "eval/images/a.jpg"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).touch()
    (root / "train/train.csv").write_text("id,gender,race,age,path\n1,female,x,30,1_female_x_30\n")
    (root / "eval/info.csv").write_text("ImageID,ans\na.jpg,0\n")
    (root / "eval/people.csv").write_text("ImageID,ans,person\na.jpg,0,7\n")
    return root


@pytest.mark.parametrize("table", contest.TABLES)
def test_every_table_can_be_planned_in_both_profiles(table, no_photos, tmp_path):
    spec = contest.FOLDER / f"{table}.yaml"
    root = f"data.source.root={no_photos / 'train'}"
    full = read(spec, [root])
    planned = make_plan(full, Store(tmp_path), STAGES)
    assert planned.trials == n_trials(full)
    assert full.spec.resources.per_trial.gpu
    assert full.spec.data.test is not None
    small = contest.changes_of(table)
    changes = [*small, root]
    if any(text.startswith("data.test={") for text in small):
        changes.append(f"data.test.root={no_photos / 'eval'}")
    cheap = read(spec, changes)
    assert make_plan(cheap, Store(tmp_path), STAGES).trials == n_trials(cheap)
    assert not cheap.spec.resources.per_trial.gpu
    assert {arm.prep.size for arm in cheap.arms.values()} == {96}


@pytest.mark.parametrize("table", contest.TABLES)
def test_every_table_says_what_it_asks_and_what_was_published(table):
    text = (contest.FOLDER / f"{table}.yaml").read_text()
    places = [text.find(f"# {name}") for name in HEAD]
    assert places == sorted(places)
    assert min(places) == 0
    assert f"make contest ONLY={table}" in text
    assert f"submit experiments/contest/{table}.yaml" in text


def test_every_claim_of_the_small_profile_is_beside_what_was_published():
    published = [(claim.table, claim.claim) for claim in contest.published_claims()]
    asked = []
    for table in contest.TABLES:
        changes = list(contest.changes_of(table))
        small = read(contest.FOLDER / f"{table}.yaml", changes, check_roots=False)
        asked += [(table, claim) for claim in small.spec.hypotheses]
    assert sorted(published) == sorted(asked)
    assert {claim.sign for claim in contest.published_claims()} == {-1, 1}


def test_ensembles_run_by_every_policy_on_five_sets_of_seeds():
    jobs = contest.jobs_of("ensembles")
    assert len({job.label for job in jobs}) == 4 * contest.N_DRAWS == len(jobs)
    seeds = [text for text in jobs[-1].changes if text.startswith("confirm.seeds")]
    assert seeds[-1] == "confirm.seeds=[8, 9]"
    assert "'confirm.seeds=[8, 9]'" in jobs[-1].shown


def test_the_headline_trains_the_arms_of_the_study_and_model_a_on_photos_of_one_size():
    sizes = set()
    for job in contest.jobs_of(contest.HEADLINE):
        small = read(contest.ROOT / job.spec, list(job.changes), check_roots=False)
        sizes |= {arm.prep.size for arm in small.arms.values()}
        assert job.spec in job.shown
        assert {"A"} == small.arms.keys() if job.label == "A" else "recipe" in small.arms
        assert ([] if job.label != "mean" else ["gender", "age"]) == small.spec.vote.group_mean
    assert {160} == sizes


def plant_run(store, table, label="", *, claims=(), cached=()):
    """Write the files of a finished run that the results are made of."""
    run = RunPaths(store / "runs" / f"contest-{table}{label}")
    run.root.mkdir(parents=True)
    run.hypotheses.write_text(json.dumps(claims))
    run.summary.write_text(json.dumps({"state": "SUCCEEDED"}))
    events = []
    for seed, fold in itertools.product((0, 1), (0, 1, 2)):
        name = f"random-s{seed}f{fold}"
        facts = {"setting": "a", "variant": "random", "phase": "confirm", "key": name}
        events.append(TrialStarted(trial_id=name, seed=seed, fold=fold, **facts))
        is_cached = name in cached
        best = {"val_macro_f1": 1.0}
        ended = TrialEnded(trial_id=name, status="COMPLETE", metrics=best, cached=is_cached)
        events.append(ended)
    events.append(StageEnded(stage="catalog", outcome="CACHED"))
    events.append(StageEnded(stage="confirm", outcome="SUCCEEDED"))
    lines = [json.dumps(event.stamped(n, 0.0).to_json()) for n, event in enumerate(events)]
    run.events.write_text("\n".join(lines) + "\n")
    job = contest.jobs_of(table)[0]
    record = contest.Record(table, label, job.changes, run.run_id, 60.0, 90.0, 2**30)
    with (store / "contest.jsonl").open("a") as stream:
        stream.write(json.dumps(asdict(record)) + "\n")
    return run


def claim(text, difference, verdict, **facts):
    bounds = {"low": difference - 0.01, "high": difference + 0.01, "standard_error": 0.006}
    return {
        "claim": text,
        "metric": "macro_f1",
        "difference": difference,
        **bounds,
        "verdict": verdict,
        "n_groups": 555,
        "n_seeds": 2,
        **facts,
    }


@pytest.fixture
def results(tmp_path):
    def write():
        contest_results.write_results(tmp_path, tmp_path / "RESULTS.md")
        return (tmp_path / "RESULTS.md").read_text()

    return write


def test_results_set_ours_beside_the_published_figures(results, tmp_path):
    needs = {"n_groups": 900, "n_seeds": None, "both": None}
    claims = [
        claim("B > A", 0.05, "supported"),
        claim("C > A", 0.02, "undecided", needs=needs),
        claim("A+C > A", -0.01, "undecided", needs=needs),
    ]
    plant_run(tmp_path, "heads", claims=claims)
    text = results()
    row = (
        "| heads | `B > A` | +0.001 / -0.011 | +0.050 (+0.040 to +0.060) | 555, 2 x 3 | supported |"
    )
    assert f"{row} differs |" in text
    assert "| undecided | agrees |" in text
    assert "`B > A`: other sign than published: 4 epochs" in text
    assert "`C > A`: if the difference is real, 900 groups in total would decide it" in text
    assert "a difference of 0.015 is seen in 80 %" in text
    assert "| mixup | `offline > none` | +0.013 / +0.034 | not run |" in text
    assert "`make contest ONLY=mixup`" in text


def test_results_count_what_the_store_had(results, tmp_path):
    plant_run(tmp_path, "heads", cached=("random-s0f0", "random-s1f2"))
    assert "| `make contest ONLY=heads` | 1 | 60 | 90 | 1024 | 6, 2 | 2, 1 |" in results()


def test_a_run_whose_folder_is_gone_is_not_finished(tmp_path):
    job = contest.jobs_of("heads")[0]
    run = plant_run(tmp_path, "heads")
    assert contest.is_finished(job, contest.read_records(tmp_path))
    run.summary.unlink()
    assert not contest.is_finished(job, contest.read_records(tmp_path))


def test_the_gap_is_that_of_checkpoints_on_test_people(results, tmp_path):
    run = plant_run(tmp_path, "splits")
    rows = []
    for seed, fold in itertools.product((0, 1), (0, 1, 2)):
        facts = {"trial_id": f"random-s{seed}f{fold}", "seed": seed, "fold": fold}
        for number in range(4):
            for split in ("oof", "test"):
                wrong = number == 0 and split == "test"
                target = number % 2
                rows.append(
                    {
                        **facts,
                        "setting": "a",
                        "variant": "random",
                        "sample_id": f"{split}/{number}",
                        "split": split,
                        "target": target if split == "oof" else None,
                        "pred": 1 - target if wrong else target,
                        "probs": [0.5, 0.5],
                    }
                )
    tables.write(tables.from_rows(rows, tables.PREDICTIONS), run.predictions)
    labels = [{"sample_id": f"test/{n}", "label": n % 2, "part": "whole"} for n in range(4)]
    tables.write(tables.from_rows(labels, tables.TEST_LABELS), run.test_labels)
    test = (2 / 3 + 4 / 5) / 2  # macro F1 of 3 of 4
    gap = f"{1 - test:+.3f} ({1 - test:+.3f} to {1 - test:+.3f})"
    assert f"| random | 1.000 | 1.000 | {test:.3f} | {gap} | {gap} | 2 x 3 |" in results()


@pytest.mark.parametrize("table", ["heads", contest.HEADLINE])
def test_the_headline_sets_the_ensemble_beside_model_a_on_the_test_people(results, tmp_path, table):
    truth = np.arange(60) % 3
    answers = {"": truth.copy(), "A": truth.copy(), "mean": truth}
    answers[""][:3] = 17
    answers["A"][:30] = 17
    for label, preds in answers.items():
        run = plant_run(tmp_path, table, label)
        ids = [f"test/{n:02}" for n in range(60)]
        base = {"votes": 1, "tie": False, "outcome": "voted"}
        rows = []
        for sample, pred in zip(ids, preds.tolist(), strict=True):
            rows.append(
                {**base, "sample_id": sample, "ImageID": sample, "pred": pred, "pred_a": pred}
            )
        tables.write(tables.from_rows(rows, tables.votes_schema(["a"])), run.votes)
        labels = [
            {"sample_id": i, "label": n, "part": "whole"}
            for i, n in zip(ids, truth.tolist(), strict=True)
        ]
        tables.write(tables.from_rows(labels, tables.TEST_LABELS), run.test_labels)
        groups = pa.table({"sample_id": ids, "group": pa.nulls(60, pa.string())})
        tables.write(groups, run.catalog)
        shutil.copyfile(contest.FOLDER.parent / "smoke.yaml", run.resolved)
        candidate = {"setting": "a", "variant": "B", "chosen": True}
        selection = {"policy": "robust", "members": ["a"], "candidates": [candidate]}
        run.selection.write_text(json.dumps(selection))
        inside = {"test_is_inside_the_interval": label != "mean"}
        run.certificate.write_text(json.dumps({"gap": inside}))
    text = results()
    best = macro_f1(truth, answers[""], 18)
    assert f"| its best member, B | {best:.3f} |" in text
    assert f"| robust ensemble of 1 settings | {best:.3f} (" in text
    assert (
        f"| model A alone, plain, centre crop | {macro_f1(truth, answers['A'], 18):.3f} (" in text
    )
    assert "| ensemble - model A | +0." in text
    assert "by the mean over a person's photos, which the contest did not name | 1.000 (" in text
    told = "The test score lies inside the interval of what was expected of it, that with the mean outside."
    assert told in " ".join(text.split())
    assert "The ensemble is of 2 seeds x 3 folds" in text
    assert 1 == text.count("Not run: `make contest ONLY=head")


def test_policies_are_compared_on_the_private_half_set_by_set(results, tmp_path):
    scores = {"robust": (0.7, 0.72), "leaderboard": (0.6, 0.66), "diverse": (0.7, 0.7)}
    for policy, draw in itertools.product(contest.POLICIES, (0, 1)):
        run = plant_run(tmp_path, "ensembles", f"{policy}-{draw}")
        value = scores.get(policy, (0.7, 0.72))[draw]
        vote = {"public_macro_f1": 0.8, "private_macro_f1": value, "private_accuracy": 0.9}
        member = {**vote, "who": "a", "private_macro_f1": 0.5}
        board = [{**vote, "who": "ensemble"}, member]
        run.selection.write_text(json.dumps({"ensemble": {"board": board}}))
    text = results()
    assert "| robust | 0.800 | 0.710 | 0.900 |  |  |" in text
    mean = contest_results.mean_of([0.1, 0.06])
    assert mean.mean == pytest.approx(0.08)
    assert f"| leaderboard | 0.800 | 0.630 | 0.900 | {mean} |" in text


def test_a_record_names_the_run_of_its_own_submit(tmp_path):
    log = tmp_path / "headline.log"
    log.write_text(
        "run study-1111  in /s/runs/study-1111\n"
        "report: /s/runs/study-1111/report/index.html\n"
        "audit: something\n"
    )
    (tmp_path / "runs/other-2222").mkdir(parents=True)  # a later run of somebody else
    assert "study-1111" == contest._run_of(log)
