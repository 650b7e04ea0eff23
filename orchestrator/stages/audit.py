"""The audit stage: what makes scores lie."""

from __future__ import annotations

from data_prep.files import write_json
from orchestrator.stages.context import Context, Done, copy_file
from orchestrator.store import tables


def audit(context: Context, *, probe: bool = False) -> Done:
    """Look for what makes scores lie: leaks, copies, corrupt files, shortcuts.

    Where a split leaves groups on both sides, a quick model measures what that is worth; `probe` asks such a model
    about every label.
    """
    from data_prep.audit.examination import audit as examine  # noqa: PLC0415
    from orchestrator.stages.quick_model import leak_gaps, probe_labels  # noqa: PLC0415

    content, arms = context.require_catalog().result["content"], context.experiment.arms
    key = context.keys.audit(content, probe=probe)
    found = context.store.find("audit", key)
    if found is None:
        folds = {
            name: tables.read(artifact.file("folds.parquet"))
            for name, artifact in context.folds.items()
        }
        with context.store.draft(
            "audit", key, params={}, inputs={"catalog": context.require_catalog().key}
        ) as draft:
            facts = examine(
                context.catalog_table(),
                folds,
                context.schema,
                labels=context.experiment.spec.data.labels,
                exclude={name: arm.data.exclude for name, arm in arms.items()},
                gaps=leak_gaps(context, folds),
                probe=probe_labels(context) if probe else None,
            )
            write_json(draft.path / "audit.json", facts.to_json())
            draft.result["n_warnings"] = len(facts.warnings)
    artifact = found or context.store.get("audit", key)
    copy_file(artifact.file("audit.json"), context.paths.audit)
    n_warnings = artifact.result["n_warnings"]
    return Done(
        "CACHED" if found else "SUCCEEDED",
        f"{n_warnings} warning(s), see audit.json" if n_warnings else "",
    )
