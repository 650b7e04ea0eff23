import subprocess
import sys


def test_albumentations_is_told_not_to_ask_the_internet_before_it_is_imported():
    code = """
import sys, os
import trainers.training_loop
assert "albumentations" not in sys.modules
print(os.environ["NO_ALBUMENTATIONS_UPDATE"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "1" == done.stdout.strip()
