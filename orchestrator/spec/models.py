"""The experiment spec: its models, and what it resolves to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from data_prep.config import Data, TestTable
from data_prep.prep_config import Prep
from data_prep.roots.places import is_url
from data_prep.section_base import BARE_NAME, Positive, Section, Seed, how, identity, since
from orchestrator.base.keys import setting_id
from orchestrator.spec.score import DEFAULT, Score, ScoreText, parse_score
from orchestrator.spec.search_space import Confirm, Plain, Point, Search, Space, apply
from orchestrator.spec.tracking import Track
from trainers.config import Train

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
VariantName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+.-]{0,62}$")]


class NoAdjustment(Section):
    """Members answer as they were trained."""

    name: Literal["none"] = "none"


class PriorAdjustment(Section):
    """Divide probabilities by (share of the class)^tau (Menon et al. 2021, section 4.1).

    Shares are counted per label over groups, each once.
    """

    name: Literal["logit_adjustment"] = "logit_adjustment"
    tau: Positive = 1.0
    """Strength: 1 answers as if classes were alike, less goes part of the way."""


class FittedAdjustment(Section):
    """A temperature per label and a shift per class, by the least out-of-fold log loss."""

    name: Literal["fitted"] = "fitted"
    classes: Literal["alike", "as_found"] = "alike"
    """What the fit aims at: classes that count alike, as macro F1 counts them, or as often as found."""


Adjust = NoAdjustment | PriorAdjustment | FittedAdjustment


class Select(Section):
    """Which finalists vote."""

    policy: Literal["robust", "validation", "leaderboard", "diverse"] | list[str] = "robust"
    """How members are chosen: by out-of-fold intervals, by search scores, by the public half, by
    greedy gain, or a list of variants.
    """
    members: Annotated[int, Field(ge=1, le=100)] = 3
    """Votes of the ensemble; policy diverse may give one member several."""
    scores: dict[str, Annotated[float, Field(ge=0, le=1)]] | None = None
    """Scores of a leaderboard, typed in by hand."""
    adjust: Annotated[Annotated[Adjust, Field(discriminator="name")], BARE_NAME] = since(
        NoAdjustment()
    )
    """Move the answers of every candidate, fitted on out-of-fold answers of other groups."""

    @model_validator(mode="after")
    def _scores_fit_the_policy(self) -> Self:
        if self.scores is not None and self.policy != "leaderboard":
            raise ValueError(
                "scores are used only by policy leaderboard; remove scores or choose that policy"
            )
        if self.scores is not None and not self.scores:
            raise ValueError("scores: at least one variant's score was required, found none")
        return self


class Vote(Section):
    """How the classes that members predict become one."""

    rule: Literal["hard", "soft"] = "hard"
    """`hard` counts votes, `soft` adds probabilities."""
    group_mean: list[str] = since([])
    """Labels whose probabilities are the mean over the photos of a group, in every training's answers:
    out of fold, and on the test set, whose groups must be known."""
    calibrate: bool = since(default=False)
    """State confidences at a temperature per label, fitted out of fold. No answer changes by it."""


class Share(Section):
    """What one worker gets. GPUs may be fractions."""

    cpu: Annotated[float, Field(gt=0, le=1024)] = 1
    """CPU cores; also the threads of every library in it."""


class PrepShare(Share):
    """What one worker of the preparation gets, and its time limit per photo."""

    gpu: Annotated[float, Field(ge=0, le=64)] = 0
    """GPUs; 0.5 lets two share one."""
    timeout_s: Annotated[float, Field(ge=1, le=86400)] = 120
    """Seconds for one photo; two timeouts quarantine it."""


class TrialShare(Share):
    """What one trial gets, and its limits; beyond a limit it ends as FAILED, with the reason."""

    gpu: Annotated[float, Field(ge=0, le=64)] | Literal["auto"] = 0
    """GPUs; 0.5 lets two share one. `auto`: as many trials share one as the first of each size
    shows to fit; 0 where there is none.
    """
    wall_s: Positive | None = None
    """Seconds for one trial; null for no limit."""
    report_s: Positive | None = 7200  # without a report for so long, the trial hangs
    """Seconds between two reports, after which a trial counts as hung."""
    memory_gb: Positive | None = None  # None: until the machine runs short of memory
    """Memory of one trial; null: until the machine runs short of it."""

    @property
    def least_gpu(self) -> float:
        """GPUs without which no trial starts; `auto` does without."""
        return 0.0 if self.gpu == "auto" else self.gpu

    @property
    def device(self) -> str:
        """The torch device, once it is known what `auto` means."""
        return "cuda" if self.gpu else "cpu"

    def on(self, n_gpus: float) -> TrialShare:
        """Return the share on a cluster: there `auto` is a card, or none."""
        if self.gpu != "auto":
            return self
        return self.model_copy(update={"gpu": 1.0 if n_gpus >= 1 else 0.0})

    @model_validator(mode="after")
    def _one_card(self) -> Self:
        if self.least_gpu > 1:
            raise ValueError(
                f"gpu: at most 1 was required, found {self.least_gpu:g}: a trial trains on one card; "
                "with gpu: auto, 1 or a fraction, several trials keep several cards busy"
            )
        return self


class Resources(Section):
    """How to run; it changes no result, so it is part of no key."""

    per_trial: TrialShare = TrialShare()
    """What one training gets."""
    per_prep_worker: PrepShare = PrepShare()
    """What one worker of the preparation gets."""
    max_concurrent: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Trainings at a time; `auto` for as many as fit."""
    priority: Annotated[int, Field(ge=-1000, le=1000)] = since(0)
    """Runs of a higher number go first on a shared cluster; others yield between their trials."""


class Report(Section):
    """What the page of a run shows; it changes no result, so it is part of no key."""

    photos: bool = True
    """Show photos: crops of prepared ones, copies as pairs. `false` where nobody may see them."""


class Arm(Section):
    """One variant, resolved: what its trials train on and how."""

    data: Data
    prep: Prep
    train: Train


class Spec(Section):
    """A whole experiment."""

    version: Literal[1] = 1
    """Version of this format."""
    name: Name = how()
    """Name of the experiment; the run's id begins with it."""
    seed: Seed = 0
    """Seed of search and of its trainings."""
    data: Data
    """Photos, labels, groups, split."""
    prep: Prep = Prep()
    """From a photo to a training sample."""
    train: Train = Train()
    """One training; variants and search change it."""
    variants: Annotated[dict[VariantName, Point], Field(min_length=1)] = {"base": {}}
    """Name -> dotted paths and values that differ from the rest of the spec."""
    score: ScoreText = since(DEFAULT)
    """The one number that a run maximizes and promises: `macro_f1`, `accuracy` or
    `balanced_accuracy` of all labels together, one of them `of LABEL`, or `mean of labels` (the
    mean of the labels' macro F1). Search, finalists, members, claims and headline go by it.
    """
    hypotheses: list[str] = []
    """Claims about variants, such as `half > none`, tested at the end."""
    subgroups: list[str] = since([])
    """Columns of the table. Their values get scores of their own, as those of the labels do."""
    search: Search | None = None
    """Which settings are tried; null trains each variant once."""
    confirm: Confirm | None = Confirm()
    """How finalists are trained again; null trusts the search."""
    select: Select = Select()
    """Which finalists vote."""
    vote: Vote = Vote()
    """How votes become an answer."""
    report: Report = how(Report(), exclude_if=lambda value: bool(value == Report()))
    """What the page of a run shows."""
    track: Track = how(Track())
    """What else is told of a run: W&B, TensorBoard."""
    resources: Resources = how(Resources())
    """CPUs, GPUs and limits; they change no result."""

    @property
    def parsed_score(self) -> Score:
        """The score that the run goes by."""
        return parse_score(self.score)

    @model_validator(mode="after")
    def _score_is_of_a_label(self) -> Self:
        self.parsed_score.require_label(self.data.labels, "score")
        return self

    @model_validator(mode="after")
    def _robust_needs_confirm(self) -> Self:
        if self.confirm is None and self.select.policy in ("robust", "diverse"):
            raise ValueError(
                f"select.policy {self.select.policy} depends on out-of-fold predictions, "
                "which confirm: null leaves out; "
                "remove confirm: null or choose select.policy validation"
            )
        return self

    @model_validator(mode="after")
    def _race_fits(self) -> Self:
        if self.confirm is None or not self.confirm.race:
            return self
        if self.select.policy != "robust":
            raise ValueError(
                "confirm.race stops finalists by their out-of-fold scores, which policy robust "
                f"chooses by; found select.policy {self.select.policy}; remove race or the policy"
            )
        if len(self.confirm.seeds) < 2:
            raise ValueError(
                "confirm.race looks after each seed but the last; 2 seeds were required, found "
                f"{len(self.confirm.seeds)}; add seeds or remove race"
            )
        return self

    @model_validator(mode="after")
    def _public_half_needs_labels(self) -> Self:
        test = self.data.test
        is_public = test is not None and test.public is not None
        is_unlabelled = isinstance(test, TestTable) and test.label is None
        reads_public = self.select.policy == "leaderboard" and self.select.scores is None
        if reads_public and (not is_public or is_unlabelled):
            raise ValueError(
                "select.policy leaderboard looks at the public half of a labelled test set; "
                "add data.test.public (and data.test.label), "
                "or type the leaderboard's scores into select.scores: {variant: 0.79}"
            )
        if is_public and is_unlabelled:
            raise ValueError(
                "data.test.public divides labelled test sets; add data.test.label or remove public"
            )
        return self

    @model_validator(mode="after")
    def _answer_has_a_column_per_label(self) -> Self:
        answer = self.data.test.answer if isinstance(self.data.test, TestTable) else None
        labels = list(self.data.labels)
        if isinstance(answer, list) and len(answer) != len(labels):
            raise ValueError(
                f"data.test.answer: one column per label ({', '.join(labels)}) was required, "
                f"found {', '.join(answer)}"
            )
        return self

    @model_validator(mode="after")
    def _search_fits(self) -> Self:
        if self.search is None:
            return self
        unknown = sorted(set(self.search.variant_spaces) - set(self.variants))
        if unknown:
            known = ", ".join(self.variants)
            raise ValueError(
                f"search.variant_spaces names {', '.join(unknown)}, the variants are {known}"
            )
        limits = self.search.limits
        if limits and limits.gpu_hours is not None and not self.resources.per_trial.gpu:
            raise ValueError(
                "search.limits.gpu_hours needs resources.per_trial.gpu above 0, found 0"
            )
        return self


@dataclass(frozen=True)
class Experiment:
    """A checked spec with its resolved variants. `base` is the folder of relative data roots."""

    spec: Spec
    arms: dict[str, Arm]
    base: Path
    overrides: Point  # of --set
    text: str  # the file as given
    code: dict[str, Path] = field(default_factory=dict)  # name -> file of the user's own parts
    lost_code: tuple[str, ...] = ()  # names of such files that are not there as they were

    def resolved(self) -> Plain:
        """Return the spec with all defaults and absolute data roots, as `resume` reads it."""
        dumped: Plain = self.spec.model_dump(mode="json", by_alias=True)
        data = dumped["data"]
        data["source"]["root"] = self._absolute(self.spec.data.source.root)
        if isinstance(self.spec.data.test, TestTable):
            data["test"]["root"] = self._absolute(self.spec.data.test.root)
        return dumped

    def _absolute(self, root: str) -> str:
        return root if is_url(root) else str((self.base / root).resolve())

    def identity(self) -> Plain:
        """Return what decides the run's result; files of weights are known by their sha256."""
        facts = identity(self.spec)
        for changes in facts["variants"].values():
            changes.pop("train.model.weights", None)
        return facts

    def backbones(self) -> list[str]:
        """Return the backbones that some trial may load pretrained, in or out of a search space."""
        names: set[str] = set()
        for variant, arm in self.arms.items():
            model = arm.train.model
            space = self.spec.search.space_of(variant) if self.spec.search else {}
            pretrained = [model.pretrained, *_corners(space, "train.model.pretrained")]
            if any(pretrained) and model.weights is None:
                corners = _corners(space, "train.model.backbone") or [model.backbone]
                names |= {name for name in corners if isinstance(name, str)}
        return sorted(names)

    def setting(self, variant: str, point: Point) -> tuple[str, Arm]:
        """Return id and resolved arm of a variant at one point of its search space."""
        arm = self.arms[variant]
        if point:
            data = apply(arm.model_dump(mode="json", by_alias=True), point)
            arm = Arm.model_validate_json(json.dumps(data))
        return setting_id({**identity(arm), "data": known_to_training(arm.data)}), arm


def _corners(space: Space, path: str) -> list[Any]:
    return space[path].corners() if path in space else []


def known_to_training(data: Data) -> Plain:
    """Return what identifies a data section for training.

    Left out are the test labels, who may see them, and the form of the answer: only the vote
    depends on those.
    """
    facts = identity(data)
    if facts["test"]:
        for name in ("label", "public", "answer"):
            facts["test"].pop(name, None)
    return facts


def schema() -> Plain:
    """Return the JSON Schema of a spec, for editors."""
    from orchestrator.spec.descriptions import add_descriptions, sections  # noqa: PLC0415

    described: Plain = Spec.model_json_schema(by_alias=True)
    add_descriptions(described, sections(Spec))
    return described
