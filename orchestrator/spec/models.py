"""The experiment spec: its models, and what it resolves to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from data_prep.config import Data, Prep, TestTable
from data_prep.section import Positive, Section, Seed, how, identity
from orchestrator.base.keys import setting_id
from orchestrator.spec.search_space import Confirm, Search, apply
from orchestrator.spec.tracking import Track
from trainers.config import Train

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
VariantName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+.-]{0,62}$")]


class Select(Section):
    """Which finalists vote."""

    policy: Literal["robust", "validation", "leaderboard", "diverse"] | list[str] = "robust"
    members: Annotated[int, Field(ge=1, le=100)] = (
        3  # votes of the ensemble; diverse may give one member several
    )
    scores: dict[str, Annotated[float, Field(ge=0, le=1)]] | None = (
        None  # a leaderboard's, typed in by hand
    )

    @model_validator(mode="after")
    def _scores_are_of_a_board(self) -> Self:
        if self.scores is not None and self.policy != "leaderboard":
            raise ValueError(
                "scores are used by policy leaderboard alone; remove scores or choose that policy"
            )
        if self.scores is not None and not self.scores:
            raise ValueError("scores: at least one variant's score was required, found none")
        return self


class Vote(Section):
    """How members' classes become one."""

    rule: Literal["hard", "soft"] = "hard"


class Share(Section):
    """What one worker gets. GPUs may be fractions."""

    cpu: Annotated[float, Field(gt=0, le=1024)] = 1
    gpu: Annotated[float, Field(ge=0, le=64)] = 0

    @property
    def device(self) -> str:
        """Where torch computes with it."""
        return "cuda" if self.gpu else "cpu"


class PrepShare(Share):
    """What one worker of the preparation gets, and how long it may take for one photo before it is killed."""

    timeout_s: Annotated[float, Field(ge=1, le=86400)] = 120


class TrialShare(Share):
    """What one trial gets, and when it is ended: alone, marked FAILED with the reason."""

    wall_s: Positive | None = None
    report_s: Positive | None = 7200  # without a report it hangs; an epoch takes less
    memory_gb: Positive | None = None  # None: until the machine runs short of it


class Resources(Section):
    """How to run; changes no result, so it is part of no key."""

    per_trial: TrialShare = TrialShare()
    per_prep_worker: PrepShare = PrepShare()
    max_concurrent: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"


class Arm(Section):
    """One variant, resolved: what its trials train on and how."""

    data: Data
    prep: Prep
    train: Train


class Spec(Section):
    """A whole experiment."""

    version: Literal[1] = 1
    name: Name = how()
    seed: Seed = 0
    data: Data
    prep: Prep = Prep()
    train: Train = Train()
    variants: Annotated[dict[VariantName, dict[str, Any]], Field(min_length=1)] = {"base": {}}
    hypotheses: list[str] = []
    search: Search | None = None
    confirm: Confirm | None = Confirm()
    select: Select = Select()
    vote: Vote = Vote()
    track: Track = how(Track())
    resources: Resources = how(Resources())

    @model_validator(mode="after")
    def _robust_needs_confirm(self) -> Self:
        if self.confirm is None and self.select.policy in ("robust", "diverse"):
            raise ValueError(
                f"select.policy {self.select.policy} rests on out-of-fold predictions, which confirm: null leaves out; "
                "remove confirm: null or choose select.policy validation"
            )
        return self

    @model_validator(mode="after")
    def _a_board_needs_labels(self) -> Self:
        test = self.data.test
        if self.select.policy == "leaderboard" and self.select.scores is None:
            if (
                test is None
                or test.public is None
                or (isinstance(test, TestTable) and test.label is None)
            ):
                raise ValueError(
                    "select.policy leaderboard looks at the public half of a labelled test set; add data.test.public "
                    "(and data.test.label), or type the board's scores into select.scores: {variant: 0.79}"
                )
        elif isinstance(test, TestTable) and test.public is not None and test.label is None:
            raise ValueError(
                "data.test.public divides labelled test sets; add data.test.label or remove public"
            )
        return self

    @model_validator(mode="after")
    def _search_fits(self) -> Self:
        unknown = (
            sorted(set(self.search.variant_spaces) - set(self.variants)) if self.search else []
        )
        if unknown:
            raise ValueError(
                f"search.variant_spaces names {', '.join(unknown)}, the variants are {', '.join(self.variants)}"
            )
        limits = self.search.limits if self.search else None
        if limits and limits.gpu_hours is not None and not self.resources.per_trial.gpu:
            raise ValueError(
                "search.limits.gpu_hours needs resources.per_trial.gpu above 0, found 0"
            )
        return self


@dataclass(frozen=True)
class Experiment:
    """A checked spec with its resolved variants. `base` is the folder that data roots are relative to."""

    spec: Spec
    arms: dict[str, Arm]
    base: Path
    overrides: dict[str, Any]  # of --set
    text: str  # the file as given

    def resolved(self) -> dict[str, Any]:
        """Return the spec with every default written out and data roots made absolute, as `resume` reads it."""
        dumped: dict[str, Any] = self.spec.model_dump(mode="json", by_alias=True)
        dumped["data"]["source"]["root"] = str((self.base / self.spec.data.source.root).resolve())
        if isinstance(self.spec.data.test, TestTable):
            dumped["data"]["test"]["root"] = str((self.base / self.spec.data.test.root).resolve())
        return dumped

    def identity(self) -> dict[str, Any]:
        """Return what decides the run's result."""
        return identity(self.spec)

    def backbones(self) -> list[str]:
        """Return the backbones that some trial may want pretrained, those of the search space included."""
        found = set()
        for name, arm in self.arms.items():
            space = self.spec.search.space_of(name) if self.spec.search else {}
            wanted = (
                space["train.model.pretrained"].corners()
                if "train.model.pretrained" in space
                else []
            )
            if arm.train.model.pretrained or True in wanted:
                key = "train.model.backbone"
                found |= set(space[key].corners() if key in space else [arm.train.model.backbone])
        return sorted(found)

    def setting(self, variant: str, point: dict[str, Any]) -> tuple[str, Arm]:
        """Return id and resolved arm of a variant at one point of its search space."""
        arm = self.arms[variant]
        if point:
            arm = Arm.model_validate_json(
                json.dumps(apply(arm.model_dump(mode="json", by_alias=True), point))
            )
        return setting_id({**identity(arm), "data": known_to_training(arm.data)}), arm


def known_to_training(data: Data) -> dict[str, Any]:
    """Return what identifies a data section, without where test labels stand and who may see them: the vote's alone."""
    found = identity(data)
    if found["test"]:
        found["test"] = {
            name: value for name, value in found["test"].items() if name not in {"label", "public"}
        }
    return found


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a spec, for editors."""
    return Spec.model_json_schema(by_alias=True)
