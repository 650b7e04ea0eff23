"""What trackers tell of the ensemble of a run, from the files of the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.report.confusion_matrices import Answers
from orchestrator.report.load import Run, load


@dataclass(frozen=True)
class EnsembleFacts:
    """The scores of the ensemble, and its answers where the true classes are known."""

    scores: dict[str, float]  # such as oof_macro_f1, oof_macro_f1_low, test_macro_f1
    members: tuple[str, ...]
    classes: tuple[str, ...]  # names, in the order of their numbers
    answers: Answers | None  # of the out-of-fold vote


def ensemble_facts(root: Path) -> EnsembleFacts | None:
    """Return what is known of a run's ensemble; None while it has none."""
    run = load(root)
    if not run.members or run.schema is None:
        return None
    classes = tuple(run.class_name(number) for number in range(run.schema.n_classes))
    return EnsembleFacts(_scores(run), run.members, classes, run.answers.get("oof"))


def _scores(run: Run) -> dict[str, float]:
    """Return every score of the ensemble with the ends of its interval, by part and metric."""
    scores: dict[str, float] = {}
    ensemble = run.selection.ensemble
    for part, of_part in (("oof", ensemble.oof), ("test", ensemble.test)):
        for metric, score in of_part.metrics.items():
            ends = {"": score.estimate, "_low": score.low, "_high": score.high}
            for end, value in ends.items():
                if value is not None:
                    scores[f"{part}_{metric}{end}"] = value
    if ensemble.corrected is not None and ensemble.corrected.estimate is not None:
        name = "score" if "score" in ensemble.oof.metrics else "macro_f1"
        scores[f"corrected_{name}"] = ensemble.corrected.estimate
    return scores
