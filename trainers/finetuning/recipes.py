"""Named sets of settings of a training, by year. One that has a name is never changed.

Backbone, head and preparation are no part of a recipe: they depend on the task and on the machine.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

RecipeName = Literal["contest_2021", "finetune_2026"]
Settings = dict[str, Any]
"""A part of the section `train`, as JSON values."""


class Recipe(NamedTuple):
    """What a name stands for, and why."""

    settings: Settings
    basis: str
    """Where the settings come from, and what is known of their benefit."""


# all set the same keys, so that a variant with one recipe keeps nothing of another
RECIPES: dict[str, Recipe] = {
    "contest_2021": Recipe(
        {
            "loss": {"name": "focal", "gamma": 2.0},
            "optimizer": {"name": "adam", "lr": 1e-4, "weight_decay": 5e-4},
            "schedule": {"name": "reduce_on_plateau", "patience": 5},
            "augment": {"policy": "contest"},
            "balance": "none",
            "duration": "30 epochs",
            "batch_size": 32,
            "clip_norm": None,
            "unfreeze": None,
            "ema": None,
            "soup": None,
        },
        "what the contest's team kept fixed while it compared heads and augmentation; it published no "
        "intervals",
    ),
    "finetune_2026": Recipe(
        {
            "loss": {"name": "label_smoothing", "smoothing": 0.1},
            "optimizer": {
                "name": "adamw",
                "lr": 1e-3,
                "weight_decay": 0.05,
                "decay_norms": False,
                "layer_decay": 0.8,
            },
            "schedule": {"name": "cosine", "warmup": "1 epochs"},
            "augment": {"policy": "basic", "cutmix": {"name": "half", "p": 0.5}},
            "balance": "class_weights",
            "duration": "12 epochs",
            "batch_size": 32,
            "clip_norm": 1.0,
            "unfreeze": {"name": "upper", "share": 0.5},
            "ema": {"decay": 0.99, "warmup": True},
            "soup": None,
        },
        "the form of published fine-tuning recipes (AdamW, layer decay, warm-up and cosine as in BEiT "
        "and MAE, a moving average as in timm), the upper stages alone. Put first by the study's rule of "
        "robust selection, in .92 of the time of plain settings. Macro F1 over these: +.010 (-.014 to "
        "+.034) by the mean over a person, +.001 (-.027 to +.029) for each photo, on 500 people of real "
        "portraits, 2 seeds x 5 folds: undecided; +.084 (+.054 to +.113) on 600 digits: supported; +.006 "
        "(-.074 to +.087) on drawn leaves: undecided (experiments/LOG.md)",
    ),
}


def with_recipe(train: Settings) -> Settings:
    """Return a section `train` whose recipe is written out; one without a known recipe as it is.

    Settings beside the name win. A component with another name replaces the recipe's; one of the same
    name, or without a name, keeps those of the recipe's settings that it leaves out.
    """
    recipe = RECIPES.get(str(train.get("recipe")))
    if recipe is None:
        return train
    beside = {key: value for key, value in train.items() if key != "recipe"}
    return _over(recipe.settings, beside)


def recipe_changes(changes: Settings) -> Settings:
    """Return changes by dotted path, `train.recipe` among them written out.

    Args:
        changes: of a variant. Paths beside the name win, also those below a component.
    """
    if isinstance(changes.get("train"), dict):
        return {**changes, "train": with_recipe(changes["train"])}
    recipe = RECIPES.get(str(changes.get("train.recipe")))
    if recipe is None:
        return changes
    beside = {path: value for path, value in changes.items() if path != "train.recipe"}
    written = dict(_paths("train", recipe.settings))
    covered = [path for path in written if any(path.startswith(f"{key}.") for key in beside)]
    for path in covered:
        del written[path]
    return written | beside


def _paths(prefix: str, settings: Settings) -> Iterator[tuple[str, Any]]:
    """Yield dotted paths and values; a component with a name stays whole."""
    for key, value in settings.items():
        path = f"{prefix}.{key}"
        if isinstance(value, dict) and "name" not in value:
            yield from _paths(path, value)
        else:
            yield path, copy.deepcopy(value)


def recipe_value(name: str, path: str) -> Any:
    """Return what a recipe sets at a dotted path such as `train.optimizer.lr`; None if nothing."""
    value: Any = {"train": RECIPES[name].settings}
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _over(base: Settings, changes: Settings) -> Settings:
    """Return settings with others laid over them."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        there = result.get(key)
        given = {"name": value} if isinstance(value, str) and isinstance(there, dict) else value
        if isinstance(there, dict) and isinstance(given, dict):
            is_same = given.get("name", there.get("name")) == there.get("name")
            result[key] = _over(there, given) if is_same else given
        else:
            result[key] = value
    return result
