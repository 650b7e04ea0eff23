import hashlib

import pytest

from data_prep.sample.__main__ import main
from data_prep.sample.portrait_data_set import build, cell_counts, people_of, read_truth


def folder_hash(root):
    sha = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            sha.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return sha.hexdigest()


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(tmp_path):
    hashes = []
    for name, seed, jobs in (("a", 0, 1), ("b", 0, 2), ("c", 1, 2)):
        build(tmp_path / name, 36, seed=seed, size=(48, 64), jobs=jobs)
        hashes.append(folder_hash(tmp_path / name))
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_the_layout_is_the_contests_and_the_truth_knows_every_photo(tmp_path):
    build(tmp_path / "s", 36, size=(48, 64), jobs=2)
    people = [line.split(",") for line in (tmp_path / "s/train/train.csv").read_text().split()]
    assert ["id", "gender", "race", "age", "path"] == people[0]
    assert all(
        7 == len(list((tmp_path / "s/train/images" / person[4]).glob("*.jpg")))
        for person in people[1:]
    )
    answers = [line.split(",") for line in (tmp_path / "s/eval/info.csv").read_text().split()[1:]]
    assert set(range(18)) == {int(answer) for _, answer in answers}
    truths = read_truth(tmp_path / "s")
    assert 252 == len(truths) == len({truth.path for truth in truths})
    assert all(
        (64, 48) == truth.silhouette.shape and 0.2 < truth.silhouette.mean() < 0.8
        for truth in truths
    )


@pytest.mark.parametrize("n_people", [36, 60, 200])
def test_every_cell_has_four_people_in_train_and_two_in_eval(n_people):
    counts = cell_counts(n_people)
    assert n_people == sum(map(sum, counts))
    assert (4, 2) <= (min(train for train, _ in counts), min(held_out for _, held_out in counts))
    train, held_out = people_of(n_people, 0)
    assert not {person.id for person in train} & {person.id for person in held_out}


def test_too_few_people_a_full_folder_and_a_bad_size_are_refused(tmp_path, capsys):
    (tmp_path / "x").write_text("")
    for arguments, message in (
        (["--people", "35", "--out", str(tmp_path / "n")], "at least 36 are required"),
        (["--people", "36", "--out", str(tmp_path)], "a new or empty folder was required"),
        (["--size", "48", "--out", str(tmp_path / "n")], "'48' is not WIDTHxHEIGHT"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert 2 == caught.value.code
        assert message in capsys.readouterr().err
