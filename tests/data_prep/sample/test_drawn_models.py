"""The drawn sample data through the real rembg and the real DeepFace, against the known truth."""

import numpy as np
import pytest

from data_prep.catalog import images
from data_prep.preparation import background_removal, faces
from data_prep.sample import portrait_data_set

pytestmark = [pytest.mark.models, pytest.mark.slow]
N_PHOTOS = 70


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Per photo: its path, the IoU of rembg's mask, and whether DeepFace's box sits on the face, whole and cut out."""
    root = tmp_path_factory.mktemp("drawn") / "sample"
    portrait_data_set.build(root, 36, jobs=2)
    truths = [
        truth for truth in portrait_data_set.read_truth(root) if truth.path.startswith("train/")
    ]
    session, detector = (
        background_removal.open_session("u2netp", 2),
        faces.open_detector("fastmtcnn"),
    )
    rows = []
    for index in np.random.default_rng(0).permutation(len(truths))[:N_PHOTOS]:
        truth = truths[index]
        photo = images.decode((root / truth.path).read_bytes())
        mask = background_removal.person_mask(session, photo)
        person = mask > 127 if mask is not None else np.zeros_like(truth.silhouette)
        iou = (person & truth.silhouette).sum() / (person | truth.silhouette).sum()
        cut = background_removal.lay_over(photo, mask, [0, 0, 0]) if mask is not None else photo
        rows.append(
            (
                truth.path,
                iou,
                *(
                    on_face(faces.main_face(detector, "fastmtcnn", pixels), truth.face_box)
                    for pixels in (photo, cut)
                ),
            )
        )
    return rows


def on_face(face, box):
    if face is None:
        return False
    x, y = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
    return box[0] < x < box[2] and box[1] < y < box[3]


def test_rembg_finds_the_silhouette_on_textured_backgrounds(seen):
    assert np.mean([iou for _, iou, *_ in seen]) >= 0.85


@pytest.mark.parametrize("way", [2, 3], ids=["whole", "cut out"])
def test_deepface_finds_plain_and_masked_faces(seen, way):
    plain = [row[way] for row in seen if row[0].endswith("/normal.jpg")]
    masked = [row[way] for row in seen if "/mask" in row[0]]
    assert min(len(plain), len(masked)) >= 5
    assert np.mean(plain) >= 0.95
    assert np.mean(masked) >= 0.80


def test_masks_and_face_boxes_are_as_good_as_those_of_the_plain_loop(drawn):
    """The long form on 384x512 photos is `python -m tests.campaign.preparation accuracy`."""
    from tests.campaign.preparation import compare_with_loop

    facts = compare_with_loop(drawn, 16, 1)
    assert facts["faces found by both"] >= 10
    assert facts["mask"] == pytest.approx(facts["mask loop"], abs=0.01)
    assert facts["face"] == pytest.approx(facts["face loop"], abs=0.02)  # the long form holds 0.01
