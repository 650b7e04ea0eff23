"""Plans and states as lines of text."""

from __future__ import annotations

import time
from pathlib import Path

from orchestrator.base.wording import counted
from orchestrator.planning.plan import Plan
from orchestrator.report.command_text.run_status import BestTrial, StatusView
from orchestrator.store.run_dir import all_runs, size_bytes, started_at, state_of


def plan_lines(plan: Plan) -> list[str]:
    """Return what `plan` prints: a line per stage, then trials, photos and notes."""
    lines = [f"run {plan.run_id}", ""]
    lines += [f"  {stage.name:<11} {stage.outcome:<10} {stage.why}" for stage in plan.stages]
    counts = ", ".join(f"{n} {phase}" for phase, n in plan.trials.items())
    cached = f"; {plan.n_cached} of search are cached" if plan.n_cached else ""
    lines += ["", f"trials at most: {counts}{cached}"]
    if plan.n_to_prepare is None:
        lines.append("photos to prepare: known when the catalog has been read")
    else:
        lines.append(
            f"photos to prepare at most: {plan.n_to_prepare} of {plan.n_photos} "
            "(unchanged ones are copied)"
        )
    if plan.training_s is not None:
        lines.append(
            f"training at most: about {plan.training_s / 60:.0f} min of trials one after another; "
            "several at once take less"
        )
    lines += [f"note: {note}" for note in plan.notes]
    return lines


def status_lines(status: StatusView) -> list[str]:
    """Return what `status` prints."""
    lines = [f"run {status['run_id']}  {status['state']}  {status['wall_s']:.0f} s", ""]
    for stage in status["stages"]:
        note = stage["note"] or ""
        lines.append(f"  {stage['stage']:<11} {stage['outcome']:<10} {note}".rstrip())
    if status["pending"]:
        lines.append(f"pending: {status['pending']}")
    if trials := status["trials"]:
        counts = [f"{n} {name.lower()}" for name, n in trials.items()]
        lines += ["", f"trials: {', '.join(counts)}"]
    for trial in status["running"]:
        score = "no report yet"
        if trial["best"] is not None:
            score = f"epoch {trial['epochs']}, best {trial['best']:.4f}"
        lines.append(f"  {trial['trial_id']}  {score}")
    if best := status["best"]:
        lines.append(_best_line(best))
    if status["dashboard"]:
        lines += ["", f"dashboard: {status['dashboard']}"]
    if status["reason"]:
        lines += ["", f"reason: {status['reason']}", f"next: {status['next']}"]
    return lines


def _best_line(best: BestTrial) -> str:
    if "fold_score" in best:
        return (
            f"best setting so far: {best['fold_score']:.3f}, its mean over "
            f"{counted(best['n_folds'], 'fold')} ({best['variant']}, {best['setting']})"
        )
    score = f"{best['val_macro_f1']:.3f} val macro F1"
    if "val_score" in best:
        score = f"val score {best['val_score']:.3f}"
    return f"best so far: {score} ({best['variant']}, {best['trial_id']})"


def run_lines(store: Path) -> list[str]:
    """Return what `runs` prints: id, state, age, wall time and size, the latest first."""
    lines = []
    for run in all_runs(store):
        facts = state_of(run)
        age = _age_text(time.time() - started_at(run))
        wall = f"{facts['wall_s']:.0f} s"
        size = f"{size_bytes(run) / 1e6:.1f} MB"
        line = f"{run.run_id:<40} {facts['state']:<12} {age:>9} ago {wall:>9} {size:>10}"
        if facts["state"] == "RUNNING" and run.pending_text:
            line += f"  pending: {run.pending_text}"
        if facts["state"] == "RUNNING" and run.dashboard_page:
            line += f"  {run.dashboard_page}"
        lines.append(line)
    return lines


def _age_text(seconds: float) -> str:
    """Return a time span in its largest unit: 5 min, 3 h, 12 days."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
