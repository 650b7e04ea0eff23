import pytest

from data_prep.section_base import identity
from trainers.config import Train
from trainers.finetuning.recipes import RECIPES, recipe_changes, recipe_value, with_recipe


def resolved(**settings):
    return Train.model_validate(settings)


def test_all_recipes_set_the_same_keys_and_are_valid():
    keys = {frozenset(recipe.settings) for recipe in RECIPES.values()}
    assert 1 == len(keys)
    for name, recipe in RECIPES.items():
        assert recipe.basis
        assert resolved(recipe=name) == resolved(**recipe.settings)
        assert "recipe" not in identity(resolved(recipe=name))


def test_the_contest_recipe_has_the_settings_of_the_team():
    train = resolved(recipe="contest_2021")
    assert ("adam", 1e-4, 5e-4) == (
        train.optimizer.name,
        train.optimizer.lr,
        train.optimizer.weight_decay,
    )
    assert ("reduce_on_plateau", 5) == (train.schedule.name, train.schedule.patience)
    assert ("focal", 2.0, 32, "30 epochs") == (
        train.loss.name,
        train.loss.gamma,
        train.batch_size,
        train.duration,
    )


def test_settings_beside_the_name_win_piece_by_piece():
    train = resolved(
        recipe="finetune_2026", optimizer={"lr": 1e-4}, schedule="one_cycle", ema=None, batch_size=8
    )
    assert ("adamw", 1e-4, 0.05) == (
        train.optimizer.name,
        train.optimizer.lr,
        train.optimizer.weight_decay,
    )
    assert ("one_cycle", None, 8) == (train.schedule.name, train.ema, train.batch_size)
    other = resolved(recipe="finetune_2026", optimizer={"name": "sgd", "momentum": 0.8})
    assert (0.8, 1.0, 5e-4) == (
        other.optimizer.momentum,
        other.optimizer.layer_decay,
        other.optimizer.weight_decay,
    )


def test_an_unknown_recipe_is_left_for_the_message_of_the_model():
    assert {"recipe": "best"} == with_recipe({"recipe": "best"})
    with pytest.raises(ValueError, match="'contest_2021' or 'finetune_2026'"):
        resolved(recipe="best")


def test_changes_of_a_variant_are_written_out_and_those_beside_win():
    changes = recipe_changes(
        {"train.recipe": "finetune_2026", "train.ema": None, "train.optimizer.lr": 0.1}
    )
    assert "train.recipe" not in changes
    assert (None, 0.1) == (changes["train.ema"], changes["train.optimizer.lr"])
    assert "train.ema.decay" not in changes
    assert "basic" == changes["train.augment.policy"]
    assert "adamw" == changes["train.optimizer"]["name"]
    assert {"train.loss": "focal"} == recipe_changes({"train.loss": "focal"})


def test_what_a_recipe_sets_is_found_by_its_path():
    assert 1e-3 == recipe_value("finetune_2026", "train.optimizer.lr")
    assert "adamw" == recipe_value("finetune_2026", "train.optimizer.name")
    assert recipe_value("finetune_2026", "train.model.head") is None
