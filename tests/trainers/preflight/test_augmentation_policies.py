"""albumentations' operations are tried on a photo before anything trains on ruined ones."""

import numpy as np
import pytest

from trainers.photos.augmentation import build
from trainers.preflight.augmentation_policies import policy_problems, try_policy
from trainers.settings.augment import Augment

RUINED = [
    ({"name": "Normalize", "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}, "Normalize returns float32"),
    ({"name": "ToFloat", "max_value": 255, "p": 0.01}, "ToFloat returns float32"),
    ({"name": "RandomScale", "scale_limit": [0.4, 0.5], "p": 0.1}, "RandomScale returns"),
    ({"name": "CenterCrop", "height": 20, "width": 24}, "CenterCrop returns 24x20 pixels, the prepared size 40x40"),
    ({"name": "RandomCrop", "height": 41, "width": 40}, "RandomCrop fails on a photo of 40x40: Crop size"),
    ({"name": "LongestMaxSize", "max_size": 80}, "LongestMaxSize returns 80x80"),
    ({"name": "ToGray", "num_output_channels": 1}, "ToGray returns 1 channel"),
    ({"name": "HorizontalFlip", "p": 1.5}, "HorizontalFlip does not take these settings: p: required less than or equal to 1, found 1.5"),
    ({"name": "MotionBlur", "blur_limit": [3, "x"]}, "MotionBlur does not take these settings: blur_limit: "),
    ({"name": "FDA"}, "FDA fails on a photo"),
    ({"name": "OneOf", "transforms": [{"name": "VerticalFlip"}, {"name": "Rotate", "crop_border": True}]}, "Rotate returns"),
    ({"name": "Sequential", "transforms": [{"name": "Resize", "height": 20, "width": 20}]}, "Resize returns 20x20"),
]  # fmt: skip
SOUND = [
    [{"name": "OneOf", "transforms": [{"name": "Blur"}, {"name": "CLAHE"}], "p": 0.3}],
    [{"name": "SomeOf", "n": 2, "transforms": [{"name": "Blur"}, {"name": "ColorJitter"}, {"name": "Transpose"}]}],
    [{"name": "RandomCrop", "height": 30, "width": 30, "p": 1}, {"name": "Resize", "height": 40, "width": 40, "p": 1}],
    [{"name": "Compose", "transforms": [{"name": "RandomRotate90"}]}, {"name": "CoarseDropout"}],
]  # fmt: skip


@pytest.mark.parametrize(("operation", "problem"), RUINED)
def test_an_operation_that_ruins_photos_is_named(operation, problem):
    found = try_policy([{"name": "HorizontalFlip"}, operation], 40)
    assert found is not None
    assert problem in found
    assert "\n" not in found


@pytest.mark.parametrize("policy", SOUND)
def test_operations_nest_and_may_end_at_the_right_size(policy):
    Augment(policy=policy)
    assert try_policy(policy, 40) is None
    photos = np.random.default_rng(1).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
    augmented = build(policy)(photos.copy(), np.arange(6, dtype=np.uint64))
    assert (photos.shape, np.uint8) == (augmented.shape, augmented.dtype)
    assert (photos != augmented).any()


def test_policies_are_tried_in_a_process_without_torch():
    jobs = [{"operations": [RUINED[0][0]], "size": 40}, {"operations": SOUND[0], "size": 40}]
    problems = policy_problems(jobs)
    assert [True, False] == ["Normalize returns" in str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        ({"name": "OneOf"}, "OneOf needs transforms: a list of operations, found None"),
        ({"name": "OneOf", "transforms": [{"name": "Blurr"}]}, "no operation 'Blurr'; nearest: "),
        ({"name": "OneOf", "transform": []}, "does not take 'transform'"),
    ],
)
def test_what_stands_inside_is_checked_by_name(operation, text):
    with pytest.raises(ValueError, match=text):
        Augment(policy=[operation])


def test_training_never_casts_what_an_operation_returns():
    augment = build([{"name": "HorizontalFlip", "p": 0}, {"name": "ToFloat", "p": 1}])
    with pytest.raises(ValueError, match="an operation returns float32 values"):
        augment(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.uint64))
