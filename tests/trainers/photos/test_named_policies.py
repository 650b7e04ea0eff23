"""Named policies beside torchvision's: the same operations, the same ranges, the same pixels."""

import random

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, autoaugment

from trainers.config import Train
from trainers.photos.named_policies import photo_policy, space_of
from trainers.photos.operations import OPERATIONS
from trainers.settings.policies import AugMix, RandAugment, TrivialAugment

BLACK = (0, 0, 0)
SIDE = 96
THEIR_NAMES = {name.replace("_", ""): name for name in OPERATIONS}


def smooth_photo():
    """Return a photo without hard edges, where rules of rounding and of interpolation agree."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    channels = [60 + 120 * x * y, 200 - 150 * y, 110 + 70 * np.sin(5 * x + 3 * y)]
    return np.stack(channels, 2).astype(np.uint8)


def theirs(photo, name, strength):
    tensor = torch.from_numpy(photo).permute(2, 0, 1)
    bilinear = InterpolationMode.BILINEAR
    result = autoaugment._apply_op(tensor, name, strength, bilinear, [0.0, 0.0, 0.0])
    return result.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("name", "strength"),
    [
        ("Identity", 0.0),
        ("ShearX", 0.3),
        ("ShearY", -0.2),
        ("TranslateX", 13.0),
        ("TranslateY", -7.0),
        ("Rotate", 25.0),
        ("Rotate", -110.0),
        ("Brightness", 0.5),
        ("Brightness", -0.9),
        ("Color", 0.8),
        ("Color", -0.8),
        ("Contrast", 0.7),
        ("Contrast", -0.7),
        ("Sharpness", 0.9),
        ("Sharpness", -0.9),
        ("Posterize", 8),
        ("Posterize", 3),
        ("Solarize", 130.0),
        ("Solarize", 255.0),
        ("AutoContrast", 0.0),
        ("Equalize", 0.0),
    ],
)
def test_an_operation_gives_torchvision_s_pixels(name, strength):
    photo = smooth_photo()
    ours = OPERATIONS[THEIR_NAMES[name.lower()]](photo, strength, BLACK)
    expected = theirs(photo, name, strength)
    difference = np.abs(ours.astype(int) - expected.astype(int))
    inside = difference[3:-3, 3:-3]
    assert np.quantile(inside, 0.98) <= 2  # torchvision cuts fractions off, here they are rounded
    assert inside.mean() <= 1
    assert np.array_equal(photo, smooth_photo())


def test_operations_of_one_table_give_equal_pixels_on_noise():
    photo = np.random.default_rng(0).integers(30, 220, (SIDE, SIDE, 3), dtype=np.uint8)
    for name, strength in [("Posterize", 4), ("Solarize", 99.0), ("Equalize", 0.0)]:
        ours = OPERATIONS[THEIR_NAMES[name.lower()]](photo, strength, BLACK)
        np.testing.assert_array_equal(theirs(photo, name, strength), ours)
    flat = np.full((8, 8, 3), 77, np.uint8)
    for name in ("auto_contrast", "equalize"):
        np.testing.assert_array_equal(flat, OPERATIONS[name](flat, 0, BLACK))


@pytest.mark.parametrize(
    ("settings", "reference", "n_bins"),
    [
        (RandAugment(), autoaugment.RandAugment(), 31),
        (TrivialAugment(space="rand_augment"), autoaugment.RandAugment(), 31),
        (TrivialAugment(), autoaugment.TrivialAugmentWide(), 31),
        (AugMix(), autoaugment.AugMix(all_ops=False), 10),
        (AugMix(all_operations=True), autoaugment.AugMix(all_ops=True), 10),
    ],
    ids=["rand", "trivial", "wide", "augmix", "augmix all"],
)
def test_a_policy_has_torchvision_s_operations_and_strengths(settings, reference, n_bins):
    space = space_of(settings)
    is_wide = isinstance(reference, autoaugment.TrivialAugmentWide)
    sizes = () if is_wide else ((SIDE, SIDE),)
    known = reference._augmentation_space(n_bins, *sizes)
    assert {name.lower() for name in known} == {name.replace("_", "") for name in space}
    for name, (strengths, is_signed) in known.items():
        ours = space[THEIR_NAMES[name.lower()]]
        assert is_signed == ours.is_signed, name
        if strengths.ndim:
            levels = [ours.at_level(i / (n_bins - 1), SIDE) for i in range(n_bins)]
            np.testing.assert_allclose(strengths.numpy(), levels, rtol=1e-5, atol=1e-5)


def test_rand_augment_draws_each_operation_and_both_directions():
    photo = np.full((32, 32, 3), 200, np.uint8)
    photo[:, :16] = 90
    change = photo_policy(RandAugment(n=1, magnitude=20, flip=0))
    seen = {change(photo, random.Random(seed)).tobytes() for seed in range(400)}
    assert 18 <= len(seen) <= 23  # 14 operations, nine of them in two directions; some are equal
    doubled = photo_policy(RandAugment(n=2, magnitude=20, flip=0))
    assert len({doubled(photo, random.Random(seed)).tobytes() for seed in range(400)}) > 60


def test_a_larger_magnitude_changes_more():
    photo = smooth_photo()

    def change_by(magnitude):
        policy = photo_policy(RandAugment(magnitude=magnitude, flip=0))
        total = 0.0
        for seed in range(60):
            changed = policy(photo, random.Random(seed)).astype(float)
            total += np.abs(changed - photo).mean()
        return total

    assert change_by(3) < change_by(10) < change_by(30)


def test_aug_mix_stays_close_to_the_photo_and_no_chain_returns_it():
    photo = smooth_photo()
    policy = photo_policy(AugMix(severity=1, flip=0))
    for seed in range(20):
        mixed = policy(photo, random.Random(seed))
        assert mixed.dtype == np.uint8
    tiny = photo_policy(AugMix(alpha=100.0, flip=0))
    halves = [tiny(photo, random.Random(seed)).astype(float) for seed in range(40)]
    policy = photo_policy(RandAugment(n=3, flip=0))
    whole = [policy(photo, random.Random(seed)).astype(float) for seed in range(40)]
    assert np.abs(halves - photo.astype(float)).mean() < np.abs(whole - photo.astype(float)).mean()


def test_photos_are_mirrored_as_often_as_the_setting_says():
    photo = np.zeros((4, 4, 3), np.uint8)
    photo[:, 0] = 100
    policy = photo_policy(RandAugment(n=1, magnitude=0, flip=0.25))
    n_flipped = sum(policy(photo, random.Random(seed))[0, 3, 0] > 50 for seed in range(1000))
    assert 200 < n_flipped < 300


def test_open_pixels_get_the_color_of_the_setting():
    photo = np.full((16, 16, 3), 50, np.uint8)
    shifted = OPERATIONS["translate_x"](photo, 4, (1, 2, 3))
    np.testing.assert_array_equal([[1, 2, 3]] * 4, shifted[0, :4])
    np.testing.assert_array_equal(photo[:, 4:], shifted[:, 4:])


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("rand_augmnt", "did you mean 'rand_augment'"),
        ({"name": "rand_augment", "magnitude": 31}, "less than or equal to 30"),
        ({"name": "trivial_augment", "n": 2}, "Extra inputs"),
    ],
    ids=str,
)
def test_a_wrong_policy_is_refused(policy, message):
    with pytest.raises(ValueError, match=message):
        Train.model_validate({"augment": {"policy": policy}})


def test_a_bare_name_is_the_policy_with_its_defaults():
    bare = Train.model_validate({"augment": {"policy": "rand_augment"}})
    written = Train.model_validate({"augment": {"policy": {"name": "rand_augment", "n": 2}}})
    assert bare == written
    again = Train.model_validate_json(bare.model_dump_json(by_alias=True))
    assert bare == again
    plain = Train().model_dump(mode="json", by_alias=True)["augment"]
    assert {"policy": "basic", "cutmix": {"name": "none"}, "mixup": {"name": "none"}} == plain
