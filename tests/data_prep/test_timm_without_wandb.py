import os
import subprocess
import sys

CODE = """
import os, sys
from data_prep.timm_without_wandb import timm
assert "tf_efficientnet_lite0" in timm.list_models()
assert "wandb" not in sys.modules
print([name for name in os.listdir(os.environ["TMPDIR"]) if "wandb" in name])
import wandb
"""


def test_timm_is_imported_without_wandb_which_can_still_be_imported(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "[]\n"
