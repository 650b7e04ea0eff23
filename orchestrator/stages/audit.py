"""The audit stage: it looks for what makes scores lie."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass

from data_prep.files import atomic_path, write_json
from orchestrator.planning.run_environment import Env, Scope
from orchestrator.planning.stage import CACHED, SUCCEEDED, Found
from orchestrator.planning.stage_keys import audit_key
from orchestrator.spec.score import Score
from orchestrator.stages.catalog import Catalog
from orchestrator.stages.split import Split
from orchestrator.store.artifacts import Artifact


@dataclass(frozen=True)
class Audit:
    """The audit of a run's data."""

    outcome: str
    note: str


def find(scope: Scope, catalog: Catalog) -> Found:
    """Find the audit of these data and splits. A run also needs the one with a probe."""
    key = audit_key(scope.experiment, catalog.content)
    with_probe = audit_key(scope.experiment, catalog.content, probe=True)
    is_cached = scope.store.find("audit", key) is not None
    return Found(
        "data and splits are unchanged" if is_cached else "data or splits changed",
        is_cached=is_cached,
        key=key,
        artifacts=frozenset({("audit", key), ("audit", with_probe)}),
    )


def run(env: Env, catalog: Catalog, split: Split, *, probe: bool = False) -> Audit:
    """Look for leaks, copies, corrupt files and shortcuts.

    Where a split has groups on both sides, a quick model measures how much that lifts a score.

    Args:
        env: of the run.
        catalog: the photos.
        split: roles and folds of the variants.
        probe: also train a quick model for every label.
    """
    key = audit_key(env.experiment, catalog.content, probe=probe)
    artifact = env.store.find("audit", key)
    outcome = CACHED if artifact else SUCCEEDED
    if artifact is None:
        artifact = _examine(env, catalog, split, key, probe=probe)
    with atomic_path(env.paths.audit) as beside:
        shutil.copyfile(artifact.file("audit.json"), beside)
    n_warnings = artifact.result["n_warnings"]
    return Audit(outcome, f"{n_warnings} warning(s), see audit.json" if n_warnings else "")


def _examine(env: Env, catalog: Catalog, split: Split, key: str, *, probe: bool) -> Artifact:
    from data_prep.audit.examination import audit as examine  # noqa: PLC0415
    from data_prep.audit.fact_types import ScoreWords  # noqa: PLC0415
    from orchestrator.stages.audit_models import leak_gaps, probe_labels  # noqa: PLC0415

    arms = env.experiment.arms
    score = env.experiment.spec.parsed_score
    gaps = leak_gaps(env, catalog.table, split.folds)
    inputs = {"catalog": catalog.artifact.key}
    with env.store.draft("audit", key, params={}, inputs=inputs) as draft:
        facts = examine(
            catalog.table,
            dict(split.folds),
            env.schema,
            labels=env.experiment.spec.data.labels,
            exclude={name: arm.data.exclude for name, arm in arms.items()},
            gaps={name: asdict(gap) for name, gap in gaps.items()},
            probe=probe_labels(env, catalog.table) if probe else None,
            score=ScoreWords(score.text, score.title, Score(score.metric).title),
            file_bytes=_file_bytes(env, catalog),
        )
        write_json(draft.path / "audit.json", facts.to_json())
        draft.result["n_warnings"] = len(facts.warnings)
    return env.store.get("audit", key)


def _file_bytes(env: Env, catalog: Catalog) -> dict[str, int]:
    """Return sample id -> bytes of its file; a file that has gone since has none."""
    from data_prep.catalog.photo_paths import photo_path  # noqa: PLC0415
    from data_prep.roots.places import size_bytes  # noqa: PLC0415

    ids = catalog.table["sample_id"].to_pylist()
    sizes = {}
    for sample, status in zip(ids, catalog.table["status"].to_pylist(), strict=True):
        if status != "ok":  # it may lead out of the data root
            continue
        path = photo_path(env.experiment.spec.data, env.experiment.base, sample)
        with suppress(OSError):
            sizes[sample] = size_bytes(path)
    return sizes
