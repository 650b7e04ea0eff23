"""What selection.json and certificate.json hold of an ensemble's answers beside the score."""

from __future__ import annotations

from orchestrator.store.run_files.records import FileRecord
from orchestrator.store.run_files.scores import Score


class SubgroupScore(FileRecord):
    """The scores on the photos that share a value of a label or of a column."""

    column: str = ""
    value: str = ""
    macro_f1: Score = Score()
    accuracy: Score = Score()
    score: Score | None = None  # by the score of the spec; None where that is macro F1
    is_one_class: bool = False

    @property
    def headline(self) -> Score:
        """The score that the spec goes by; of photos of one class, their recall.

        Their F1 counts no photo of another class that is taken for this one.
        """
        if self.is_one_class:
            return self.accuracy
        return self.score or self.macro_f1


class SuspectLabel(FileRecord):
    """Photos of one person whose given class the models doubt."""

    group: str = ""
    label: str = ""
    given: str = ""
    suggested: str = ""
    confidence: float | None = None  # of the given class
    suggested_confidence: float | None = None
    n_photos: int | None = None
    n_photos_read_so: int | None = None
    sample_ids: tuple[str, ...] = ()


class LabelNoise(FileRecord):
    """Likely wrong labels, the most suspect first, and the score without them."""

    method: str = ""
    n_suspects: int | None = None
    n_groups: int | None = None
    n_photos: int | None = None
    macro_f1_without: Score | None = None
    score_without: Score | None = None  # by the score of the spec, where it is another
    suspects: tuple[SuspectLabel, ...] = ()

    @property
    def without(self) -> Score | None:
        """The score without the suspects that the spec goes by."""
        return self.score_without or self.macro_f1_without


def are_many(noise: LabelNoise, whole: Score | None) -> bool:
    """Return True if the models doubt more than a tenth of the photos that a score counts.

    Weak models doubt right labels; carefully labelled sets have a few wrong ones in a hundred
    (Northcutt, Athalye and Mueller 2021).
    """
    n_photos = whole.n_samples if whole else None
    return bool(n_photos and noise.n_photos and noise.n_photos > 0.1 * n_photos)


class Change(FileRecord):
    """A number before and after, and the interval of after minus before."""

    before: float | None = None
    after: float | None = None
    low: float | None = None
    high: float | None = None


class LabelCalibration(FileRecord):
    """The temperature of one label, judged on people that it was not fitted on."""

    label: str = ""
    temperature: float | None = None
    helps: bool = False
    log_loss: Change = Change()
    calibration_error: Change = Change()


class PartScore(FileRecord):
    """The score on other photos than the headline's."""

    n_photos: int | None = None  # that are left out of the headline's, or added to them
    macro_f1: Score = Score()
    score: Score | None = None  # by the score of the spec; None where that is macro F1

    @property
    def headline(self) -> Score:
        """The score that the spec goes by."""
        return self.score or self.macro_f1


class Diagnosed(FileRecord):
    """The fields that selection.json's ensemble and certificate.json share."""

    subgroups: tuple[SubgroupScore, ...] = ()
    label_noise: LabelNoise = LabelNoise()
    calibration: tuple[LabelCalibration, ...] = ()
    kept: PartScore | None = None  # without the photos that exclusions keep out of training
    lost: PartScore | None = None  # with the photos lost in preparation, counted as wrong
