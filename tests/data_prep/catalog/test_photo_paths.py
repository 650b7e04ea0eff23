"""Names in a table that are not those of the files, and still mean one file and no other."""

import unicodedata
from pathlib import Path

import pytest

from data_prep.catalog.photo_paths import resolve

FILES = ("deep/b1/leaf 1.JPG", "deep/b1/leaf 2.JPG", "deep/b2/leaf 1.png", "c.tiff", "c.webp")


@pytest.fixture
def images(tmp_path):
    for name in (*FILES, unicodedata.normalize("NFD", "잎é.jpg")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("deep/b1/leaf 1.JPG", None),
        (" deep/b1/leaf 1.JPG\t", "blanks"),
        ("deep\\b1\\leaf 1.JPG", "backslashes"),
        ("./deep//b1/leaf 1.JPG", None),
        ("deep/b1/leaf 1", "lack the extension"),
        ("Deep/B1/LEAF 1.jpg", "differ in case"),
        ("photos/deep/b1/leaf 1.JPG", "begin with 'photos/'"),
        ("D:\\set\\photos\\deep\\b1\\leaf 1.JPG", "begin with 'D:"),
        ("/home/kim/photos/deep/b1/leaf 1.JPG", "begin with '/home/kim/photos/'"),
        ("D:\\set\\deep\\b1\\leaf 1", "lack the extension"),
    ],
)
def test_another_form_of_a_name_is_the_file(images, name, note):
    resolved = resolve(str(images), [name])
    assert ["deep/b1/leaf 1.JPG"] == resolved.paths
    assert [] == resolved.lost
    assert (note or "") in " ".join(resolved.notes)


def test_an_absolute_path_inside_the_folder_is_the_file(images):
    assert ["c.tiff"] == resolve(str(images), [str(images / "c.tiff")]).paths


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC"])
def test_the_forms_of_unicode_are_one_name(images, form):
    resolved = resolve(str(images), [unicodedata.normalize(form, "잎é.jpg")])
    assert [unicodedata.normalize("NFD", "잎é.jpg")] == resolved.paths
    assert Path(images, resolved.paths[0]).exists()


@pytest.mark.parametrize("name", ["c", "leaf 3.JPG", "b1", "x/deep/b3/leaf 1.JPG"])
def test_a_name_of_no_file_or_of_two_is_lost(images, name):
    assert [name] == resolve(str(images), [name]).lost


@pytest.mark.parametrize("name", ["../c.tiff", "http://host/c.tiff", "~/c.tiff", "a/../../c.tiff"])
def test_a_refused_path_is_looked_for_nowhere(images, name):
    resolved = resolve(str(images), [name])
    assert ([name], []) == (resolved.paths, resolved.lost)


def test_two_prefixes_are_not_taken_for_one_folder(images):
    names = ["x/deep/b1/leaf 1.JPG", "x/deep/b1/leaf 2.JPG", "y/deep/b2/leaf 1.png"]
    assert ["y/deep/b2/leaf 1.png"] == resolve(str(images), names).lost
