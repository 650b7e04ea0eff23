"""Why the result can be believed: the certificate, and the contest's table of public and private scores."""

from __future__ import annotations

from typing import Any

from orchestrator.report.load import Run, dicts, ensemble_scores, mapping, number


def certificate(run: Run) -> dict[str, Any]:
    """Return what certificate.json states, in the order in which a reader asks."""
    made = run.certificate
    if not made:
        return {"known": False}
    return {
        "known": True,
        "statement": made.get("statement"),
        "scores": _scores(run),
        "gap": mapping(made.get("gap")),
        "gain": mapping(made.get("gain")),
        "calibration": number(mapping(made.get("estimate")).get("calibration_error")),
        "check": mapping(made.get("check")),
        "on": "out of fold"
        if mapping(made.get("estimate")).get("on") != "role val"
        else "role val",
        "worst_classes": dicts(made.get("worst_classes")),
        "worst_groups": dicts(made.get("worst_groups")),
        "group": mapping(run.resolved.get("data")).get("group"),
        "looked_at": dicts(made.get("looked_at")),
        "members": [_lineage(member) for member in dicts(made.get("members"))],
        "hashes": _hashes(made),
    }


def _scores(run: Run) -> list[dict[str, Any]]:
    made = run.certificate
    estimate = mapping(made.get("estimate"))
    rows = [
        (
            f"{_about(estimate)}, corrected for the choice",
            "choose in the bag, score out of it",
            mapping(made.get("corrected")),
        ),
        (_about(estimate), estimate.get("on"), mapping(estimate.get("macro_f1"))),
        (
            "public half of the test set",
            "a leaderboard's view",
            mapping(mapping(made.get("public")).get("macro_f1")),
        ),
        ("test", _part(made), mapping(mapping(made.get("test")).get("macro_f1"))),
    ]
    return [
        {"name": name, "on": on, **score}
        for name, on, score in rows
        if number(score.get("estimate")) is not None
    ]


def _about(estimate: dict[str, Any]) -> str:
    whom = estimate.get("of") or "photos it was not trained on"
    return f"reached on {whom}" if estimate.get("on") == "role val" else f"expected on {whom}"


def _part(made: dict[str, Any]) -> str:
    private = mapping(made.get("test")).get("part") == "private"
    return "private half of the test set, scored once" if private else "test set, scored once"


def _lineage(member: dict[str, Any]) -> dict[str, Any]:
    checkpoints = dicts(member.get("checkpoints"))
    return {
        **member,
        "n": len(checkpoints),
        "seeds": sorted({str(one.get("seed")) for one in checkpoints}),
        "folds": sorted(
            {str(one.get("fold")) for one in checkpoints if one.get("fold") is not None}
        ),
        "commits": sorted({str(one.get("git_commit"))[:12] for one in checkpoints}),
        "checkpoints": checkpoints,
    }


def _hashes(made: dict[str, Any]) -> list[tuple[str, str]]:
    data = mapping(made.get("data"))
    found = [("data (catalog)", data.get("catalog_sha256")), ("photos", data.get("photos_sha256"))]
    splits: dict[str, list[str]] = {}
    for variant, one in mapping(made.get("splits")).items():
        splits.setdefault(str(mapping(one).get("sha256")), []).append(str(variant))
    found += [
        ("split" if len(splits) == 1 else f"split of {', '.join(names)}", sha256)
        for sha256, names in splits.items()
    ]
    found.append(("code", mapping(made.get("code")).get("git_commit")))
    return [(name, str(value)) for name, value in found if value]


def board(run: Run) -> dict[str, Any]:
    """Return the public and private scores of the vote and its members; empty where nothing is public."""
    by_setting = {str(candidate.get("setting")): candidate for candidate in run.candidates}
    rows = [
        {**row, "variant": by_setting.get(str(row.get("who")), {}).get("variant")}
        for row in dicts(mapping(run.selection.get("ensemble")).get("board"))
    ]
    typed = [c for c in run.candidates if number(c.get("board_score")) is not None]
    return {
        "rows": rows,
        "typed": typed if not rows else [],
        "policy": run.selection.get("policy"),
        "public": ensemble_scores(run.selection, "public").get("macro_f1"),
        "private": ensemble_scores(run.selection, "test").get("macro_f1"),
    }


def marginal(run: Run) -> list[dict[str, Any]]:
    """Return what each member adds to the out-of-fold vote."""
    by_setting = {str(candidate.get("setting")): candidate for candidate in run.candidates}
    return [
        {
            **row,
            "adds": mapping(row.get("adds")),
            "variant": by_setting.get(str(row.get("setting")), {}).get("variant"),
        }
        for row in dicts(mapping(run.selection.get("ensemble")).get("marginal"))
    ]
