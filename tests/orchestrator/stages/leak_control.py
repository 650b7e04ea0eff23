"""The leak gap of an audited data set, and its control: one photo of each person, so that nothing can leak.

python -m orchestrator audit SPEC --store STORE         with a variant whose split is random
python -m tests.orchestrator.stages.leak_control STORE RUN_ID
"""

import json
import sys
from pathlib import Path

import numpy as np

from data_prep.audit.examination import people
from data_prep.catalog.label_schema import Schema
from data_prep.config import Split
from orchestrator.stages.audit_models import compress, leak_gap, persons
from orchestrator.stages.quick_features import chosen
from orchestrator.store import tables
from orchestrator.store.ledger import read

N_CHOICES = 10


def told(name, gap):
    return (
        f"{name:<34} random {gap.split:.3f} disjoint {gap.disjoint:.3f} gap {gap.difference:+.3f} "
        f"[{gap.low:+.3f}, {gap.high:+.3f}] n {gap.n_photos} photos, {gap.n_groups} people, {gap.n_seeds} seeds"
    )


def main(store, run_id):
    folder = store / "audits" / run_id
    catalog = tables.read(folder / "catalog.parquet")
    schema = Schema(
        {name: list(found) for name, found in read(folder / "events.jsonl")[0].labels.items()}
    )
    rows = chosen(catalog)
    owners = persons(rows, people(catalog.filter(np.array(catalog["status"].to_pylist()) == "ok")))
    kept = [
        path.parent
        for path in (store / "features").glob("*/manifest.json")
        if json.loads(path.read_text())["params"]["view"] == "whole"
        and len(np.load(path.parent / "features.npy", mmap_mode="r")) == len(rows)
    ]
    x, split = np.load(kept[0] / "features.npy"), Split(strategy="random")
    print(told("all photos", leak_gap(compress(x), rows, owners, schema, split)))
    names = np.array(owners)
    holds = 0
    for choice in range(N_CHOICES):
        rng = np.random.default_rng(choice)
        one = np.sort([rng.choice(np.flatnonzero(names == name)) for name in sorted(set(owners))])
        gap = leak_gap(compress(x[one]), rows.take(one), [owners[at] for at in one], schema, split)
        holds += gap.low <= 0 <= gap.high
        print(told(f"one photo per person, choice {choice}", gap))
    print(f"controls whose interval holds 0: {holds} of {N_CHOICES}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
