"""The first screens of the page: the result, what to worry about, hypotheses and selection."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from orchestrator.evaluation.hypotheses import needs_text
from orchestrator.report import charts
from orchestrator.report.load import Run, dicts, ensemble_scores, listed, mapping, number
from orchestrator.store.events import DriverStarted, Event, StageEnded

_MAX_EXAMPLES = 5
_FEW_GROUPS = 30  # a bootstrap over fewer resamples too few people for its ends to be trusted
_NOTABLE_FAILURES = 0.1
_GRAVE = (
    "train_and_test",
    "test_group",
    "leak",
    "label_conflicts",
    "across_groups",
)  # scores that lie, or labels


def head(run: Run) -> dict[str, Any]:
    """Return name, id, state, times and code version."""
    start = run.started()
    times = [event.time for event in run.events if event.time]
    return {
        "name": run.resolved.get("name") or run.root.name,
        "run_id": run.summary.get("run_id") or run.root.name,
        "state": state(run),
        "wall_s": number(run.summary.get("wall_s")) or driven_s(run.events),
        "ended": datetime.fromtimestamp(times[-1], UTC).strftime("%Y-%m-%d %H:%M UTC")
        if times
        else None,
        "commit": start.git_commit,
    }


def state(run: Run) -> str:
    """Return the run's state; the page itself is written before the run has ended."""
    if run.summary.get("state"):
        return str(run.summary["state"])
    outcomes = stage_outcomes(run)
    before = {name: event.outcome for name, event in outcomes.items() if name != "report"}
    if any(outcome in {"FAILED", "BLOCKED"} for outcome in before.values()):
        return "FAILED"
    return "SUCCEEDED" if "vote" in before else "RUNNING"


def stage_outcomes(run: Run) -> dict[str, StageEnded]:
    """Return the last event of each stage since the latest start."""
    found: dict[str, StageEnded] = {}
    for event in run.events:
        if isinstance(event, DriverStarted):
            found = {}
        elif isinstance(event, StageEnded):
            found[event.stage] = event
    return found


def driven_s(events: list[Event]) -> float | None:
    """Add up the seconds in which a driver wrote events, without the pauses before a resume."""
    total, began, last = 0.0, None, None
    for event in events:
        if not event.time:
            continue
        if isinstance(event, DriverStarted) or began is None:
            total += (last - began) if began is not None and last is not None else 0.0
            began = event.time
        last = event.time
    return total + last - began if began is not None and last is not None else None


def result(run: Run) -> dict[str, Any]:
    """Return the headline: out-of-fold score, test score, members."""
    oof, test = ensemble_scores(run.selection, "oof"), ensemble_scores(run.selection, "test")
    by_setting = {str(candidate.get("setting")): candidate for candidate in run.candidates}
    points = _points(run)
    members = [
        {
            **by_setting.get(setting, {}),
            "setting": setting,
            "place": place,
            "params": points.get(setting, {}),
        }
        for place, setting in enumerate(run.members, 1)
    ]
    scores = [oof.get("macro_f1", {}), test.get("macro_f1", {})]
    ends = [
        end
        for score in scores
        for name in ("low", "high", "estimate")
        if (end := number(score.get(name))) is not None
    ]
    scale = (max(0.0, min(ends) - 0.05), min(1.0, max(ends) + 0.05)) if ends else (0.0, 1.0)
    return {
        "oof": oof.get("macro_f1"),
        "oof_accuracy": oof.get("accuracy"),
        "oof_plot": _interval(oof.get("macro_f1"), scale, width=300, strong=True),
        "test": test.get("macro_f1"),
        "test_accuracy": test.get("accuracy"),
        "test_plot": _interval(test.get("macro_f1"), scale, width=300, strong=True),
        "scale": charts.scale_axis(scale, 300) if ends else "",
        "labels": label_scores(run, oof, test),
        "members": members,
        "policy": run.selection.get("policy"),
        "rule": run.rule,
        "group": mapping(run.resolved.get("data")).get("group"),
        "of": mapping(run.certificate.get("estimate")).get("of") or "photos it was not trained on",
        "n_candidates": len(run.candidates),
        "level": number(run.selection.get("level")) or 0.9,
        "gain": mapping(mapping(run.selection.get("ensemble")).get("gain")),
        "has_test_set": run.votes is not None,
        "corrected": mapping(mapping(run.selection.get("ensemble")).get("corrected")),
        "guess": 1 / run.schema.n_classes if run.schema else None,
        "confirmed": bool(run.candidates) and run.resolved.get("confirm", True) is not None,
    }


def label_scores(
    run: Run, oof: dict[str, dict[str, Any]], test: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the ensemble's macro F1 per label."""
    names = run.schema.names if run.schema else ()
    rows = [
        {"name": name, "oof": oof.get(f"macro_f1_{name}"), "test": test.get(f"macro_f1_{name}")}
        for name in names
    ]
    return [row for row in rows if row["oof"] or row["test"]]


def worries(run: Run) -> dict[str, Any]:
    """Return what should be known before the result is used, the gravest first."""
    found = [*_about_the_run(run), *_about_the_result(run), *_about_the_data(run)]
    order = {"bad": 0, "warn": 1, "info": 2}
    return {
        "items": sorted(found, key=lambda item: order[item["level"]]),
        "audited": bool(run.audit),
    }


def _worry(
    level: str, what: str, do: str = "", examples: list[str] | None = None
) -> dict[str, Any]:
    return {"level": level, "what": what, "do": do, "examples": (examples or [])[:_MAX_EXAMPLES]}


def _about_the_run(run: Run) -> list[dict[str, Any]]:
    found = [_worry("bad", sentence) for sentence in run.broken]
    if run.missing:
        found.append(
            _worry(
                "warn",
                f"files of the run are missing: {', '.join(run.missing)}",
                "submit the run again; what is done is reused",
            )
        )
    if state(run) not in {"SUCCEEDED", "RUNNING"}:
        notes = [
            f"{name}: {event.note or ''}"
            for name, event in stage_outcomes(run).items()
            if event.outcome == "FAILED"
        ]
        found.append(
            _worry(
                "bad",
                "; ".join([f"the run is {state(run)}", *notes])
                + "; what stands here may be incomplete",
                "mend what failed and submit again; finished work is reused"
                if notes
                else "submit it again; finished work is reused",
            )
        )
    trials = run.trials or []
    failed = [trial for trial in trials if trial.get("status") == "FAILED"]
    if failed:
        level = "warn" if len(failed) > _NOTABLE_FAILURES * len(trials) else "info"
        examples = [f"{trial.get('trial_id')}: {last_line(trial.get('error'))}" for trial in failed]
        found.append(
            _worry(
                level,
                f"{len(failed)} of {len(trials)} trials failed",
                "see the table of trials",
                examples,
            )
        )
    return found


def _about_the_result(run: Run) -> list[dict[str, Any]]:
    found = []
    oof, test = (
        ensemble_scores(run.selection, side).get("macro_f1", {}) for side in ("oof", "test")
    )
    low, n_groups, score = (
        number(oof.get("low")),
        number(oof.get("n_groups")),
        number(test.get("estimate")),
    )
    if run.selection.get("policy") == "leaderboard":
        found.append(
            _worry(
                "bad",
                "the members were chosen by looking at the public half of the test set",
                "select: {policy: robust}",
            )
        )
    check = mapping(run.certificate.get("check"))
    if check.get("equal") is False:
        found.append(
            _worry(
                "bad",
                f"the members' answers through `predict` are not the stored ones: {check.get('why')}",
                "do not use this ensemble before the cause is known",
            )
        )
    if run.selection.get("short_of"):
        found.append(_worry("warn", str(run.selection["short_of"])))
    if low is not None and score is not None and score < low:
        found.append(
            _worry(
                "warn",
                f"the test score {score:.3f} lies below the whole out-of-fold interval (from {low:.3f}): the test "
                "photos are harder than the training photos, or differ from them",
                "trust the test score for photos like the test set",
            )
        )
    if number(test.get("estimate")) is not None and test.get("too_narrow"):
        found.append(
            _worry(
                "info",
                "the test interval is too narrow: the test table names no groups, so photos of one person counted as "
                "independent",
                "data.test.group: <column>",
            )
        )
    if n_groups is not None and n_groups < _FEW_GROUPS:
        found.append(
            _worry(
                "warn",
                f"the interval rests on {n_groups:.0f} groups only; it may be too narrow",
                "add people, not photos",
            )
        )
    worst = [
        c for c in run.candidates if c.get("chosen") and number(c.get("worst_class_recall")) == 0.0
    ]
    if worst:
        names = sorted(
            {
                run.class_name(int(c["worst_class"]))
                for c in worst
                if number(c.get("worst_class")) is not None
            }
        )
        named = f" ({', '.join(names)})" if names else ""
        found.append(
            _worry(
                "warn",
                f"{len(worst)} of {len(run.members)} members never get one class right{named}",
                "more photos of it, train.balance: weighted_sampler, or train.loss: focal",
            )
        )
    return found


def _about_the_data(run: Run) -> list[dict[str, Any]]:
    found = []
    for warning in dicts(run.audit.get("warnings")):
        n = number(warning.get("n"))
        what = str(warning.get("what"))
        text = (
            f"{what}: {n:.0f}"
            if n is not None and what.startswith(("photos", "equal", "near"))
            else what
        )
        found.append(
            _worry(
                "bad" if warning.get("kind") in _GRAVE else "warn",
                text,
                str(warning.get("do") or ""),
                [example(one) for one in listed(warning.get("examples"))],
            )
        )
    if run.audit and not dicts(run.audit.get("warnings")):
        leaks = {
            name: share for name, share in mapping(run.audit.get("leak")).items() if number(share)
        }
        found += [
            _worry(
                "bad",
                f"variant {name}: {share:.0%} of the validation photos show somebody who is in training too",
                "data.split: {strategy: balanced_profile}",
            )
            for name, share in leaks.items()
        ]
    return found


def example(value: Any) -> str:
    """Return an example of the audit as one line: names joined by an equals sign, other things as JSON."""
    if isinstance(value, list):
        return " = ".join(str(one) for one in value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def last_line(text: Any) -> str:
    """Return the last line of a text that says something: of a traceback, the error."""
    lines = [line.strip() for line in str(text or "").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def hypotheses(run: Run) -> dict[str, Any]:
    """Return the verdicts with their differences on one scale."""
    rows = run.hypotheses or []
    ends = [
        end
        for row in rows
        for name in ("low", "high", "difference")
        if (end := number(row.get(name))) is not None
    ]
    reach = max((abs(end) for end in ends), default=0.0) * 1.1 or 0.1
    shown = [
        {
            **row,
            "plot": _interval(
                {**row, "estimate": row.get("difference")},
                (-reach, reach),
                mark=0.0,
                strong=row.get("verdict") != "undecided",
            ),
            "p": row.get("p_adjusted", row.get("p_value")),
            "needs": needs_text(row),
        }
        for row in rows
    ]
    return {
        "rows": shown,
        "axis": charts.scale_axis((-reach, reach)) if ends else "",
        "known": run.hypotheses is not None,
    }


def selection(run: Run) -> dict[str, Any]:
    """Return every candidate with its interval on one scale, and why it votes or does not."""
    ends = [
        end
        for row in run.candidates
        for name in ("low", "high", "oof_macro_f1")
        if (end := number(row.get(name))) is not None
    ]
    spread = (max(ends) - min(ends)) * 0.05 + 0.005 if ends else 0.0
    scale = (min(ends) - spread, max(ends) + spread) if ends else (0.0, 1.0)
    rows = []
    for candidate in run.candidates:
        search, oof = number(candidate.get("search_score")), number(candidate.get("oof_macro_f1"))
        worst = number(candidate.get("worst_class"))
        rows.append(
            {
                **candidate,
                "plot": _interval(
                    {**candidate, "estimate": candidate.get("oof_macro_f1")},
                    scale,
                    strong=bool(candidate.get("chosen")),
                ),
                "optimism": search - oof if search is not None and oof is not None else None,
                "worst_name": run.class_name(int(worst)) if worst is not None else None,
            }
        )
    return {
        "rows": rows,
        "axis": charts.scale_axis(scale) if ends else "",
        "policy": run.selection.get("policy"),
        "rule": run.selection.get("rule"),
        "known": bool(run.selection),
        "peeked": any(number(row.get("board_score")) is not None for row in rows),
        "winner": mapping(run.selection.get("winner")),
    }


def _interval(
    value: dict[str, Any] | None,
    scale: tuple[float, float],
    *,
    strong: bool,
    mark: float | None = None,
    width: float = 190,
) -> object:
    ends = [number((value or {}).get(name)) for name in ("low", "estimate", "high")]
    if ends[1] is None:
        return ""
    low, high = (ends[1] if end is None else end for end in (ends[0], ends[2]))
    return charts.interval((low, ends[1], high), scale, strong=strong, mark=mark, width=width)


def _points(run: Run) -> dict[str, dict[str, Any]]:
    """Return setting -> sampled values."""
    found: dict[str, dict[str, Any]] = {}
    for trial in run.trials or []:
        found.setdefault(str(trial.get("setting")), parameters(trial))
    return found


def parameters(trial: dict[str, Any]) -> dict[str, Any]:
    """Return a trial's sampled values by their short names."""
    try:
        params = mapping(json.loads(trial.get("params") or "{}"))
    except ValueError:
        return {}
    return {name.removeprefix("train."): value for name, value in params.items()}
