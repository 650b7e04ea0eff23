"""Record full training curves of two spaces on drawn portraits, for `search_vs_stock`.

    python -m tests.benchmarks.record_curves      # about three minutes on one core; writes tests/benchmarks/curves.json

Every setting of a space is trained once to its end, so that a search over it can be played back in no time.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

N_EPOCHS, SIZE, N_PEOPLE = 9, 32, 36
PLACE = Path(__file__).with_name("curves.json")
LRS = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
HEADS = {
    "train.optimizer.lr": {"choice": LRS},
    "train.loss": {"choice": ["focal", "cross_entropy"]},
    "train.model.head.name": {"choice": ["single", "shallow", "deep"]},
    "train.model.head.hidden": {"choice": [16, 64, 256], "when": {"train.model.head.name": "deep"}},
}
AUGMENT = {
    "train.optimizer.lr": {"choice": LRS},
    "train.augment.policy": {"choice": ["none", "basic"]},
    "train.augment.cutmix": {"choice": ["none", "random", "half"]},
}
SPACES = {"recorded heads": HEADS, "recorded augment": AUGMENT}


def photos():
    """Draw portraits; return images, codes (mask, gender, age), and which belong to the last third of the people."""
    from data_prep.sample.portrait_data_set import build

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "drawn"
        build(root, N_PEOPLE, size=(48, 64))
        images, codes, people = [], [], []
        for path in sorted((root / "train/images").glob("*/*.jpg")):
            _, gender, _, age = path.parent.name.split("_")
            mask = 1 if path.stem == "incorrect_mask" else 2 if path.stem == "normal" else 0
            photo = Image.open(path).convert("RGB").crop((0, 8, 48, 56)).resize((SIZE, SIZE))
            images.append(np.asarray(photo))
            codes.append((mask, int(gender == "female"), int(int(age) >= 30) + int(int(age) >= 60)))
            people.append(path.parent.name)
    held = set(sorted(set(people))[::3])
    return np.stack(images), np.array(codes), np.array([name in held for name in people])


def main():
    from orchestrator.spec.search_space import Search, apply, grid
    from trainers.config import Train
    from trainers.data import Task
    from trainers.training_loop import TrainingDiverged, train

    images, codes, held = photos()
    rows = np.arange(len(images))
    sizes = {"mask": 3, "gender": 2, "age": 3}
    task = Task(images, codes, [str(row) for row in rows], sizes, rows[~held], rows[held])
    base = {
        "train": {
            "model": {
                "backbone": "test_efficientnet",
                "pretrained": False,
                "head": {"name": "shallow"},
            },
            "optimizer": {"name": "adam", "lr": 1e-3},
            "schedule": "none",
            "augment": {"policy": "none"},
            "duration": f"{N_EPOCHS} epochs",
        }
    }
    recorded = json.loads(PLACE.read_text()) if PLACE.exists() else {}
    for name, entries in SPACES.items():
        if name in recorded:
            continue
        recorded[name] = {}
        for point in grid(Search.model_validate({"space": entries}).space):
            curve = []
            with tempfile.TemporaryDirectory() as folder:
                try:
                    train(
                        Train.model_validate_json(json.dumps(apply(base, point)["train"])),
                        task,
                        seed=0,
                        report=lambda epoch, metrics, curve=curve: curve.append(
                            round(metrics["val_macro_f1"], 5)
                        ),
                        work_dir=Path(folder),
                        threads=1,
                    )
                except TrainingDiverged as error:
                    print(point, error)  # has no full curve, so it is left out
            if len(curve) == N_EPOCHS:
                recorded[name][json.dumps(point, sort_keys=True)] = curve
        print(name, len(recorded[name]), flush=True)
        PLACE.write_text(json.dumps(recorded, indent=0) + "\n")


if __name__ == "__main__":
    main()
