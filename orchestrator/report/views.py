"""Plans and states as lines of text."""

from __future__ import annotations

from typing import Any

from orchestrator.planning.plan import Plan


def plan_lines(plan: Plan) -> list[str]:
    """Return what `plan` prints: a line per stage, then trials, photos and notes."""
    lines = [f"run {plan.run_id}", ""]
    lines += [f"  {stage.name:<11} {stage.outcome:<10} {stage.why}" for stage in plan.stages]
    counts = ", ".join(f"{n} {phase}" for phase, n in plan.trials.items())
    lines += [
        "",
        f"trials at most: {counts}"
        + (f"; {plan.n_cached} of search are cached" if plan.n_cached else ""),
    ]
    if plan.n_to_prepare is None:
        lines.append("photos to prepare: known when the catalog has been read")
    else:
        lines.append(
            f"photos to prepare at most: {plan.n_to_prepare} of {plan.n_photos} (unchanged ones are copied)"
        )
    if plan.training_s is not None:
        lines.append(
            f"training at most: about {plan.training_s / 60:.0f} min, less by as many trials as run at once"
        )
    lines += [f"note: {note}" for note in plan.notes]
    return lines


def status_lines(view: dict[str, Any]) -> list[str]:
    """Return what `status` prints."""
    lines = [f"run {view['run_id']}  {view['state']}  {view.get('wall_s', 0):.0f} s", ""]
    for stage in view.get("stages", []):
        lines.append(
            f"  {stage['stage']:<11} {stage['outcome']:<10} {stage.get('note') or ''}".rstrip()
        )
    if trials := view.get("trials"):
        lines += [
            "",
            "trials: " + ", ".join(f"{n} {status.lower()}" for status, n in trials.items()),
        ]
    for one in view.get("running", []):
        score = (
            f"epoch {one['epochs']}, best {one['best']:.4f}"
            if one["best"] is not None
            else "no report yet"
        )
        lines.append(f"  {one['trial_id']}  {score}")
    if best := view.get("best"):
        lines.append(
            f"best so far: {best['val_macro_f1']:.3f} val macro F1 ({best['variant']}, {best['trial_id']})"
        )
    return lines
