"""The data checks alone: catalog, split and audit, with a page of their own and no training."""

from __future__ import annotations

from data_prep.catalog.label_schema import Schema
from data_prep.errors import DataError, MachineError
from orchestrator.base.console import Reporter
from orchestrator.base.errors import UserError
from orchestrator.planning.plan import make_plan
from orchestrator.planning.run_environment import Env
from orchestrator.spec.models import Experiment
from orchestrator.stages import STAGES, audit, catalog, split
from orchestrator.store.artifacts import Store, git_commit
from orchestrator.store.event_types import RunEnded, RunStarted
from orchestrator.store.ledger import Ledger, LedgerLocked
from orchestrator.store.run_dir import RunPaths
from orchestrator.store.run_files.audit import AuditFacts
from orchestrator.store.run_files.records import as_record


def run(
    experiment: Experiment, store: Store, *, probe: bool, address: str | None, insecure: bool
) -> RunPaths:
    """Audit the data of a spec, and leave its files in `<store>/audits/<run id>`.

    These are catalog.parquet, folds.parquet, audit.json and index.html. Photos that were read
    before are not read again.

    Raises:
        UserError: the data cannot be used, or another process audits them.
    """
    from orchestrator.cluster.connection import connect  # noqa: PLC0415
    from orchestrator.report.page import build_audit  # noqa: PLC0415

    reporter = Reporter()
    plan = make_plan(experiment, store, STAGES)
    paths = RunPaths(store.root / "audits" / plan.run_id)
    paths.root.mkdir(parents=True, exist_ok=True)
    try:
        with (
            store.driving(paths.root) as on_commit,
            Ledger(paths.root) as ledger,
            connect(address, insecure=insecure, dashboard=False) as cluster,
        ):
            ledger.on_commit = on_commit
            classes = Schema.of(experiment.spec.data.labels).classes
            labels = {name: list(names) for name, names in classes.items()}
            event = RunStarted(run_id=plan.run_id, git_commit=git_commit(), labels=labels)
            ledger.append(event, commit=True)
            env = Env(
                experiment,
                plan.files,
                store,
                paths,
                ledger,
                reporter,
                cpus=cluster.resources.get("CPU", 0.0),
                gpus=cluster.resources.get("GPU", 0.0),
            )
            photos = catalog.run(env)
            reporter.outcome("catalog", photos.outcome, photos.note)
            folds = split.run(env, photos)
            reporter.outcome("split", folds.outcome, folds.note)
            audited = audit.run(env, photos, folds, probe=probe)
            reporter.outcome("audit", audited.outcome, audited.note)
            ledger.append(RunEnded(state="SUCCEEDED"), commit=True)
            build_audit(paths.root)
    except (DataError, MachineError) as error:
        raise UserError(str(error)) from None
    except LedgerLocked:
        raise UserError(f"{paths.root}: another process audits these data; wait for it") from None
    return paths


def lines(paths: RunPaths) -> list[str]:
    """Return an audit's findings as text, the gravest first."""
    facts = as_record(AuditFacts, paths.read_json("audit"))
    counts = f"{facts.n_photos} photos, {facts.n_usable} usable, {facts.n_groups} groups"
    text = [f"{counts}, {facts.n_test} for the test"]
    for number, finding in enumerate(facts.warnings, 1):
        text += [f"{number}. {finding.what} ({finding.n})", f"   do: {finding.do}"]
    for label, probe in facts.probe.labels.items():
        whole = probe.headline
        text.append(
            f"probe {label}: {facts.score.of_label} {whole.estimate:.3f} ({whole.low:.3f}-{whole.high:.3f}), "
            f"rim alone {probe.rim.estimate:.3f}, chance {probe.chance.estimate:.3f}"
        )
    return text if facts.warnings else [*text, "no warnings"]
