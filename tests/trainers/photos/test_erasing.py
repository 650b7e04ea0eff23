"""Random erasing: boxes within the paper's bounds, and its colors."""

import random

import numpy as np
import pytest

from trainers.photos.erasing import draw_box, erase
from trainers.settings.policies import Erasing


def test_boxes_have_the_area_and_the_aspect_of_the_settings_and_lie_inside():
    settings = Erasing(area=[0.05, 0.2], aspect=[0.5, 2.0])
    areas, aspects = [], []
    for seed in range(2000):
        box = draw_box(settings, 100, 120, random.Random(seed))
        assert 0 <= box.top
        assert 0 <= box.left
        assert box.top + box.height <= 100
        assert box.left + box.width <= 120
        areas.append(box.height * box.width / 12000)
        aspects.append(box.height / box.width)
    assert min(areas) == pytest.approx(0.05, abs=0.004)
    assert max(areas) == pytest.approx(0.2, abs=0.01)
    assert min(aspects) == pytest.approx(0.5, abs=0.05)
    assert max(aspects) == pytest.approx(2.0, abs=0.15)


def test_a_photo_is_erased_as_often_as_p_says_and_only_in_one_box():
    n_erased = 0
    for seed in range(1000):
        photo = np.full((20, 20, 3), 99, np.uint8)
        erase(Erasing(p=0.3, fill="black"), photo, random.Random(seed))
        rows, columns = np.nonzero(photo[:, :, 0] == 0)
        if len(rows):
            n_erased += 1
            assert len(rows) == np.ptp(rows).item() * (np.ptp(columns) + 1) + np.ptp(columns) + 1
    assert 250 < n_erased < 350


@pytest.mark.parametrize(
    ("fill", "expected"),
    [("black", (0, 0, 0)), ("white", (255, 255, 255)), ("mean", (124, 116, 104))],
)
def test_the_box_has_one_color(fill, expected):
    photo = np.full((20, 20, 3), 99, np.uint8)
    erase(Erasing(p=1.0, fill=fill), photo, random.Random(1))
    changed = photo[(photo != 99).any(2)]
    np.testing.assert_array_equal(np.broadcast_to(expected, changed.shape), changed)


def test_random_pixels_have_all_values():
    photo = np.full((64, 64, 3), 99, np.uint8)
    erase(Erasing(p=1.0, area=[0.39, 0.4], aspect=[1.0, 1.0]), photo, random.Random(1))
    changed = photo[(photo != 99).any(2)]
    assert changed.min() < 5
    assert changed.max() > 250
    assert 115 < changed.mean() < 140


def test_no_box_fits_where_it_would_be_larger_than_the_photo():
    settings = Erasing(area=[0.9, 0.95], aspect=[3.0, 3.3])
    assert draw_box(settings, 50, 50, random.Random(0)) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"area": [0.4, 0.02]}, "least, largest"),
        ({"area": [0.4, 1.0]}, "below 1"),
        ({"aspect": [3.0, 0.3]}, "least, largest"),
    ],
)
def test_wrong_bounds_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Erasing(**settings)
