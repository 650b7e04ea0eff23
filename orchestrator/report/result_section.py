"""The first screens of the page: the result, hypotheses and selection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.base.wording import signed
from orchestrator.evaluation.hypotheses import needs_text
from orchestrator.report import charts
from orchestrator.report.diagnosis_section import rare_class
from orchestrator.report.load import Run, View
from orchestrator.report.scales import Scale
from orchestrator.spec.score import parse_score
from orchestrator.store.event_types import DriverStarted, Event
from orchestrator.store.run_files.hypotheses import Hypothesis
from orchestrator.store.run_files.scores import Score
from orchestrator.store.run_files.selection import Candidate

_NO_SCORE = Score()


@dataclass(frozen=True)
class Head:
    """The heading of the page."""

    name: str
    run_id: str
    state: str
    wall_s: float | None
    ended: str | None
    commit: str | None


def head(run: Run) -> Head:
    """Return name, id, state, times and code version."""
    times = [event.time for event in run.events if event.time]
    ended = None
    if times:
        ended = datetime.fromtimestamp(times[-1], UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Head(
        name=run.resolved.name or run.root.name,
        run_id=run.summary.run_id or run.root.name,
        state=state(run),
        wall_s=run.summary.wall_s or driven_s(run.events),
        ended=ended,
        commit=run.started().git_commit,
    )


def state(run: Run) -> str:
    """Return the run's state; the page itself is written before the run has ended."""
    if run.summary.state:
        return run.summary.state
    outcomes = {name: stage.outcome for name, stage in run.stages().items() if name != "report"}
    if {"FAILED", "BLOCKED"} & set(outcomes.values()):
        return "FAILED"
    return "SUCCEEDED" if "vote" in outcomes else "RUNNING"


def driven_s(events: list[Event]) -> float | None:
    """Add up the seconds in which a driver wrote events, without the pauses before a resume."""
    total_s = 0.0
    last: float | None = None
    for event in events:
        if not event.time:
            continue
        if last is not None and not isinstance(event, DriverStarted):
            total_s += event.time - last
        last = event.time
    return None if last is None else total_s


@dataclass(frozen=True)
class MemberRow:
    """A row of the table of members."""

    place: int
    setting: str
    candidate: Candidate
    params: Mapping[str, object]


@dataclass(frozen=True)
class LabelRow:
    """The ensemble's macro F1 for one label."""

    name: str
    oof: Score | None
    test: Score | None


def headline(run: Run) -> Score | None:
    """Return the score to expect on new people: out of fold, corrected where members were chosen."""
    ensemble = run.selection.ensemble
    if ensemble.corrected is not None and ensemble.corrected.estimate is not None:
        return ensemble.corrected
    return ensemble.oof.headline


def result(run: Run) -> View:
    """Return the headline: out-of-fold score, test score, members."""
    ensemble = run.selection.ensemble
    oof = ensemble.oof.headline
    test = ensemble.test.headline
    first = headline(run)
    scale = _score_scale(first, test)
    guess = _guess(run)
    return {
        "oof": oof,
        "oof_accuracy": ensemble.oof.accuracy,
        "first": first,
        "oof_plot": _score_plot(first, scale),
        "test": test,
        "test_accuracy": ensemble.test.accuracy,
        "test_plot": _score_plot(test, scale),
        "scale": charts.scale_axis(scale, 300),
        "labels": label_scores(run),
        "members": _members(run),
        "policy": run.selection.policy,
        "rule": run.rule,
        "adjusted": _adjusted(run),
        "group": run.resolved.data.group_text,
        "of": (run.certificate and run.certificate.estimate.of) or "photos it was not trained on",
        "n_candidates": len(run.selection.candidates),
        "level": run.selection.level,
        "gain": ensemble.gain and ensemble.gain.honest,
        "lost": ensemble.lost,
        "n_test_lost": run.certificate and run.certificate.data.n_test_lost,
        "has_test_set": run.votes is not None,
        "is_corrected": first is not None and first is ensemble.corrected,
        "guess": guess,
        "rare": rare_class(run),
        "warning": _worse_than_guessing(run.score_title, guess, first, test),
        "confirmed": bool(run.selection.candidates) and run.resolved.confirm is not None,
    }


def _adjusted(run: Run) -> str:
    """Say how the members' answers are moved, and what the vote gains by it; "" where they are not."""
    adjusted = run.selection.vote.adjusted
    if adjusted is None:
        return ""
    change = adjusted.change
    interval = ""
    if change.low is not None and change.high is not None:
        interval = f" ({signed(change.low)} to {signed(change.high)})"
    return (
        f"Answers are adjusted ({adjusted.by.get('name', '')}), out of fold by the labels of other "
        f"{run.words.many}: the vote changes by {signed(change.difference)}{interval}"
    )


def _guess(run: Run) -> float | None:
    """Return what a guess at random reaches, each class as often as it is; None if unknown.

    A mean over classes is then about one over their number. Accuracy is what the largest class
    reaches alone, which takes the true classes of the out-of-fold photos.
    """
    if run.schema is None:
        return None
    try:
        score = parse_score(run.resolved.score)
    except ValueError:
        return None
    answers = run.answers.get("oof")
    sizes = run.schema.sizes
    guesses = []
    for label in score.labels_among(run.schema.names) or ("",):
        place = run.schema.names.index(label) if label in run.schema.names else None
        if score.metric != "accuracy":
            guesses.append(1 / (run.schema.n_classes if place is None else sizes[place]))
            continue
        if answers is None:
            return None
        classes = answers.targets
        if place is not None:
            classes = run.schema.decode(classes)[:, place]
        guesses.append(max(Counter(classes.tolist()).values()) / len(classes))
    return sum(guesses) / len(guesses)


def _worse_than_guessing(
    name: str, guess: float | None, oof: Score | None, test: Score | None
) -> str:
    """Return the first sentence of a page whose score is no better than a guess; else nothing."""
    score = oof if oof is not None and oof.estimate is not None else test
    if guess is None or score is None or score.estimate is None or score.estimate > guess:
        return ""
    return (
        f"This ensemble is no better than guessing: {name} {score.estimate:.3f}, a guess reaches "
        f"about {guess:.3f}. Do not use it: see the learning curves, train longer, or check that "
        "photos and labels belong together."
    )


def _score_scale(*scores: Score | None) -> Scale | None:
    """Return the common scale of the headline's intervals, within 0 and 1."""
    ends: list[float | None] = []
    for score in scores:
        if score is not None:
            ends += [score.low, score.estimate, score.high]
    scale = Scale.around(ends, 0.05)
    return scale and Scale(max(0.0, scale.low), min(1.0, scale.high))


def _score_plot(score: Score | None, scale: Scale | None) -> object:
    score = score or _NO_SCORE
    return charts.interval(score.low, score.estimate, score.high, scale, width=300, strong=True)


def _members(run: Run) -> list[MemberRow]:
    points: dict[str, Mapping[str, object]] = {}
    for trial in run.trials or ():
        points.setdefault(trial.setting, trial.params)
    rows = []
    for place, setting in enumerate(run.members, 1):
        candidate = run.candidates.get(setting, Candidate())
        rows.append(MemberRow(place, setting, candidate, points.get(setting, {})))
    return rows


def label_scores(run: Run) -> list[LabelRow]:
    """Return the ensemble's macro F1 per label."""
    ensemble = run.selection.ensemble
    rows = []
    for name in run.schema.names if run.schema else ():
        metric = f"macro_f1_{name}"
        oof = ensemble.oof.metrics.get(metric)
        test = ensemble.test.metrics.get(metric)
        if oof or test:
            rows.append(LabelRow(name, oof, test))
    return rows


@dataclass(frozen=True)
class HypothesisRow:
    """A row of the table of hypotheses: the verdict, its picture, and what would decide it."""

    verdict: Hypothesis
    plot: object
    needs: str


def hypotheses(run: Run) -> View:
    """Return the verdicts with their differences on one scale."""
    verdicts = run.hypotheses or ()
    ends: list[float] = []
    for verdict in verdicts:
        known = (verdict.low, verdict.difference, verdict.high)
        ends += [abs(end) for end in known if end is not None]
    reach = 1.1 * max(ends, default=0.0) or 0.1
    scale = Scale(-reach, reach)
    rows = []
    for verdict in verdicts:
        plot = charts.interval(
            verdict.low,
            verdict.difference,
            verdict.high,
            scale,
            mark=0.0,
            strong=verdict.verdict != "undecided",
        )
        rows.append(HypothesisRow(verdict, plot, needs_text(verdict.facts)))
    return {
        "rows": rows,
        "axis": charts.scale_axis(scale) if ends else "",
        "known": run.hypotheses is not None,
    }


@dataclass(frozen=True)
class CandidateRow:
    """A row of the table of candidates."""

    candidate: Candidate
    plot: object
    drop: float | None  # from the score in search to the score out of fold
    worst_name: str | None


def selection(run: Run) -> View:
    """Return every candidate with its interval on one scale, and why it votes or does not."""
    candidates = run.selection.candidates
    scale = _candidate_scale(candidates)
    rows = []
    for candidate in candidates:
        drop = None
        if candidate.search_score is not None and candidate.score is not None:
            drop = candidate.search_score - candidate.score
        worst = candidate.worst_class
        rows.append(
            CandidateRow(
                candidate,
                charts.interval(
                    candidate.low,
                    candidate.score,
                    candidate.high,
                    scale,
                    strong=candidate.chosen,
                ),
                drop,
                None if worst is None else run.class_name(worst),
            )
        )
    return {
        "rows": rows,
        "axis": charts.scale_axis(scale),
        "rule": run.selection.rule,
        "known": run.has_selection,
        "has_public_scores": any(row.candidate.board_score is not None for row in rows),
        "winner": run.selection.winner,
        "race": run.certificate and run.certificate.race,
    }


def _candidate_scale(candidates: tuple[Candidate, ...]) -> Scale | None:
    ends: list[float | None] = []
    for candidate in candidates:
        ends += [candidate.low, candidate.score, candidate.high]
    tight = Scale.around(ends, 0.0)
    if tight is None:
        return None
    room = 0.05 * (tight.high - tight.low) + 0.005
    return Scale(tight.low - room, tight.high + room)
