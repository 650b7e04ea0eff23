"""A small task and trainings of it, for the tests of what is minimised."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainers.config import Train
from trainers.data import Numbers, Task
from trainers.training_loop import train

N_PEOPLE = 15


def quick(head="single", **settings):
    """Return settings of two short epochs."""
    return Train.model_validate(
        {
            "model": {"backbone": "test_efficientnet", "pretrained": False, "head": head},
            "optimizer": {"name": "adam", "lr": 3e-3},
            "duration": "2 epochs",
            "batch_size": 16,
            **settings,
        }
    )


def colors(*, light=lambda person: person % 2, groups=True, **more):
    """Four photos of each of 15 people: a color per photo, light or dark per person."""
    people = np.repeat(np.arange(N_PEOPLE), 4)
    rows = np.arange(len(people))
    codes = np.stack([rows % 2, np.array([int(light(person)) for person in people])], 1)
    images = np.random.default_rng(0).integers(0, 40, (len(rows), 32, 32, 3), dtype=np.uint8)
    for row, (color, is_light) in enumerate(codes):
        images[row, :, :, color] += np.uint8(200 if is_light else 90)
    training = people < 10
    return Task(
        images,
        codes,
        [f"s{row}" for row in rows],
        {"color": 2, "light": 2},
        rows[training],
        rows[~training],
        groups=people if groups else None,
        **more,
    )


def people_of_ages():
    """The same with an age for a label: a number per person, the brighter the older."""
    numbers = np.repeat(np.linspace(5, 95, N_PEOPLE)[np.arange(N_PEOPLE) * 4 % N_PEOPLE], 4)
    borders = (30.0, 60.0)
    task = colors(numbers={"age": Numbers(numbers, borders)})
    codes = np.stack([task.targets[:, 0], np.searchsorted(borders, numbers, side="right")], 1)
    images = task.images // 2 + (numbers.astype(np.uint8))[:, None, None, None]
    return replace(task, images=images, targets=codes, label_sizes={"color": 2, "age": 3})


class Stopped(Exception):
    pass


def stopped_and_resumed(config, task, folder: Path):
    """Train, stop after the first epoch, and go on."""

    def stop(epoch, metrics):
        if epoch == 1:
            raise Stopped

    folder.mkdir()
    settings = {"seed": 1, "work_dir": folder, "threads": 1}
    with suppress(Stopped):
        train(config, task, report=stop, **settings)
    return train(config, task, report=lambda *_: None, **settings)


def scores(result):
    """Return the history without times."""
    return [
        {name: value for name, value in epoch.items() if not name.endswith("_s")}
        for epoch in result.history
    ]
