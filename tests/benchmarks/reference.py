"""A run's test answers beside the data's own reference: frozen ImageNet features and one logistic regression per label.

    python -m tests.benchmarks.reference DATA RUN [--people BUILD.PY] [--out-of-fold]

DATA is a folder that ../shared/data/build.py wrote (all people, 384x512, seed 0), RUN a finished run folder over it. The
reference: features of tf_efficientnet_lite0 of a central square at 160 px, per label a logistic regression with balanced
classes and C 0.01. With --people, the person of every test photo is found by the names that the build script gives, and
people are resampled; without, photos are, and the interval is too narrow. With --out-of-fold, the reference is also fitted
once per fold of the run, on the people outside of it, and both sides are compared on all people of training: there are
six times as many.
"""

import argparse
import csv
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_prep.split import rows_of_seed
from orchestrator.evaluation.intervals import interval
from orchestrator.evaluation.paired_test import paired_difference
from orchestrator.evaluation.predictions import Predictions
from orchestrator.store import tables
from trainers.inference import as_tensor
from trainers.model import build
from trainers.settings.model import Model

SIZES = (3, 2, 3)
SCALES = {"plain features": None, "standardized features": StandardScaler()}
NAMES = ("normal", "incorrect_mask", *(f"mask{at}" for at in range(1, 6)))


def features(paths):
    model = build(Model(), {"one": 2}).to(memory_format=torch.channels_last).eval()
    found = []
    for start in range(0, len(paths), 64):
        photos = []
        for path in paths[start : start + 64]:
            image = Image.open(path).convert("RGB")
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.crop((left, top, left + side, top + side))
            photos.append(np.asarray(square.resize((160, 160), Image.Resampling.BILINEAR)))
        with torch.no_grad():
            found.append(model.features(as_tensor(np.stack(photos))).numpy())
    return np.concatenate(found)


def train_photos(root):
    """Return paths and joint classes of the training photos."""
    paths, classes = [], []
    for person in csv.DictReader((root / "train.csv").open()):
        age = int(np.digitize(int(person["age"]), [30, 60]))
        for path in sorted((root / "images" / person["path"]).iterdir()):
            mask = {"normal": 2, "incorrect_mask": 1}.get(path.stem, 0)
            paths.append(path)
            classes.append(np.ravel_multi_index((mask, person["gender"] == "female", age), SIZES))
    return paths, np.array(classes, np.int64)


def people_of(script):
    """Return the person of every test photo's name, as the build script names them with seed 0."""
    spec = importlib.util.spec_from_file_location("build", script)
    module = sys.modules["build"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    people = {row["person_id"] for row in csv.DictReader((script.parent / "portraits.csv").open())}
    return {
        f"{module.digest(0, person, name, 'eval')}.jpg": person
        for person in people
        for name in NAMES
    }


def oof(ids, targets, preds, groups):
    return Predictions(ids, targets, preds[None], 18, groups)


def answers_of(x, classes, x_new, scale):
    """Fit one regression per label; return joint classes of new photos, (N,)."""
    answers = []
    for codes in np.unravel_index(classes, SIZES):
        regression = LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000)
        answers.append(
            make_pipeline(scale or "passthrough", regression).fit(x, codes).predict(x_new)
        )
    return np.ravel_multi_index(tuple(answers), SIZES).astype(np.int64)


def compare(what, ours, others):
    sides = {"ours": ours, **others}
    for metric in ("macro_f1", "accuracy"):
        for name, one in sides.items():
            print(
                f"{what}, {name}",
                metric,
                json.dumps(interval(one, metric=metric, seed=0).to_json()),
            )
            if one is not ours:
                found = paired_difference(ours, one, metric=metric).to_json()
                print(f"{what}, ours - {name}", metric, json.dumps(found))


def compare_folds(run, paths, classes, x):
    """Compare on the people of training: the run's out-of-fold answers, and references blind to the same folds."""
    places = {f"train/{path.parent.name}/{path.name}": at for at, path in enumerate(paths)}
    fold_of = {
        row["sample_id"]: row["fold"]
        for row in rows_of_seed(tables.read(run / "folds.parquet")).to_pylist()
    }
    rows = [
        row for row in tables.read(run / "predictions.parquet").to_pylist() if row["split"] == "oof"
    ]
    if len({(row["setting"], row["seed"]) for row in rows}) != 1:
        raise SystemExit("a run with one finalist and one seed was required, found more")
    ids = [row["sample_id"] for row in rows]
    at = np.array([places[name] for name in ids])
    folds, groups = np.array([fold_of[name] for name in ids]), [name.split("/")[1] for name in ids]
    others = {}
    for name, scale in SCALES.items():
        pred = np.empty(len(ids), np.int64)
        for fold in np.unique(folds):
            rest, here = at[folds != fold], folds == fold
            pred[here] = answers_of(x[rest], classes[rest], x[at[here]], scale)
        others[name] = oof(ids, classes[at], pred, groups)
    compare(
        "out of fold",
        oof(ids, classes[at], np.array([row["pred"] for row in rows], np.int64), groups),
        others,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--people", type=Path)
    parser.add_argument("--out-of-fold", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths, classes = train_photos(args.data / "train")
    test = list(csv.DictReader((args.data / "eval/info.csv").open()))
    ids, targets = (
        [row["ImageID"] for row in test],
        np.array([int(row["ans"]) for row in test], np.int64),
    )
    x, x_test = features(paths), features([args.data / "eval/images" / name for name in ids])
    votes = {
        row["ImageID"]: row["pred"] for row in tables.read(args.run / "votes.parquet").to_pylist()
    }
    owners = people_of(args.people) if args.people else None
    groups = [owners[name] for name in ids] if owners else None
    others = {}
    for name, scale in SCALES.items():
        pred = answers_of(x, classes, x_test, scale)
        for label, (found, true) in enumerate(
            zip(*(np.unravel_index(one, SIZES) for one in (pred, targets)), strict=True)
        ):
            print(f"test, {name}, label {label}: accuracy {np.mean(found == true):.3f}")
        others[name] = oof(ids, targets, pred, groups)
    compare(
        "test", oof(ids, targets, np.array([votes[name] for name in ids], np.int64), groups), others
    )
    if args.out_of_fold:
        compare_folds(args.run, paths, classes, x)


if __name__ == "__main__":
    main()
