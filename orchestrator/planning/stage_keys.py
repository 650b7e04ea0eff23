"""The keys of a run's artifacts: pure functions of spec, data and versions of the code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.label_codes import train_borders
from data_prep.preparation.step_identity import steps_identity
from data_prep.section_base import identity
from data_prep.weights.cache import is_fetched, recorded
from orchestrator.base.keys import digest, stage_key
from orchestrator.base.stage_versions import QUICK_BACKBONE, VERSIONS
from orchestrator.planning.run_environment import Scope
from orchestrator.spec.models import Arm, Experiment, known_to_training
from orchestrator.spec.score import DEFAULT
from trainers.settings.model import FrozenDeepHead


def run_key(scope: Scope) -> str:
    """Return the key of a run."""
    spec = scope.experiment.identity()
    return digest({"spec": spec, "versions": VERSIONS, "files": scope.files})


def catalog_key(scope: Scope) -> str:
    """Return the key of the catalog."""
    data = known_to_training(scope.experiment.spec.data)
    params = {name: data[name] for name in ("source", "test", "group", "join_duplicates")}
    labels = {}
    for name, label in data["labels"].items():  # `train_bins` changes no row of the catalog
        labels[name] = {field: value for field, value in label.items() if field != "train_bins"}
    params["labels"] = labels
    if data.get("unlabelled") == "keep":  # the others give one catalog, or none
        params["unlabelled"] = "keep"
    if "not_copies" in data:
        params["not_copies"] = data["not_copies"]
    return stage_key("catalog", VERSIONS["catalog"], params, {"files": scope.files})


def split_key(experiment: Experiment, arm: Arm, content: str) -> str:
    """Return the key of a variant's roles and folds. `content` is the catalog's hash."""
    confirm = experiment.spec.confirm
    params = {
        "split": identity(arm.data.split),
        "exclude": arm.data.exclude,
        "folds": confirm.folds if confirm else None,
        "seeds": confirm.seeds if confirm else None,
    }
    return stage_key("split", VERSIONS["split"], params, {"catalog": content})


def roles_key(arm: Arm, content: str) -> str:
    """Return the key of a variant's roles, which is all that search knows of a split."""
    params = {"split": identity(arm.data.split), "exclude": arm.data.exclude}
    return stage_key("split", VERSIONS["split"], params, {"catalog": content})


def audit_key(experiment: Experiment, content: str, *, probe: bool = False) -> str:
    """Return the key of an audit. `content` is the catalog's hash."""
    inputs = {"catalog": content}
    for name, arm in experiment.arms.items():
        inputs[f"split/{name}"] = split_key(experiment, arm, content)
    params = {"labels": identity(experiment.spec.data)["labels"], "probe": probe}
    params |= _other_score(experiment)
    if not is_fetched(QUICK_BACKBONE):  # once its weights are there, the audit is made again
        params["without"] = QUICK_BACKBONE
    return stage_key("audit", VERSIONS["audit"], params, inputs)


def prepare_key(arm: Arm, photos: str) -> str:
    """Return the key of a variant's set of shards. `photos` is the catalog's hash of them."""
    return stage_key("prepare", VERSIONS["prepare"], steps_identity(arm.prep), {"photos": photos})


def partial_key(whole: str, missing: Sequence[str]) -> str:
    """Return the key of a set of shards that lacks samples of the set with key `whole`."""
    return stage_key("prepare", VERSIONS["prepare"], {"without": list(missing)}, {"whole": whole})


def prepare_keys(experiment: Experiment, photos: str) -> dict[str, str]:
    """Return variant -> key of its whole set of shards."""
    return {name: prepare_key(arm, photos) for name, arm in experiment.arms.items()}


def rows_key(prepare: str) -> str:
    """Return the key of the array that holds the rows of a set of shards."""
    return stage_key("rows", VERSIONS["rows"], {}, {"prepare": prepare})


def search_key(experiment: Experiment, content: str, prepared: Mapping[str, str]) -> str:
    """Return the key of a finished search.

    Args:
        experiment: to run.
        content: the catalog's hash.
        prepared: variant -> key of its set of shards.
    """
    spec = experiment.spec
    arms = experiment.arms
    params: dict[str, Any] = {
        "seed": spec.seed,
        "search": identity(spec.search) if spec.search else None,
        "train": {name: identity(arm.train) for name, arm in arms.items()},
        "trial": VERSIONS["trial"],
        "train_bins": {name: train_borders(arm.data.labels) for name, arm in arms.items()},
    }
    params |= _other_score(experiment)
    params |= _search_folds(experiment)
    inputs = _training_inputs(experiment, content, prepared)
    return stage_key("search", VERSIONS["search"], params, inputs)


def _search_folds(experiment: Experiment) -> dict[str, Any]:
    """Return the trainings of a setting, and how folds are dealt; nothing where it has one training."""
    search = experiment.spec.search
    confirm = experiment.spec.confirm
    if search is None or confirm is None or search.folds is None:
        return {}
    steps = [list(step) for step in search.fold_steps(confirm)]
    return {"fold_steps": steps, "n_folds": confirm.folds}


def _other_score(experiment: Experiment) -> dict[str, str]:
    """Return the score of the spec, which epochs are chosen by; nothing where it is macro F1."""
    score = experiment.spec.score
    return {} if score == DEFAULT else {"score": score}


def study_families(
    experiment: Experiment, content: str, prepared: Mapping[str, str]
) -> dict[str, str]:
    """Return variant -> digest of all that decides one of its search trials and the suggestions.

    Left out are the number of trials, limits, starting points and the space: with another one of
    these the same study goes on. A variant that depends on another variant's best trial has no
    family, because it is another study when that variant has more trials.
    """
    search = experiment.spec.search
    if search is None:
        return {}
    inputs = _training_inputs(experiment, content, prepared)
    weights = {name: sha256 for name, sha256 in inputs.items() if name.startswith("weights/")}
    families = {}
    for name, arm in experiment.arms.items():
        if isinstance(arm.train.model.head, FrozenDeepHead):
            continue
        parts = {
            "seed": experiment.spec.seed,
            "sampler": search.sampler,
            "scheduler": identity(search.scheduler),
            "variant": name,
            "train": identity(arm.train),
            "versions": [VERSIONS["search"], VERSIONS["trial"]],
            "train_bins": train_borders(arm.data.labels),
            "split": inputs[f"split/{name}"],
            "prepare": inputs[f"prepare/{name}"],
            **weights,
            **_other_score(experiment),
            **_search_folds(experiment),
        }
        if search.counts_parameters:
            parts["objectives"] = search.objectives
        families[name] = digest(parts)
    return families


def confirm_key(
    experiment: Experiment, content: str, prepared: Mapping[str, str], finalists: Sequence[str]
) -> str:
    """Return the key of a finished confirmation.

    The order of the finalists counts where a head depends on the best setting of its source, and in
    a race, which never stops the best setting of an arm that a claim names.
    """
    arms = experiment.arms.values()
    spec = experiment.spec
    confirm = spec.confirm
    is_race = confirm is not None and confirm.race
    is_frozen = any(isinstance(arm.train.model.head, FrozenDeepHead) for arm in arms)
    is_ordered = is_race or is_frozen
    params: dict[str, Any] = {
        "confirm": identity(confirm) if confirm else None,
        "finalists": list(finalists) if is_ordered else sorted(finalists),
        "trial": VERSIONS["trial"],
        **_other_score(experiment),
    }
    if is_race:
        params["race"] = {
            "members": spec.select.members,
            "hypotheses": spec.hypotheses,
            "without_val": spec.search is not None,
        }
        if spec.vote.group_mean:
            params["race"]["group_mean"] = spec.vote.group_mean
    inputs = _training_inputs(experiment, content, prepared)
    for name, arm in experiment.arms.items():
        inputs[f"split/{name}"] = split_key(experiment, arm, content)
    return stage_key("confirm", VERSIONS["confirm"], params, inputs)


def _training_inputs(
    experiment: Experiment, content: str, prepared: Mapping[str, str]
) -> dict[str, str]:
    inputs: dict[str, str] = {}
    for name in experiment.backbones():  # pinned weights have no record: their name is enough
        for sha256 in recorded(name).values():
            inputs[f"weights/{name}"] = sha256
    for name, arm in experiment.arms.items():
        inputs[f"split/{name}"] = roles_key(arm, content)
        inputs[f"prepare/{name}"] = prepared[name]
    return inputs
