"""What happens to a photo depends on the photo and (seed, epoch, row) alone."""

import numpy as np
import pytest

from trainers.config import Train
from trainers.data import ahead
from trainers.library_names import settings_of
from trainers.photos import augmentation
from trainers.settings.policies import AugMix, Erasing, RandAugment, TrivialAugment

FLIP = [{"name": "HorizontalFlip", "p": 0.5}]
NAMED = [RandAugment(), TrivialAugment(), AugMix(), AugMix(all_operations=True)]
PHOTOS = np.random.default_rng(0).integers(0, 255, (24, 16, 16, 3), dtype=np.uint8)
ROWS = np.arange(100, 124)


@pytest.mark.parametrize("erasing", [None, Erasing()], ids=["", "erasing"])
@pytest.mark.parametrize("policy", [*augmentation.POLICIES, FLIP, *NAMED], ids=str)
def test_a_photo_comes_out_the_same_in_any_batch_and_on_any_number_of_threads(policy, erasing):
    run = augmentation.build(policy, erasing)
    if run is None:
        return

    def part(rows):
        return run(PHOTOS[rows - 100].copy(), augmentation.sample_seeds(7, 3, rows))

    whole = part(ROWS)
    again = np.concatenate(list(ahead(part, np.split(ROWS[::-1], 8), 3)))[::-1]
    np.testing.assert_array_equal(whole, again)
    other = run(PHOTOS.copy(), augmentation.sample_seeds(7, 4, ROWS))
    assert not np.array_equal(whole, other)
    assert not np.array_equal(whole, PHOTOS)


def test_half_of_all_photos_are_flipped():
    rows = np.arange(2000)
    photos = np.arange(2, dtype=np.uint8)[None, None, :, None].repeat(2000, 0).repeat(3, 3)
    flipped = (
        augmentation.build(FLIP)(photos.copy(), augmentation.sample_seeds(0, 1, rows))[:, 0, 0, 0]
        == 1
    )
    assert 900 < flipped.sum() < 1100
    run = augmentation.build([{"name": "HorizontalFlip", "p": 1.0}])
    np.testing.assert_array_equal(
        PHOTOS[:, :, ::-1], run(PHOTOS.copy(), augmentation.sample_seeds(0, 1, ROWS))
    )
    np.testing.assert_array_equal(photos[~flipped], photos[:1].repeat((~flipped).sum(), 0))


def test_seeds_of_samples_are_distinct_over_rows_epochs_and_seeds():
    seeds = [
        augmentation.sample_seeds(seed, epoch, np.arange(500))
        for seed in (0, 1)
        for epoch in (1, 2)
    ]
    assert 2000 == len(set(np.concatenate(seeds).tolist()))


def test_items_come_in_order_from_threads_and_an_error_comes_through():
    assert [n * n for n in range(20)] == list(ahead(lambda n: n * n, range(20), 4))
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda n: 1 // n, [1, 0, 1], 2))


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (
            {"name": "HorizontalFlop"},
            "albumentations has no operation 'HorizontalFlop'; nearest: HorizontalFlip",
        ),
        (
            {"name": "GaussianBlur", "blurlimit": 3},
            "GaussianBlur does not take 'blurlimit'; .*nearest: blur_limit",
        ),
        ({"p": 0.5}, "an operation is {name: HorizontalFlip"),
    ],
)
def test_an_operation_is_checked_without_importing_albumentations(operation, message):
    with pytest.raises(ValueError, match=message):
        Train.model_validate({"augment": {"policy": [operation]}})


def test_what_is_read_of_an_operation_is_what_it_takes():
    import inspect

    import albumentations

    for name in (
        "HorizontalFlip",
        "Affine",
        "ColorJitter",
        "CoarseDropout",
        "GaussNoise",
        "Erasing",
        "RandomResizedCrop",
    ):
        known = settings_of(name)
        assert (
            set(inspect.signature(getattr(albumentations, name).__init__).parameters) - {"self"}
            <= known
        ), name
        getattr(albumentations, name)
    for ops in augmentation.POLICIES.values():
        Train.model_validate({"augment": {"policy": ops}})
