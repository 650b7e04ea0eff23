"""What several test folders share: a small drawn data set, and runs of the command line."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Workplace:
    """A folder with data, a spec and a store of its own."""

    root: Path

    @property
    def spec(self):
        return self.root / "experiments/spec.yaml"

    def change(self, *changes):
        text = self.spec.read_text()
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new, 1)
        self.spec.write_text(text)

    def command(self, *arguments):
        return [sys.executable, "-m", "orchestrator", *map(str, arguments)]

    @property
    def environment(self):
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "ORCHESTRATOR_STORE": str(self.root / "store"),
            "COLUMNS": "200",
        }

    def run(self, *arguments, timeout=900):
        return subprocess.run(
            self.command(*arguments),
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def submit(self, *arguments):
        """Submit the spec; return (exit code, stage -> outcome, standard error)."""
        done = self.run("submit", self.spec, *arguments)
        outcomes = dict(
            re.findall(
                r"^\S? ?(\w+) +(SUCCEEDED|CACHED|FAILED|BLOCKED)\b", done.stderr, re.MULTILINE
            )
        )
        return done.returncode, outcomes, done.stderr

    def runs(self):
        return sorted((self.root / "store/runs").iterdir(), key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """36 drawn people, 252 photos of 96 x 128 pixels."""
    from data_prep.sample.synthetic import build

    root = tmp_path_factory.mktemp("drawn") / "sample"
    build(root, 36, size=(96, 128), jobs=2)
    return root


@pytest.fixture(scope="session")
def new_workplace():
    """Make a workplace in a folder of one's own."""
    return Workplace


@pytest.fixture
def workplace(tmp_path, drawn):
    """A fresh folder with the drawn data and the smoke experiment, quick enough for a test."""
    shutil.copytree(drawn, tmp_path / "data/sample")
    (tmp_path / "experiments").mkdir()
    text = (
        (ROOT / "experiments/smoke.yaml")
        .read_text()
        .replace("wandb: {project: masks, mode: offline}", "wandb: null")
    )
    (tmp_path / "experiments/spec.yaml").write_text(text)
    return Workplace(tmp_path)
