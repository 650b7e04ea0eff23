import hashlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data_prep.sample import plants
from data_prep.sample.__main__ import main


def folder_hash(root):
    sha = hashlib.sha256()
    for path in sorted(root.rglob("*.jpg")):
        sha.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return sha.hexdigest()


def test_the_command_draws_class_folders_with_the_plant_in_the_name(tmp_path):
    size = ["--size", "48x64"]
    main(["--subject", "plants", "--plants", "16", "--photos", "3", *size, "--out", str(tmp_path)])
    photos = sorted((tmp_path / "images").rglob("*.jpg"))
    assert {"healthy", "rust", "spots"} == {photo.parent.name for photo in photos}
    states_by_plant = {}
    for photo in photos:
        states_by_plant.setdefault(photo.stem.split("_")[0], []).append(photo.parent.name)
    assert 16 == len(states_by_plant)
    assert all(len(states) == 3 and len(set(states)) == 1 for states in states_by_plant.values())
    assert (48, 64) == Image.open(photos[0]).size
    new = Counter(photo.stem.split("-")[0] for photo in (tmp_path / "new").iterdir())
    assert {"healthy": 4, "rust": 4, "spots": 4} == new


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(tmp_path):
    hashes = []
    for name, seed, jobs in (("a", 0, 1), ("b", 0, 2), ("c", 1, 2)):
        plants.build(tmp_path / name, 15, n_photos=2, seed=seed, size=(48, 48), jobs=jobs)
        hashes.append(folder_hash(tmp_path / name))
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_photos_of_one_plant_are_more_alike_than_those_of_two():
    made = [plants.make_plant(number, "healthy", 0) for number in range(1, 9)]
    colours = [
        [plants.draw(plant, photo, 0, (48, 48)).mean(axis=(0, 1)) for photo in (1, 2)]
        for plant in made
    ]
    within = np.mean([np.abs(first - second).mean() for first, second in colours])
    across = np.mean([np.abs(a[0] - b[0]).mean() for a in colours for b in colours if a is not b])
    assert within < 0.6 * across


def test_too_few_plants_and_a_full_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 15 are required, found 14"):
        plants.build(tmp_path / "n", 14)
    (tmp_path / "x").touch()
    with pytest.raises(ValueError, match="a new or empty folder was required"):
        plants.build(tmp_path, 15)
