"""The certificate in one paragraph, for a reader who reads it once.

It says what to expect, what was measured and what weakens it. All else is in the table behind it.
"""

from __future__ import annotations

from data_prep.catalog.photo_groups import GROUP, GroupWords
from orchestrator.base.wording import counted
from orchestrator.spec.score import score_title
from orchestrator.store.run_files.certificate import Certificate
from orchestrator.store.run_files.scores import Score

OTHER_RUNS = "the same test labels in other runs of this store"
"""What certificate.json's `looked_at` calls them."""


def statement(certificate: Certificate, words: GroupWords = GROUP) -> str:
    """Return the certificate in one paragraph of at most 150 words, the corrected number first.

    Args:
        certificate: without the paragraph.
        words: what to call the groups.
    """
    sentences = [
        *_expected(certificate),
        *_lost(certificate),
        _tested(certificate),
        *_chosen(certificate),
        *_weakened(certificate.findings),
        f"Intervals cover which {words.many} were photographed, not other cameras or places.",
    ]
    if certificate.check is not None and certificate.check.equal is False:
        sentences.append(
            "The answers through `predict` DIFFER from the stored ones: do not use it."
        )
    return " ".join(sentences)


def _expected(certificate: Certificate) -> list[str]:
    """Say what the vote is expected to reach, and what that rests on."""
    estimate = certificate.estimate
    score = estimate.headline
    title = score_title(certificate.score)
    if score.estimate is None:
        return []
    n_members = len(certificate.members)
    voters = "the one member" if n_members == 1 else f"the vote of {n_members} members"
    vote = f"On {estimate.of}, {voters}"
    size = f"{counted(score.n_samples, 'photo')} of {counted(score.n_groups, 'group')}"
    if estimate.on == "role val":
        return [
            f"{vote} reached {title} {_span(score)}.",
            f"These {size} chose epochs and settings. Expect less of new photos.",
        ]
    promise = f"{vote} is expected to reach at least {title}"
    corrected = certificate.corrected
    if corrected.estimate is None:
        promise = f"{promise} {_span(score)}."
    else:
        candidates = counted(corrected.n_candidates, "candidate")
        promise = f"{promise} {_span(corrected)}, corrected for the choice among {candidates}."
    return [promise, f"It rests on {size}{_checkpoints(certificate)}."]


def _checkpoints(certificate: Certificate) -> str:
    """Say why it is expected to reach more: more checkpoints answer a new photo."""
    curve = certificate.checkpoints
    if not curve.scores:
        return ""
    judges = f" and {counted(len(curve.scores), 'checkpoint')} per member"
    if curve.estimate is None:
        return f"{judges}; {curve.n_deployed} judge a new photo, and {curve.advice}"
    return f"{judges}; all {curve.n_deployed} should reach about {curve.estimate:.3f}"


def _lost(certificate: Certificate) -> list[str]:
    """Say what photos are worth that preparation lost."""
    lost = certificate.lost
    score = certificate.estimate.headline.estimate
    if lost is None or lost.headline.estimate is None or score is None:
        return []
    photos = counted(lost.n_photos, "more photo")
    less = score - lost.headline.estimate
    return [f"Preparation lost {photos}; counting them as wrong costs {less:z.3f}."]


def _tested(certificate: Certificate) -> str:
    """Say what the test set shows."""
    score = certificate.test.headline
    if score is None:
        return "There is no test score: no test labels are known."
    part = "the test set"
    if certificate.test.part == "private":
        part = "the private half of the test set"
    if certificate.policy != "leaderboard":
        part += ", which chose nothing,"
    narrow = ", too narrow" if score.too_narrow else ""
    bounds = f"({score.low:.3f} to {score.high:.3f}{narrow})"
    reached = f"On {part} it reached {score.estimate:.3f} {bounds}{_surprise(certificate)}"
    if n_lost := certificate.data.n_test_lost:
        reached += f"; {counted(n_lost, 'lost photo')} got the most frequent class"
    return f"{reached}."


def _surprise(certificate: Certificate) -> str:
    """Say whether the test score is what was expected."""
    gap = certificate.gap
    if gap is None or gap.estimate_minus_test is None:
        return ""
    if gap.test_is_inside_the_interval:
        return ", a gap that chance explains"
    difference = gap.expected_minus_test
    if difference is None:
        difference = gap.estimate_minus_test
    return f", {'less' if difference > 0 else 'more'} than chance explains"


def _chosen(certificate: Certificate) -> list[str]:
    """Say who had a part in a choice, and how often test labels were looked at."""
    sentences = []
    if certificate.estimate.people:
        sentences.append(certificate.estimate.people)
    if certificate.policy == "leaderboard":
        sentences.append("A leaderboard chose the members by its public half.")
    for use in certificate.looked_at:
        if use.what == OTHER_RUNS and use.times:
            looks = counted(use.times, "other look")
            sentences.append(f"There {'was' if use.times == 1 else 'were'} {looks} at its labels.")
    return sentences


def _weakened(findings: tuple[str, ...]) -> list[str]:
    """Say the gravest finding, and how many more there are."""
    sentences = list(findings[:1])
    if len(findings) > 1:
        sentences.append(f"See {counted(len(findings) - 1, 'more finding')} below.")
    return sentences


def _span(score: Score) -> str:
    return f"{score.estimate:.3f} (90 % interval {score.low:.3f} to {score.high:.3f})"
