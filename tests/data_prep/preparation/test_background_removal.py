"""rembg's sessions without rembg's own imports."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.models

CODE = """
import sys
import numpy as np
from PIL import Image
from data_prep.preparation.background_removal import open_session, person_mask
from data_prep.weights.cache import fetch

fetch("u2netp")
photo = np.asarray(Image.open(sys.argv[1]).convert("RGB"))
mask = person_mask(open_session("u2netp", 1), photo)
heavy = [name for name in ("numba", "pymatting", "skimage", "rembg.bg") if name in sys.modules]
assert not heavy, heavy

import rembg

session = rembg.new_session("u2netp", providers=["CPUExecutionProvider"])
whole = np.asarray(rembg.remove(Image.fromarray(photo), session=session, only_mask=True))
difference = np.abs(whole.astype(int) - mask.astype(int))
assert difference.max() <= 1, difference.max()  # the network is rewritten, which rounds elsewhere
assert whole.max() > 200
"""


def test_the_mask_is_rembgs_own_and_its_alpha_matting_is_not_imported(drawn):
    photo = next(drawn.glob("train/images/*/normal.jpg"))
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(photo)], capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stderr
