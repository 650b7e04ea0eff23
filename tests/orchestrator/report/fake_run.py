"""Writes a made-up run folder that looks like a real one, for the tests of its readers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from ruamel.yaml import YAML

from data_prep.catalog.label_schema import Schema
from orchestrator.base.stage_versions import STAGE_NAMES
from orchestrator.store import tables

SCHEMA = Schema(
    {
        "mask": ["wear", "incorrect", "not_wear"],
        "gender": ["male", "female"],
        "age": ["<30", "30-59", ">=60"],
    }
)
LABELS = {
    "mask": {
        "from": "stem",
        "classes": {"wear": "mask*", "incorrect": "incorrect_mask", "not_wear": "normal"},
    },
    "gender": {"from": "column", "column": "gender", "classes": ["male", "female"]},
    "age": {"from": "column", "column": "age", "bins": [30, 60]},
}
HOSTILE = 'train/<script>alert("x")</script>/\u202e\n"&\'.jpg'
VARIANTS = ("single", "shallow", "half-cutmix")
SETTINGS = ("a1b2c3d4", "0badcafe", "deadbeef", "12345678", "feedf00d")


def write_run(root: Path, *, seed: int = 0, n_people: int = 48, test_labels: bool = True) -> Path:
    """Write every file of a finished run under `root` and return it."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    photos, test = _people(rng, n_people, "train"), _people(rng, n_people // 3, "test")
    _write(root, "folds.parquet", _folds(rng, photos, test))
    trials = _trials(rng)
    schema = tables.trials_schema(SCHEMA.names)
    tables.write(tables.from_rows(trials, schema), root / "trials.parquet")
    _write(root, "curves.parquet", _curves(rng, trials))
    predictions = [
        row
        for rank, setting in enumerate(SETTINGS)
        for row in _oof(rng, photos, setting, VARIANTS[rank % 3], rank)
    ]
    tables.write(
        pa.Table.from_pylist(predictions, tables.PREDICTIONS), root / "predictions.parquet"
    )
    members = list(SETTINGS[:3])
    votes = _votes(rng, test, members)
    tables.write(tables.from_rows(votes, tables.votes_schema(members)), root / "votes.parquet")
    if test_labels:
        rows = [{"sample_id": photo["sample_id"], "label": photo["label"]} for photo in test]
        tables.write(pa.Table.from_pylist(rows, tables.TEST_LABELS), root / "test_labels.parquet")
    _write_json(
        root,
        "selection.json",
        _selection(predictions, members, n_people, (test, votes) if test_labels else None),
    )
    _write_json(root, "hypotheses.json", _hypotheses(n_people))
    _write_json(root, "audit.json", _audit(photos, test))
    _write_json(root, "plan.json", {"run_id": root.name, "stages": []})
    counts = {"complete": 50, "pruned": 5, "failed": 1}
    _write_json(
        root,
        "summary.json",
        {
            "run_id": root.name, "state": "SUCCEEDED", "stages": dict.fromkeys(STAGE_NAMES, "SUCCEEDED"), "trials": counts,
            "quarantined": 2, "best": {"trial_id": "search-a1b2c3d4", "val_macro_f1": 0.61}, "members": members, "wall_s": 754.2,
        },
    )  # fmt: skip
    with (root / "resolved.yaml").open("w", encoding="utf-8") as handle:
        YAML().dump(_resolved(), handle)
    _write_events(root, trials)
    return root


def _write(root: Path, name: str, rows: list[dict]) -> None:
    tables.write(pa.Table.from_pylist(rows), root / name)


def _write_json(root: Path, name: str, value: object) -> None:
    (root / name).write_text(json.dumps(value), encoding="utf-8")


def _people(rng: np.random.Generator, n: int, side: str) -> list[dict]:
    photos = []
    for person in range(n):
        gender, age = int(rng.integers(2)), int(rng.choice(3, p=[0.5, 0.35, 0.15]))
        for stem, mask in (
            *((f"mask{i}", 0) for i in range(1, 6)),
            ("incorrect_mask", 1),
            ("normal", 2),
        ):
            label = SCHEMA.encode((mask, gender, age))
            photos.append(
                {
                    "sample_id": f"{side}/{person:06d}/{stem}.jpg",
                    "group": f"{person:06d}",
                    "label": label,
                }
            )
    if side == "train":
        photos[0]["sample_id"] = HOSTILE
    return photos


def _folds(rng: np.random.Generator, photos: list[dict], test: list[dict]) -> list[dict]:
    rows = []
    for variant in VARIANTS:
        for photo in photos:
            person = int(photo["group"])
            role = "val" if person % 5 == 0 else "train"
            if variant == "half-cutmix" and person % 7 == 1:
                role = "excluded"
            fold = person % 3
            rows.append({"variant": variant, "seed": 0, **photo, "role": role, "fold": fold})
        rows += [
            {
                "variant": variant,
                "seed": 0,
                **photo,
                "label": None,
                "group": None,
                "role": "test",
                "fold": None,
            }
            for photo in test
        ]
    return rows


def _trials(rng: np.random.Generator) -> list[dict]:
    rows = []
    for index in range(38):
        variant = VARIANTS[index % 3]
        setting = SETTINGS[index] if index < len(SETTINGS) else f"{rng.integers(2**32):08x}"
        head = str(rng.choice(["single", "shallow", "deep"]))
        params = {"train.optimizer.lr": float(10 ** rng.uniform(-5, -2)), "train.model.head.name": head,
                  "train.augment.policy": str(rng.choice(["basic", "strong"]))}  # fmt: skip
        if head == "deep":
            params["train.model.head.hidden"] = int(2 ** rng.uniform(7, 10))
        status = "FAILED" if index == 37 else "PRUNED" if index % 8 == 7 else "COMPLETE"
        score = (
            0.62
            - 0.08 * (np.log10(params["train.optimizer.lr"]) + 3.5) ** 2
            - 0.05 * (head == "single")
            + rng.normal(0, 0.02)
        )
        rows.append(_trial(rng, max(float(score), 0.03), params, trial_id=f"search-{setting}", setting=setting, variant=variant,
                           phase="search", seed=42, fold=None, status=status))  # fmt: skip
    for rank, setting in enumerate(SETTINGS):
        for seed in (0, 1):
            for fold in range(3):
                trial_id, score = (
                    f"confirm-{setting}-s{seed}-f{fold}",
                    0.6 - 0.02 * rank + float(rng.normal(0, 0.02)),
                )
                rows.append(_trial(rng, score, {}, trial_id=trial_id, setting=setting, variant=VARIANTS[rank % 3], phase="confirm",
                                   seed=seed, fold=fold, status="COMPLETE"))  # fmt: skip
    return rows


def _trial(rng, score, params, **facts) -> dict:
    status, trial_id = facts["status"], facts["trial_id"]
    failed = status == "FAILED"
    return {
        **facts,
        **({} if failed else {"start_s": 1.0, "data_s": 3.0, "steps_s": 5.0, "evaluation_s": 0.5, "end_s": 0.5}),
        "params": json.dumps(params), "epochs": 3 if status == "PRUNED" else 1 if failed else 10, "wall_s": float(rng.uniform(5, 30)),
        "val_accuracy": None if failed else score + 0.1, "val_macro_f1": None if failed else score,
        "val_loss": None if failed else 2.2 - 2 * score,
        "checkpoint": f"trial/{trial_id}" if status == "COMPLETE" else None,
        "error": "Traceback (most recent call last):\nNonFiniteLoss: step 12: loss is nan <b>at</b> lr 0.01" if failed else None,
        **{f"val_macro_f1_{name}": None if failed else min(0.99, score + extra)
           for name, extra in zip(SCHEMA.names, (0.3, 0.25, 0.05), strict=True)},
    }  # fmt: skip


def _curves(rng: np.random.Generator, trials: list[dict]) -> list[dict]:
    rows = []
    for trial in trials:
        if trial["val_macro_f1"] is None:
            continue
        for epoch in range(1, trial["epochs"] + 1):
            share = 1 - np.exp(-epoch / 2.5)
            rows.append({"trial_id": trial["trial_id"], "epoch": epoch, "train_loss": float(2.9 - 2.4 * share), "lr": 1e-3,
                         "val_loss": float(2.9 - 1.9 * share), "val_macro_f1": float(trial["val_macro_f1"] * share + rng.normal(0, 0.012))})  # fmt: skip
    return rows


def _oof(
    rng: np.random.Generator, photos: list[dict], setting: str, variant: str, rank: int
) -> list[dict]:
    rows = []
    for seed in (0, 1):
        shared = np.random.default_rng(seed)  # a hard photo is hard for every member
        for photo in photos:
            codes = list(SCHEMA.decode(photo["label"]))
            hard, other = shared.random(3), shared.integers(SCHEMA.sizes)
            for position, miss in enumerate((0.07, 0.12, 0.33 + 0.02 * rank)):
                if 0.7 * hard[position] + 0.3 * rng.random() < miss:
                    codes[position] = int(other[position])
            probs = rng.dirichlet(np.full(SCHEMA.n_classes, 0.3)) * 0.5
            probs[SCHEMA.encode(codes)] += 0.5
            fold = int(photo["group"]) % 3
            rows.append({"trial_id": f"confirm-{setting}-s{seed}-f{fold}", "setting": setting, "variant": variant, "seed": seed,
                         "fold": fold, "sample_id": photo["sample_id"], "split": "oof", "target": photo["label"],
                         "pred": int(probs.argmax()), "probs": probs.astype(np.float32).tolist()})  # fmt: skip
    return rows


def _votes(rng: np.random.Generator, test: list[dict], members: list[str]) -> list[dict]:
    rows = []
    for photo in test:
        preds = [
            photo["label"] if rng.random() < 0.62 else int(rng.integers(SCHEMA.n_classes))
            for _ in members
        ]
        pred = max(sorted(set(preds)), key=preds.count)
        tie = preds.count(pred) == 1
        rows.append({"sample_id": photo["sample_id"], "ImageID": photo["sample_id"][5:], "pred": pred, "votes": preds.count(pred),
                     "tie": tie, "outcome": "tie" if tie else "voted",
                     **{f"pred_{member}": one for member, one in zip(members, preds, strict=True)}})  # fmt: skip
    rows[-1] |= {
        "votes": 0,
        "tie": False,
        "outcome": "quarantined: truncated",
        **{f"pred_{member}": None for member in members},
    }
    return rows


def reference_vote(predictions: list[dict], members: list[str]) -> dict[str, int]:
    """Vote on out-of-fold rows the slow and plain way: sample_id -> class."""
    probs: dict[tuple[str, str], list] = {}
    for row in predictions:
        probs.setdefault((row["sample_id"], row["setting"]), []).append(row["probs"])
    answers = {}
    for sample in sorted({sample for sample, _ in probs}):
        means = [np.mean(probs[sample, member], axis=0) for member in members]
        picks = [int(mean.argmax()) for mean in means]
        answers[sample] = min(
            set(picks),
            key=lambda c: (-picks.count(c), -sum(mean[c] for mean in means), picks.index(c)),
        )
    return answers


def without_val(rows: list[dict]) -> list[dict]:
    """Leave out the people of role val, every fifth: their labels chose the settings."""
    return [
        row
        for row in rows
        if row["sample_id"] != HOSTILE and int(row["sample_id"].split("/")[1]) % 5
    ]


def reference_macro_f1(targets: list[int], preds: list[int]) -> float:
    """Average F1 over the classes that are present in the targets."""
    scores = []
    for one in sorted(set(targets)):
        hits = sum(t == p == one for t, p in zip(targets, preds, strict=True))
        scores.append(2 * hits / (targets.count(one) + preds.count(one)))
    return sum(scores) / len(scores)


def _selection(
    predictions: list[dict],
    members: list[str],
    n_people: int,
    test: tuple[list[dict], list[dict]] | None,
) -> dict:
    candidates = []
    for rank, setting in enumerate(SETTINGS):
        estimate, chosen = 0.74 - 0.025 * rank, setting in members
        candidates.append({
            "setting": setting, "variant": VARIANTS[rank % 3], "rank": rank + 1, "chosen": chosen, "oof_macro_f1": estimate,
            "low": estimate - 0.035, "high": estimate + 0.033, "worst_class_recall": 0.2 - 0.03 * rank,
            "total_variation": 0.04 + 0.01 * rank, "n_params": 3_400_000 + 1000 * rank, "search_score": 0.79 - 0.01 * rank,
            "reason": f"rank {rank + 1} by the lower end of the interval" if chosen else f"its lower end {estimate - 0.035:.2f} is below the third's",
        })  # fmt: skip
    rest = {"level": 0.9, "too_narrow": False, "n_groups": n_people, "n_samples": n_people * 7}
    predictions = without_val(predictions)
    targets = {row["sample_id"]: row["target"] for row in predictions}
    voted = reference_vote(predictions, members)
    estimate = reference_macro_f1([targets[sample] for sample in voted], list(voted.values()))
    oof = {"macro_f1": {"estimate": estimate, "low": estimate - 0.031, "high": estimate + 0.034, **rest},
           "accuracy": {"estimate": 0.71, "low": 0.68, "high": 0.74, **rest},
           "macro_f1_mask": 0.93, "macro_f1_gender": 0.91, "macro_f1_age": 0.63}  # fmt: skip
    scores = None
    if test is not None:
        labels = {photo["sample_id"]: photo["label"] for photo in test[0]}
        estimate = reference_macro_f1(
            [labels[row["sample_id"]] for row in test[1]], [row["pred"] for row in test[1]]
        )
        score = {
            "estimate": estimate,
            "low": estimate - 0.06,
            "high": estimate + 0.05,
            **rest,
            "too_narrow": True,
            "n_samples": len(labels),
        }
        scores = {"macro_f1": score, "accuracy": {**score, "estimate": 0.7012}, "macro_f1_age": 0.6}
    return {"policy": "robust", "rule": "lower end of the 90 % interval", "level": 0.9, "members": members, "candidates": candidates,
            "short_of": None, "vote": {"rule": "hard", "tie": "highest summed probability"}, "ensemble": {"oof": oof, "test": scores}}  # fmt: skip


def _hypotheses(n_people: int) -> list[dict]:
    shared = {"metric": "macro_f1", "n_groups": n_people}
    return [
        {
            **shared,
            "claim": "half-cutmix > single",
            "difference": 0.042,
            "low": 0.012,
            "high": 0.071,
            "p_value": 0.021,
            "p_adjusted": 0.063,
            "verdict": "supported",
        },
        {
            **shared,
            "claim": "shallow > single",
            "difference": 0.004,
            "low": -0.021,
            "high": 0.03,
            "p_value": 0.81,
            "p_adjusted": 0.81,
            "verdict": "undecided",
        },
        {
            **shared,
            "claim": "shallow > half-cutmix",
            "difference": -0.038,
            "low": -0.066,
            "high": -0.01,
            "p_value": 0.03,
            "p_adjusted": 0.063,
            "verdict": "refuted",
        },
    ]


def _audit(photos: list[dict], test: list[dict]) -> dict:
    quarantined = [
        {"sample_id": HOSTILE, "reason": "truncated"},
        {"sample_id": "test/x.jpg", "reason": "not a JPEG, PNG or WebP photo"},
    ]
    none = {"n": 0, "examples": []}
    return {
        "n_photos": len(photos) + len(test), "n_usable": len(photos) + len(test) - 2, "n_test": len(test), "n_groups": len(photos) // 7,
        "counts": {}, "quarantined": quarantined, "n_quarantined": 2, "leak": dict.fromkeys(VARIANTS, 0.0),
        "duplicates": {"train_and_test": none, "across_groups": {"n": 1, "examples": [[HOSTILE, "train/000003/normal.jpg"]]},
                       "within_group": none, "label_conflicts": none},
        "warnings": [
            {"what": "equal photos stand in different groups", "n": 1, "examples": [[HOSTILE, "train/000003/normal.jpg"]],
             "do": "give them one group, or a validation score leaks"},
            {"what": "photos cannot be read and are left out", "n": 2, "examples": [f"{HOSTILE}: truncated"], "do": "replace or remove them"},
        ],
    }  # fmt: skip


def _resolved() -> dict:
    space = {"train.optimizer.lr": {"float": [1e-5, 1e-2], "log": True}, "train.model.head.name": {"choice": ["single", "shallow", "deep"]},
             "train.augment.policy": {"choice": ["basic", "strong"]},
             "train.model.head.hidden": {"int": [128, 1024], "log": True, "when": {"train.model.head.name": "deep"}}}  # fmt: skip
    return {"version": 1, "name": "masks", "seed": 42, "data": {"labels": LABELS, "group": "id"}, "variants": {name: {} for name in VARIANTS},
            "search": {"trials": 13, "sampler": {"name": "tpe"}, "space": space}, "confirm": {"finalists": 5, "seeds": [0, 1], "folds": 3},
            "select": {"policy": "robust", "members": 3}, "vote": {"rule": "hard"}}  # fmt: skip


def _write_events(root: Path, trials: list[dict]) -> None:
    began = 1_790_000_000.0
    facts = {"run_id": root.name, "key": "0" * 64, "git_commit": "0123456789abcdef", "overrides": {"seed": 42},
             "packages": {"torch": "2.14.1", "ray": "2.60.0"}, "labels": SCHEMA.classes}  # fmt: skip
    events = [{"event": "run_started", "time": began, **facts}]
    for number, name in enumerate(STAGE_NAMES):
        events.append(
            {
                "event": "stage",
                "time": began + 60.0 * number,
                "stage": name,
                "outcome": "SUCCEEDED",
                "wall_s": 61.5,
                "note": f"{name} <ok>",
            }
        )
    for trial in trials:
        facts = {
            key: trial[key] for key in ("trial_id", "variant", "setting", "phase", "seed", "fold")
        }
        end = {key: trial[key] for key in ("trial_id", "status", "epochs", "wall_s", "error")}
        metrics = None if trial["val_macro_f1"] is None else {"val_macro_f1": trial["val_macro_f1"]}
        events.append(
            {"event": "trial_started", "time": began + 300.0, **facts, "key": "k", "params": {}}
        )
        if metrics:
            events.append(
                {
                    "event": "report",
                    "time": began + 310.0,
                    "trial_id": trial["trial_id"],
                    "epoch": 1,
                    "metrics": metrics,
                }
            )
        events.append({"event": "trial_ended", "time": began + 320.0, **end, "metrics": metrics})
    events.append({"event": "run_ended", "time": began + 754.2, "state": "SUCCEEDED"})
    (root / "events.jsonl").write_text(
        "".join(json.dumps(event) + "\n" for event in events), encoding="utf-8"
    )
