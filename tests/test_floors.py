"""The installed packages: above the versions with known holes, and at peace with each other."""

import re
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.version import Version

FLOORS = {"ray": "2.56", "torch": "2.6", "pyarrow": "14.0.1", "pillow": "12.3", "rembg": "2.0.75"}


@pytest.mark.parametrize("name", FLOORS)
def test_no_package_has_a_known_hole(name):
    assert Version(metadata.version(name)) >= Version(FLOORS[name])


def test_the_two_packages_that_own_one_cv2_are_equal():
    assert metadata.version("opencv-python-headless") == metadata.version(
        "opencv-contrib-python-headless"
    )


def test_the_one_known_complaint_of_pip_is_the_only_one():
    done = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    complaints = [
        line
        for line in done.stdout.splitlines()
        if line and line != "No broken requirements found."
    ]
    assert [] == [
        line
        for line in complaints
        if not re.match(
            r"facenet-pytorch 2\.6\.0 has requirement (numpy|Pillow|torch|torchvision)<", line
        )
    ]


def test_the_ray_dashboard_is_installed():
    assert metadata.version("aiohttp")
