"""Labels that leak into facts of the files: the audit sees what can reach a network, and nothing else can."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from data_prep.audit.examination import audit
from data_prep.catalog.builder import build_catalog
from data_prep.catalog.images import decode
from data_prep.catalog.label_schema import Schema
from data_prep.config import Data

N_PEOPLE, N_PHOTOS = 60, 3
RNG = np.random.default_rng(0)


def encoded(size=(48, 64), **options):
    """A photo of noise, which says nothing about anybody."""
    pixels = RNG.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    options = {"format": "JPEG", "quality": 90, **options}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **options)
    return buffer.getvalue()


def with_camera(name):
    exif = Image.Exif()
    exif[0x0110] = name
    return encoded(exif=exif)


LEAKS = {
    "nothing": lambda sex: ("photo", "jpg", encoded(), 0),
    "photo size": lambda sex: ("photo", "jpg", encoded((48, 64 + 16 * sex)), 0),
    "file type": lambda sex: (
        "photo",
        ("jpg", "png")[sex],
        encoded(format=("JPEG", "PNG")[sex]),
        0,
    ),
    "bytes per pixel": lambda sex: ("photo", "jpg", encoded(quality=(90, 40)[sex]), 0),
    "file name": lambda sex: (("female", "male")[sex], "jpg", encoded(), 0),
    "time": lambda sex: ("photo", "jpg", encoded(), 86400 * sex),
    "EXIF": lambda sex: ("photo", "jpg", with_camera(("Pixel 9", "X100")[sex]), 0),
    "order": lambda sex: (f"{sex}", "jpg", encoded(), 0),
}
SEEN = {
    "photo size": {"(photo size)", "(bytes per pixel)"},
    "file type": {"(file type)", "(bytes per pixel)"},
    "bytes per pixel": {"(bytes per pixel)"},
}


@pytest.mark.parametrize("leak", LEAKS)
def test_the_audit_sees_a_leak_where_a_network_could(tmp_path, leak):
    rows = ["path,id,sex"]
    sizes = {}
    for person in range(N_PEOPLE):
        sex = int(RNG.integers(2))
        rows.append(f"p{person},p{person},{'fm'[sex]}")
        (tmp_path / f"images/p{person}").mkdir(parents=True)
        for number in range(N_PHOTOS):
            stem, suffix, content, age_s = LEAKS[leak](sex)
            path = tmp_path / f"images/p{person}/{stem}{number}.{suffix}"
            path.write_bytes(content)
            os.utime(path, (1.7e9 + age_s, 1.7e9 + age_s))
            sizes[f"train/p{person}/{path.name}"] = len(content)
    (tmp_path / "people.csv").write_text("\n".join(rows) + "\n")
    data = Data.model_validate(
        {
            "source": {
                "layout": "profile_folders",
                "root": ".",
                "table": "people.csv",
            },
            "labels": {"sex": {"from": "column", "column": "sex", "classes": ["f", "m"]}},
            "group": "id",
            "split": {"strategy": "balanced_profile", "val": 0.25, "seed": 0},
        }
    )
    catalog = build_catalog(data, tmp_path)
    assert N_PEOPLE * N_PHOTOS == len(catalog)
    schema = Schema.of(data.labels)
    facts = audit(catalog, {}, schema, labels=data.labels, file_bytes=sizes)
    told = {
        what.partition(" goes with")[0]
        for what in (w.what for w in facts.warnings)
        if "goes with sex" in what
    }
    assert SEEN.get(leak, set()) == told


def test_what_the_audit_does_not_look_at_reaches_no_network():
    """Names, order and time are in no pixel; EXIF is none but for its turn, which makes a photo upright."""
    photo = encoded()
    exif = Image.Exif()
    exif[0x0110] = "X100"
    content = exif.tobytes()
    marker = b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content
    told = photo[:2] + marker + photo[2:]
    assert "X100" == Image.open(io.BytesIO(told)).getexif()[0x0110]
    np.testing.assert_array_equal(decode(photo), decode(told))
