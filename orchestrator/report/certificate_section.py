"""Why the result can be trusted: certificate, public and private scores."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.base.wording import counted
from orchestrator.report.load import Run, View
from orchestrator.spec.score import MACRO_F1
from orchestrator.store.run_files.certificate import Certificate, CertifiedMember
from orchestrator.store.run_files.diagnosis import PartScore
from orchestrator.store.run_files.scores import Score
from orchestrator.store.run_files.selection import BoardRow, Contribution

_NO_SCORE = Score()


@dataclass(frozen=True)
class ScoreRow:
    """One score of the certificate and what it was measured on."""

    name: str
    on: str
    score: Score


@dataclass(frozen=True)
class Lineage:
    """A member, with the seeds and folds of its checkpoints."""

    member: CertifiedMember
    seeds: list[str]
    folds: list[str]


def certificate(run: Run) -> View:
    """Return what certificate.json states, in the order in which a reader asks."""
    facts = run.certificate
    if facts is None:
        return {"known": False}
    return {
        "known": True,
        "facts": facts,
        "scores": _scores(facts, run.words.many),
        "covered": _covered(run.words.many),
        "on": "role val" if facts.estimate.on == "role val" else "out of fold",
        "group": run.resolved.data.group_text,
        "members": [_lineage(member) for member in facts.members],
        "hashes": _hashes(facts),
    }


def _covered(many: str) -> str:
    """Say what the numbers cover and what they do not."""
    return (
        f"The interval of a score covers which {many} were photographed, with these models. The "
        "correction covers the choice of members. The interval of a claim also covers the luck of "
        "training, where there are two seeds. Nothing covers other data: other cameras, places or "
        f"{many} of another kind."
    )


def _scores(facts: Certificate, many: str) -> list[ScoreRow]:
    test_set = "test set, scored once"
    if facts.test.part == "private":
        test_set = "private half of the test set, scored once"
    kept = facts.kept or PartScore()
    lost = facts.lost or PartScore()
    rows = [
        ScoreRow(
            f"{_promise(facts)}, corrected for the selection",
            f"members chosen on some {many}, scored on the others",
            facts.corrected,
        ),
        ScoreRow(_promise(facts), facts.estimate.on, facts.estimate.headline),
        ScoreRow(
            "with all checkpoints of the members",
            "extrapolated from the checkpoints that judged these photos",
            facts.checkpoints,
        ),
        ScoreRow(
            f"without {counted(kept.n_photos, 'photo')} that the spec keeps out of training",
            facts.estimate.on,
            kept.headline,
        ),
        ScoreRow(
            f"with {counted(lost.n_photos, 'photo')} that preparation lost, counted as wrong",
            facts.estimate.on,
            lost.headline,
        ),
        ScoreRow(
            "without likely wrong labels",
            f"{facts.estimate.on}; an upper limit",
            facts.label_noise.without or _NO_SCORE,
        ),
        ScoreRow(
            "public half of the test set",
            "as on a leaderboard",
            facts.public.headline or _NO_SCORE,
        ),
        ScoreRow("test", test_set, facts.test.headline or _NO_SCORE),
    ]
    return [row for row in rows if row.score.estimate is not None]


def _promise(facts: Certificate) -> str:
    whom = facts.estimate.of or "photos it was not trained on"
    return f"reached on {whom}" if facts.estimate.on == "role val" else f"expected on {whom}"


def _lineage(member: CertifiedMember) -> Lineage:
    seeds = {checkpoint.seed for checkpoint in member.checkpoints}
    folds = {checkpoint.fold for checkpoint in member.checkpoints}
    return Lineage(
        member,
        sorted(str(seed) for seed in seeds if seed is not None),
        sorted(str(fold) for fold in folds if fold is not None),
    )


def _hashes(facts: Certificate) -> list[tuple[str, str]]:
    rows = [
        ("data (catalog)", facts.data.catalog_sha256),
        ("photos", facts.data.photos_sha256),
    ]
    variants_of: dict[str, list[str]] = {}
    for variant, split in facts.splits.items():
        variants_of.setdefault(split.sha256, []).append(variant)
    for sha256, variants in variants_of.items():
        name = "split" if len(variants_of) == 1 else f"split of {', '.join(variants)}"
        rows.append((name, sha256))
    rows.append(("code", facts.code.git_commit))
    return [(name, value) for name, value in rows if value]


@dataclass(frozen=True)
class ContestRow:
    """The public and private scores of the ensemble or of one member."""

    variant: str | None
    scores: BoardRow


def board(run: Run) -> View:
    """Return the scores on both halves of the test set; empty where nothing is public."""
    ensemble = run.selection.ensemble
    rows = [ContestRow(run.variant_of(row.who), row) for row in ensemble.board]
    by_spec = any(row.public_score is not None for row in ensemble.board)
    typed = []
    if not rows:
        typed = [item for item in run.selection.candidates if item.board_score is not None]
    return {
        "rows": rows,
        "typed": typed,
        "policy": run.selection.policy,
        "score": run.score_title if by_spec else MACRO_F1.title,
        "private": ensemble.test.headline,
    }


@dataclass(frozen=True)
class ContributionRow:
    """What one member adds to the out-of-fold vote."""

    variant: str | None
    facts: Contribution


def contributions(run: Run) -> list[ContributionRow]:
    """Return what each member adds to the out-of-fold vote."""
    rows = run.selection.ensemble.marginal
    return [ContributionRow(run.variant_of(row.setting), row) for row in rows]
