"""A finished run of two members with random weights, for tests of ensembles and of the interface."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from orchestrator.store import tables
from orchestrator.store.artifacts import Store
from orchestrator.store.run_dir import RunPaths

ROOT = Path(__file__).resolve().parents[3]
SIZES = {"mask": 3, "gender": 2, "age": 3}


def write_ensemble_run(root):
    """Write a run of two members, a checkpoint of each of two folds, and 100 photos; return all three."""
    import torch

    from trainers.checkpoint import save_weights
    from trainers.model import build
    from trainers.settings.model import Model

    store, paths = Store(root / "store"), RunPaths(root / "store/runs/made-00000000")
    paths.root.mkdir(parents=True)
    paths.resolved.write_text((ROOT / "experiments/smoke.yaml").read_text())
    trials = []
    for number, setting in enumerate(("aaaa0000", "bbbb0000")):
        for fold in range(2):
            torch.manual_seed(10 * number + fold)
            model = {
                "backbone": "test_efficientnet",
                "pretrained": False,
                "head": {"name": "single"},
            }
            weights = build(Model.model_validate(model), SIZES, pretrained=False).state_dict()
            with store.draft("trial", f"{setting}{fold}", params={}, inputs={}) as draft:
                save_weights(
                    draft.path,
                    weights,
                    {
                        "model": model,
                        "label_sizes": SIZES,
                        "size": 32,
                        "precision": "fp32",
                        "n_params": 1,
                    },
                )
            trials.append({"trial_id": f"c-{setting}-f{fold}", "setting": setting, "variant": "ab"[number], "phase": "confirm", "seed": 0,
                           "fold": fold, "status": "COMPLETE", "params": "{}", "checkpoint": f"trial/{setting}{fold}"})  # fmt: skip
    tables.write(tables.from_rows(trials, tables.trials_schema(SIZES)), paths.trials)
    tables.write(pa.table({"label": pa.array([3, 3, 4, None], pa.int64())}), paths.catalog)
    selection = {"members": ["bbbb0000", "aaaa0000"], "weights": [1, 1], "vote": {"rule": "hard"}}
    paths.selection.write_text(json.dumps(selection))
    (root / "photos/sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for at in range(99):
        pixels = rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "photos" / ("sub" if at % 2 else ".") / f"{at:03}.png")
    (root / "photos/broken.jpg").write_text("not a photo")
    return paths, store, root / "photos"
