"""What a reader should know before using the result, the gravest first."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from orchestrator.report.load import Run, View
from orchestrator.report.result_section import state
from orchestrator.store.run_files.audit import AuditFacts

_MAX_EXAMPLES = 5
_FEW_GROUPS = 30  # a bootstrap over fewer groups is not to be trusted at its ends
_FEW_ANSWERS = 4  # may be of one class by chance
_NOTABLE_FAILURES = 0.1  # of all trials
_GRAVE = ("train_and_test", "test_group", "leak", "label_conflicts", "across_groups")
"""Kinds of audit findings that make scores or labels wrong."""
_SMALLEST_GAP = 0.005
"""A leak that lifts the score of a quick model by less is no serious finding."""
_ORDER = {"bad": 0, "warn": 1, "info": 2}


@dataclass(frozen=True)
class Finding:
    """One problem and what to do about it."""

    level: str  # bad | warn | info
    what: str
    do: str = ""
    examples: tuple[str, ...] = ()


def findings(run: Run) -> View:
    """Return all findings, sorted by level."""
    items = [
        *_about_the_run(run),
        *_about_the_trials(run),
        *_about_the_ensemble(run),
        *_about_the_scores(run),
        *_about_the_data(run),
    ]
    items.sort(key=lambda finding: _ORDER[finding.level])
    return {"items": items, "audited": run.audit is not None}


def _about_the_run(run: Run) -> list[Finding]:
    items = [Finding("bad", sentence) for sentence in run.broken]
    if run.missing:
        what = f"files of the run are missing: {', '.join(run.missing)}"
        items.append(Finding("warn", what, "submit the run again; finished work is reused"))
    if state(run) in {"SUCCEEDED", "RUNNING"}:
        return items
    parts = [f"the run is {state(run)}"]
    for name, stage in run.stages().items():
        if stage.outcome == "FAILED":
            parts.append(f"{name}: {stage.note or ''}")
    what = f"{'; '.join(parts)}; this page may be incomplete"
    do = "submit it again; finished work is reused"
    if len(parts) > 1:
        do = "remove the cause and submit again; finished work is reused"
    return [*items, Finding("bad", what, do)]


def _about_the_trials(run: Run) -> list[Finding]:
    trials = run.trials or ()
    failed = [trial for trial in trials if trial.status == "FAILED"]
    if not failed:
        return []
    level = "warn" if len(failed) > _NOTABLE_FAILURES * len(trials) else "info"
    examples = [f"{trial.trial_id}: {last_line(trial.error)}" for trial in failed]
    what = f"{len(failed)} of {len(trials)} trials failed"
    return [Finding(level, what, "see the table of trials", tuple(examples[:_MAX_EXAMPLES]))]


def _about_the_ensemble(run: Run) -> list[Finding]:
    items = []
    if run.selection.policy == "leaderboard":
        what = "the members were chosen by their scores on the public half of the test set"
        items.append(Finding("bad", what, "select: {policy: robust}"))
    check = run.certificate.check if run.certificate else None
    if check is not None and check.equal is False:
        what = f"the members' answers through `predict` are not the stored ones: {check.why}"
        items.append(Finding("bad", what, "do not use this ensemble before the cause is known"))
    if run.selection.short_of:
        items.append(Finding("warn", run.selection.short_of))
    items += _equal_members(run)
    blind = [
        candidate
        for candidate in run.selection.candidates
        if candidate.chosen and candidate.worst_class_recall == 0.0
    ]
    if blind:
        classes = {candidate.worst_class for candidate in blind}
        names = sorted(run.class_name(label) for label in classes if label is not None)
        named = f" ({', '.join(names)})" if names else ""
        what = f"{len(blind)} of {len(run.members)} members never get one class right{named}"
        do = "more photos of it, train.balance: weighted_sampler, or train.loss: focal"
        items.append(Finding("warn", what, do))
    return items


def _equal_members(run: Run) -> list[Finding]:
    """Return a finding for each member whose weights are those of a member before it."""
    first_with: dict[tuple[str, ...], str] = {}
    items = []
    for member in run.certificate.members if run.certificate else ():
        weights = tuple(checkpoint.weights_sha256 for checkpoint in member.checkpoints)
        other = first_with.setdefault(weights, member.setting)
        if other != member.setting and all(weights):
            what = f"members {other} and {member.setting} have the same weights: they are one model"
            do = "settings that differ from the first step on, or train for longer"
            items.append(Finding("warn", what, do))
    return items


def _about_the_scores(run: Run) -> list[Finding]:
    items = []
    oof = run.selection.ensemble.oof.headline
    test = run.selection.ensemble.test.headline
    gap = run.certificate.gap if run.certificate else None
    missing = gap.expected_minus_test if gap else None
    if gap is not None and missing is not None and (gap.low or 0.0) > 0:
        what = (
            f"the test score is {missing:.3f} lower than expected (90 % interval "
            f"{gap.low:.3f} to {gap.high:.3f}), more than chance explains: the test photos are "
            "harder than the training photos, or differ from them"
        )
        do = "rely on the test score for photos like those of the test set"
        items.append(Finding("warn", what, do))
    answers = run.answers.get("test")
    n_classes = run.schema.n_classes if run.schema else 0
    if answers is not None and len(answers.targets) >= _FEW_ANSWERS and n_classes > 1:
        labels = set(answers.targets.tolist())
        if len(labels) == 1:
            what = (
                f"all {len(answers.targets)} answers of the test table are one class "
                f"({run.class_name(labels.pop())}): a placeholder of a contest? "
                "Then the test score means nothing"
            )
            items.append(Finding("bad", what, "leave out data.test.label"))
    if test is not None and test.too_narrow:
        what = (
            "the test interval is too narrow: the test table names no groups, so photos of one "
            f"{run.words.one} count as independent"
        )
        items.append(Finding("info", what, "data.test.group: <column>"))
    if oof is not None and oof.n_groups is not None and oof.n_groups < _FEW_GROUPS:
        what = f"the interval depends on {oof.n_groups} groups only; it may be too narrow"
        items.append(Finding("warn", what, f"add {run.words.many}, not photos"))
    return items


def _about_the_data(run: Run) -> list[Finding]:
    if run.audit is None:
        return []
    items = []
    for warning in run.audit.warnings:
        is_grave = warning.kind in _GRAVE
        if warning.kind == "leak" and not _leak_matters(run.audit):
            is_grave = False
        level = "bad" if is_grave else "warn"
        examples = tuple(example(item) for item in warning.examples[:_MAX_EXAMPLES])
        items.append(Finding(level, warning.text, warning.do, examples))
    if items:
        return items
    for name, share in run.audit.leak.items():
        if share:
            what = (
                f"variant {name}: {share:.0%} of the validation photos are of {run.words.many} "
                "of role train"
            )
            items.append(Finding("bad", what, "data.split: {strategy: balanced_profile}"))
    return items


def _leak_matters(facts: AuditFacts) -> bool:
    """Return True unless a quick model gains nothing by the leak of any split."""
    for name, split in facts.variants.items():
        gap = facts.leak_gap.get(name)
        if not split.leak:
            continue
        if gap is None or gap.difference is None or gap.difference >= _SMALLEST_GAP:
            return True
        if gap.low is not None and gap.low > 0:
            return True
    return False


def example(value: Any) -> str:
    """Return an example of the audit as one line; names of a list are joined by equals signs."""
    if isinstance(value, list):
        return " = ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def last_line(text: str) -> str:
    """Return the last line of a text that says something: of a traceback, the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
