"""Code of the user: run only where it was allowed, named with its line, and trained like any part."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from trainers import own_parts
from trainers.config import Train
from trainers.data import Task
from trainers.inference import load, predict
from trainers.own_parts import CodeNotAllowed, OwnPartFailed, allow
from trainers.photos.augmentation import build, sample_seeds
from trainers.preflight.own_parts import Job, own_part_problems
from trainers.settings.own_parts import OwnPart, pin
from trainers.training_loop import train

EXAMPLE = Path(__file__).resolve().parents[2] / "experiments/own_parts/my_parts.py"


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch):
    monkeypatch.setattr(own_parts, "_allowed", {})


def part_of(folder, use, **settings):
    (part,) = pin({"train": [{"use": use, **settings}]}, [folder]).data["train"]
    return OwnPart.model_validate(part)


@pytest.fixture
def write(tmp_path):
    def make(text, use="mine.py:part", **settings):
        (tmp_path / "mine.py").write_text(text)
        part = part_of(tmp_path, use, **settings)
        allow(tmp_path / "mine.py")
        return part

    return make


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, 2, 40), rng.integers(0, 3, 40)], 1)
    images = rng.integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)
    rows = np.arange(40)
    return Task(images, codes, [f"s{row}" for row in rows], {"a": 2, "b": 3}, rows[:30], rows[30:])


def config(**changes):
    folder = EXAMPLE.parent
    settings = {
        "model": {
            "backbone": part_of(folder, "my_parts.py:small_network", width=4).model_dump(),
            "head": part_of(folder, "my_parts.py:cosine_head").model_dump(),
            "pretrained": False,
        },
        "loss": part_of(folder, "my_parts.py:tempered", temperature=0.5).model_dump(),
        "augment": {"policy": part_of(folder, "my_parts.py:gray_patches", side=8).model_dump()},
        "duration": "3 epochs",
        "batch_size": 10,
    }
    return Train.model_validate(settings | changes)


class Killed(Exception):
    pass


def run(task, folder, stop_after=None, **changes):
    folder.mkdir(exist_ok=True)
    losses = []

    def report(epoch, metrics):
        losses.append(metrics["train_loss"])
        if epoch == stop_after:
            raise Killed

    train(config(**changes), task, seed=1, report=report, work_dir=folder, threads=1)
    return losses


def test_own_parts_train_resume_bit_for_bit_and_are_rebuilt_from_their_folder(task, tmp_path):
    allow(EXAMPLE)
    whole = run(task, tmp_path / "a")
    with pytest.raises(Killed):
        run(task, tmp_path / "b", stop_after=1)
    assert whole == run(task, tmp_path / "b")
    probs = predict(load(tmp_path / "a"), task.images)
    assert (40, 6) == probs.shape
    own_parts._allowed.clear()
    with pytest.raises(CodeNotAllowed, match="read it, then give --allow-code"):
        load(tmp_path / "a")


def test_they_train_frozen_and_beside_named_parts(task, tmp_path):
    allow(EXAMPLE)
    model = config().model.model_dump(by_alias=True)
    frozen = {**model, "frozen": {"views": 2}, "head": {"name": "deep", "hidden": 8}}
    assert 3 == len(run(task, tmp_path / "a", model=frozen))
    named = {**model, "backbone": "test_efficientnet"}
    assert 3 == len(run(task, tmp_path / "b", model=named, augment={"policy": "basic"}))


def test_nothing_runs_that_was_not_allowed(tmp_path):
    ran = tmp_path / "ran"
    text = f"open({str(ran)!r}, 'w').close()\ndef part(photo, rng):\n    return photo\n"
    (tmp_path / "mine.py").write_text(text)
    part = part_of(tmp_path, "mine.py:part")
    with pytest.raises(CodeNotAllowed, match=r"mine\.py:part is code that runs with your rights"):
        build(part)
    assert not ran.exists()
    allow(tmp_path / "mine.py")
    (tmp_path / "mine.py").write_text(text + "# changed\n")
    with pytest.raises(CodeNotAllowed, match="it was changed after it was allowed"):
        build(part)
    assert not ran.exists()
    (tmp_path / "mine.py").write_text(text)
    build(part)
    assert ran.exists()


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("def part(photo, rng):\n    return photo / 0 * missing\n", {}, r"mine\.py, line 2, in part: NameError"),
        ("def other(photo, rng):\n    return photo\n", {}, r"mine\.py: a function part was required, found none"),
        ("import nowhere_to_be_found\n", {}, r"mine\.py, line 1, in <module>: ModuleNotFoundError"),
        ("def part(photo, rng)\n    return photo\n", {}, r"mine\.py, line 1: SyntaxError"),
        ("def part(photo, rng):\n    return photo\n", {"side": 3}, "side"),
        ("def part(photo, rng):\n    return photo / 255\n", {}, "returns float64 values, uint8"),
        ("def part(photo, rng):\n    return photo[:8]\n", {}, "pixels, the prepared size"),
    ],
)  # fmt: skip
def test_an_error_names_the_file_and_the_line(write, text, settings, message):
    part = write(text, **settings)
    with pytest.raises((OwnPartFailed, ValueError), match=message):
        build(part)(np.zeros((2, 16, 16, 3), np.uint8), np.arange(2, dtype=np.uint64))


def test_a_policy_has_the_same_generator_for_the_same_photo(write):
    part = write("def part(photo, rng, *, high):\n    photo[:] = rng.integers(high)\n    return photo\n", high=200)  # fmt: skip
    change = build(part)
    photos = np.zeros((8, 4, 4, 3), np.uint8)
    seeds = sample_seeds(0, 1, np.arange(8))
    whole = change(photos.copy(), seeds)
    np.testing.assert_array_equal(whole[3:5], change(photos[3:5].copy(), seeds[3:5]))
    assert len(np.unique(whole)) > 4
    assert not photos.any()


def test_an_error_while_training_names_the_line(task, tmp_path, write):
    write(
        "from torch import nn\n"
        "class Head(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x.nonsense\n"
        "def part(n_features, n_classes):\n"
        "    return Head()\n"
    )
    head = part_of(tmp_path, "mine.py:part").model_dump()
    model = {"backbone": "test_efficientnet", "pretrained": False, "head": head}
    with (
        pytest.raises(OwnPartFailed, match=r"mine\.py, line 4, in forward: AttributeError"),
        own_parts.naming_lines(),
    ):
        run(task, tmp_path / "a", model=model, augment={"policy": "none"}, loss={"name": "focal"})


def test_parts_are_tried_in_a_process_of_their_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import random\n"
        "from torch import nn\n"
        "def flat(n_features, n_classes):\n"
        "    return nn.Linear(n_features, n_classes + 1)\n"
        "def mean(logits, codes):\n"
        "    return nn.functional.cross_entropy(logits, codes)\n"
        "def noisy(photo, rng):\n"
        "    photo[0, 0] = random.randrange(256)\n"
        "    photo[1, 1] = random.randrange(256)\n"
        "    return photo\n"
        "def featureless(size, pretrained):\n"
        "    return nn.Identity()\n"
    )
    (tmp_path / "leaves.py").write_text("raise SystemExit('no such package')\n")
    shutil.copyfile(EXAMPLE, tmp_path / "my_parts.py")
    uses = [
        ("my_parts.py:gray_patches", "policy"),
        ("my_parts.py:small_network", "backbone"),
        ("my_parts.py:cosine_head", "head"),
        ("my_parts.py:tempered", "loss"),
        ("mine.py:noisy", "policy"),
        ("mine.py:featureless", "backbone"),
        ("mine.py:flat", "head"),
        ("mine.py:mean", "loss"),
        ("leaves.py:part", "head"),
    ]
    jobs = []
    for use, kind in uses:
        part = part_of(tmp_path, use).model_dump(mode="json")
        jobs.append(Job(part=part, file=str(tmp_path / use.partition(":")[0]), kind=kind, size=32))
    problems = own_part_problems(jobs)
    assert [None] * 4 == problems[:4]
    expected = [
        "draw from the generator alone",
        "num_features",
        "(2, 3) were required, found (2, 4)",
        "one loss per sample, shape (4,), was required",
        "no such package",
    ]
    for text, problem in zip(expected, problems[4:], strict=True):
        assert text in problem


def test_a_key_holds_the_code_and_a_missing_file_is_named(tmp_path):
    spec = {
        "train": {"model": {"head": {"use": "mine.py:part", "x": 1}}},
        "data": {"use": "a.py:b"},
    }
    pinned = pin(spec, [tmp_path])
    assert {("train", "model", "head")} == set(pinned.missing) == set(pinned.places)
    (tmp_path / "mine.py").write_text("one = 1\n")
    first = pin(spec, [tmp_path])
    assert {"mine.py": tmp_path / "mine.py"} == first.files
    (tmp_path / "mine.py").write_text("one = 2\n")
    second = pin(spec, [tmp_path])
    hashes = [part.data["train"]["model"]["head"]["sha256"] for part in (first, second)]
    assert hashes[0] != hashes[1]
    assert ["mine.py"] == pin(first.data, [tmp_path]).lost  # another version than the pinned one
    assert [] == pin(second.data, [tmp_path]).lost
    assert spec["data"] == first.data["data"]


def test_an_own_loss_has_class_weights_and_weights_of_branches_like_a_named_one(task, tmp_path):
    allow(EXAMPLE)
    model = {"backbone": "test_efficientnet", "pretrained": False, "head": "shallow"}
    own = part_of(EXAMPLE.parent, "my_parts.py:tempered", temperature=1.0).model_dump()
    settings = {"model": model, "augment": {"policy": "none"}, "balance": "class_weights"}
    losses = []
    for name, loss in (("a", own), ("b", {"name": "cross_entropy"})):
        weighed = {**loss, "weights": {"a": 2.0}}
        losses.append(run(task, tmp_path / name, loss=weighed, **settings))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("end", ["os._exit(0)", "os._exit(3)", "os.kill(os.getpid(), 11)"])
def test_code_that_ends_the_process_that_tries_it_does_not_pass(tmp_path, end):
    (tmp_path / "mine.py").write_text(f"import os\n{end}\n")
    part = part_of(tmp_path, "mine.py:part").model_dump(mode="json")
    job = Job(part=part, file=str(tmp_path / "mine.py"), kind="policy", size=32)
    (problem,) = own_part_problems([job])
    assert "ends the process that tries it" in problem
