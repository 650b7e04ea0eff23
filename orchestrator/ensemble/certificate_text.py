"""The certificate in one paragraph, for a reader who reads it once."""

from __future__ import annotations

from data_prep.catalog.photo_groups import GROUP, GroupWords
from orchestrator.spec.score import score_title
from orchestrator.store.run_files.certificate import Certificate, Check
from orchestrator.store.run_files.scores import Score

OTHER_RUNS = "the same test labels in other runs of this store"
"""What certificate.json's `looked_at` calls them."""


def statement(certificate: Certificate, words: GroupWords = GROUP) -> str:
    """Return the certificate in one paragraph, the corrected number first.

    Args:
        certificate: without the paragraph.
        words: what to call the groups.
    """
    sentences = [
        *_expected(certificate),
        *_other_photos(certificate),
        *_tested(certificate),
        *_gained(certificate),
        *_covered(certificate, words),
        *_chosen(certificate, words),
        *certificate.findings,
        _checked(certificate.check or Check()),
    ]
    return " ".join(sentences)


def _expected(certificate: Certificate) -> list[str]:
    """Say what the vote is expected to reach, and by how many checkpoints."""
    estimate = certificate.estimate
    score = estimate.headline
    title = score_title(certificate.score)
    if score.estimate is None:
        return []
    vote = f"On {estimate.of} the vote of {_counted(len(certificate.members), 'member')}"
    if len(certificate.members) == 1:
        vote = f"On {estimate.of} the one member"
    if estimate.on == "role val":
        return [
            (
                f"{vote} reached {title} {_span(score)}, {score.n_groups} groups. These photos "
                "chose epochs and settings. Expect less of new photos."
            )
        ]
    corrected = certificate.corrected
    is_corrected = corrected.estimate is not None
    first = corrected if is_corrected else score
    sentences = [f"{vote} is expected to reach at least {title} {_span(first)}."]
    measured = f"This was measured on {score.n_samples} photos of {score.n_groups} groups"
    if is_corrected:
        measured += (
            f" and corrected for having chosen among {corrected.n_candidates} candidates on them; "
            f"uncorrected it is {_span(score)}"
        )
    sentences.append(f"{measured}.")
    curve = certificate.checkpoints
    if curve.scores:
        reason = (
            f"At least, because {_counted(len(curve.scores), 'checkpoint')} of each member judged "
            f"each of these photos, and {curve.n_deployed} judge a new one"
        )
        if curve.estimate is None:
            sentences.append(f"{reason}; {curve.advice}.")
        else:
            sentences.append(f"{reason}, which leads to about {_span(curve)}.")
    return sentences


def _other_photos(certificate: Certificate) -> list[str]:
    """Say what the score is without excluded photos, and with those that preparation lost."""
    sentences = []
    kept = certificate.kept
    if kept is not None and kept.headline.estimate is not None:
        sentences.append(
            f"{_counted(kept.n_photos, 'photo')} of these are never trained on, by the exclusions "
            f"of the spec; without them the uncorrected score is {kept.headline.estimate:.3f}."
        )
    lost = certificate.lost
    if lost is not None and lost.headline.estimate is not None:
        sentences.append(
            f"Preparation lost {_counted(lost.n_photos, 'more photo')}; counted as wrong, they "
            f"make the uncorrected score {lost.headline.estimate:.3f}."
        )
    return sentences


def _tested(certificate: Certificate) -> list[str]:
    """Say what the test set shows."""
    score = certificate.test.headline
    if score is None:
        return ["There is no test score: no test labels are known."]
    part = "the test set"
    if certificate.test.part == "private":
        part = "the private half of the test set"
    narrow = "; too narrow: no groups are known" if score.too_narrow else ""
    return [f"On {part} it reached {_span(score)}{narrow}{_surprise(certificate)}."]


def _surprise(certificate: Certificate) -> str:
    """Say whether the test score is what was expected."""
    gap = certificate.gap
    if gap is None or gap.estimate_minus_test is None:
        return ""
    if gap.test_is_inside_the_interval:
        return "; chance explains the difference"
    side = "less" if gap.estimate_minus_test > 0 else "more"
    return f"; that is {side} than chance explains, so the test photos differ from these"


def _gained(certificate: Certificate) -> list[str]:
    """Say what the vote adds to its best member."""
    gain = certificate.gain and certificate.gain.honest
    if not gain or None in (gain.difference, gain.low, gain.high):
        return []
    return [
        (
            f"Over its best member alone the vote gains {gain.difference:+.3f} "
            f"({gain.low:+.3f} to {gain.high:+.3f})."
        )
    ]


def _covered(certificate: Certificate, words: GroupWords) -> list[str]:
    """Say what the numbers cover and what they do not."""
    covers = f"The interval of a score covers which {words.many} were photographed"
    covers += ", with these models."
    if certificate.corrected.estimate is not None:
        covers += " The correction covers the choice of members."
    return [
        (
            f"{covers} The interval of a claim also covers the luck of training, where there are "
            "two seeds. Nothing here covers other data: other cameras, places or "
            f"{words.many} of another kind."
        )
    ]


def _chosen(certificate: Certificate, words: GroupWords) -> list[str]:
    """Say who had a part in a choice, and how often labels were looked at."""
    sentences = []
    if certificate.estimate.people:
        sentences.append(certificate.estimate.people)
    has_peeked = certificate.policy == "leaderboard"
    if certificate.test.headline is not None and not has_peeked:
        sentences.append(f"{words.Many} of the test set had no part in any choice of this run.")
    for use in certificate.looked_at:
        if use.what.startswith("out-of-fold labels") and use.times and "race" not in use.what:
            sentences.append(f"Out-of-fold labels {use.why}.")
        if use.what == OTHER_RUNS and use.times:
            sentences.append(f"Other runs looked at these test labels {use.times} times.")
    if race := certificate.race:
        sentences.append(
            f"A race stopped {len(race.stopped)} of {race.n_finalists} finalists early and saved "
            f"{race.n_saved} of {race.n_trainings} trainings; the correction counts them all."
        )
    if has_peeked:
        sentences.append(
            "A leaderboard chose the members: it looked at the public half of the test set."
        )
    return sentences


def _checked(check: Check) -> str:
    equal = "equal the stored ones" if check.equal else "DIFFER from the stored ones"
    return f"The members' answers through `predict` {equal} on {check.n_photos or 0} photos."


def _counted(n: int | None, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _span(score: Score) -> str:
    return f"{score.estimate:.3f} (90 % interval {score.low:.3f} to {score.high:.3f})"
