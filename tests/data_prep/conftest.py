from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from data_prep.config import Data

STEMS = ("incorrect_mask", "mask1", "mask2", "normal")
MASK = {
    "from": "stem",
    "classes": {"wear": "mask*", "incorrect": "incorrect_mask", "not_wear": "normal"},
}
GENDER = {"from": "column", "column": "gender", "classes": ["male", "female"]}
AGE = {"from": "column", "column": "age", "bins": [30, 60]}


def jpeg(number: int, size: tuple[int, int] = (8, 12)) -> bytes:
    """A photo whose colour tells its number."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number * 16 % 256, number // 16 * 8 % 256, 99)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_csv(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


class Contest:
    """A data set in the contest's layout: 12 people of all gender x age cells, four photos each, six test photos."""

    def __init__(self, base: Path) -> None:
        self.base, self.images = base, base / "train/images"
        ages = (22, 41, 60)
        self.people = [
            {
                "id": f"{at:06d}",
                "gender": ("male", "female")[at % 2],
                "race": "x",
                "age": ages[at // 2 % 3],
            }
            for at in range(12)
        ]
        for at, person in enumerate(self.people):
            person["path"] = f"{person['id']}_{person['gender']}_x_{person['age']}"
            for number, stem in enumerate(STEMS):
                self.photo(
                    f"train/images/{person['path']}/{stem}{('.jpg', '.PNG', '.jpeg', '.JPG')[at % 4]}",
                    10 * at + number,
                )
        self.tests = [{"ImageID": f"{name}.jpg", "ans": at} for at, name in enumerate("cabfed")]
        for at, row in enumerate(self.tests):
            self.photo(f"eval/images/{row['ImageID']}", 1000 + at)
        self.save()

    def photo(self, place: str, number: int) -> Path:
        path = self.base / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
        return path

    def save(self) -> None:
        write_csv(self.base / "train/train.csv", self.people)
        write_csv(self.base / "eval/info.csv", self.tests)

    def data(self, **changes) -> Data:
        whole = {
            "source": {"layout": "profile_folders", "root": "train"},
            "test": {"root": "eval", "label": "ans"},
            "labels": {"mask": MASK, "gender": GENDER, "age": AGE},
            "group": "id",
        }
        return Data.model_validate(whole | changes)


@pytest.fixture
def contest(tmp_path: Path) -> Contest:
    return Contest(tmp_path)
