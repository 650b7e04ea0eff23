"""The split stage: every labelled sample gets its role, and per confirm seed its fold."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.base.keys import digest
from orchestrator.planning.run_environment import Env, Scope
from orchestrator.planning.stage import CACHED, SUCCEEDED, Found
from orchestrator.planning.stage_keys import split_key
from orchestrator.stages.catalog import Catalog
from orchestrator.store.artifacts import Artifact

if TYPE_CHECKING:
    import pyarrow as pa

_ROLES = ("train", "val", "test", "excluded", "partial")


@dataclass(frozen=True)
class Split:
    """The roles and folds of every variant."""

    outcome: str
    note: str
    artifacts: Mapping[str, Artifact]  # by variant
    folds: Mapping[str, pa.Table]  # by variant


def find(scope: Scope, catalog: Catalog) -> Found:
    """Find the splits of all variants."""
    keys = {}
    for name, arm in scope.experiment.arms.items():
        keys[name] = split_key(scope.experiment, arm, catalog.content)
    missing = [name for name, key in keys.items() if not scope.store.find("split", key)]
    return Found(
        f"new split for {', '.join(missing)}" if missing else "splits are unchanged",
        is_cached=not missing,
        key=digest(keys),
        artifacts=frozenset(("split", key) for key in keys.values()),
    )


def run(env: Env, catalog: Catalog) -> Split:
    """Give every labelled sample its role and its fold per confirm seed, for every variant.

    Raises:
        DataError: the training part of a fold lacks a class, so that confirm could not learn it.
    """
    import pyarrow as pa  # noqa: PLC0415

    from data_prep.split import inner_part, rows_of_seed  # noqa: PLC0415
    from orchestrator.store import tables  # noqa: PLC0415

    confirm = env.experiment.spec.confirm
    deals = itertools.product(confirm.seeds, range(confirm.folds)) if confirm else ()
    seeds_and_folds = list(deals)
    outcome = CACHED
    artifacts: dict[str, Artifact] = {}
    folds: dict[str, pa.Table] = {}
    known: dict[str, pa.Table] = {}
    for name, arm in env.experiment.arms.items():
        key = split_key(env.experiment, arm, catalog.content)
        artifact = env.store.find("split", key)
        if artifact is None:
            outcome = SUCCEEDED
            artifact = _assign(env, catalog, name, key)
        if key not in known:
            known[key] = tables.read(artifact.file("folds.parquet"))
            for seed, fold in seeds_and_folds:
                inner_part(rows_of_seed(known[key], seed), fold, arm.data.split, env.schema)
        artifacts[name] = artifact
        folds[name] = known[key]
    written = []
    for name, table in folds.items():
        variant = pa.array([name] * len(table), pa.string())
        written.append(table.add_column(0, "variant", variant))
    tables.write(pa.concat_tables(written), env.paths.folds)
    n_samples = next(iter(artifacts.values())).result
    counts = [f"{n_samples[role]} {role}" for role in _ROLES if n_samples.get(role)]
    return Split(outcome, ", ".join(counts), artifacts, folds)


def _assign(env: Env, catalog: Catalog, variant: str, key: str) -> Artifact:
    from data_prep.split import assign, rows_of_seed  # noqa: PLC0415
    from orchestrator.store import tables  # noqa: PLC0415

    data = env.experiment.arms[variant].data
    confirm = env.experiment.spec.confirm
    table = assign(
        catalog.table,
        env.schema,
        data.split,
        data.exclude,
        confirm.folds if confirm else None,
        confirm.seeds if confirm else (),
    )
    inputs = {"catalog": catalog.artifact.key}
    with env.store.draft("split", key, params={}, inputs=inputs) as draft:
        tables.write(table, draft.path / "folds.parquet")
        draft.result |= dict(Counter(rows_of_seed(table)["role"].to_pylist()))
    return env.store.get("split", key)
