"""What several test folders share: a small drawn data set, and runs of the command line."""

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from tests import documents
from tests.visitor import CHROMIUM

ROOT = Path(__file__).resolve().parents[1]

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("untimed")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell starts commands in the background so; interrupts that tests wait for would never come
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


@dataclass
class Tutorial(Workplace):
    """A folder in which the commands of the tutorial and of README were typed."""

    done: dict  # command -> the finished process

    def type(self, line):
        """Run a line of a page on small photos; pages that agree are typed once."""
        command = line.replace(".venv/bin/python", sys.executable).partition("#")[0].rstrip()
        for word, here in (
            ("FOLDER", "data/plants"),
            ("PHOTOS", "data/plants/new"),
            ("mine.yaml", "plants.yaml"),
        ):
            command = command.replace(word, here)
        if "data_prep.sample" in command:
            command += " --plants 18 --photos 3 --size 48x48"
        if command in self.done:
            return
        self.done[command] = subprocess.run(
            command.split(),
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if " init " in command:
            spec = self.root / "plants.yaml"
            spec.write_text(self.shortened(spec.read_text()))

    @staticmethod
    def shortened(spec):
        """Return a spec of `init` with a model that trains in a second."""
        for old, new in (
            ("size: 128", "size: 32"),
            ("tf_efficientnet_lite0, pretrained: true", "test_efficientnet, pretrained: false"),
            ("5 epochs", "1 epochs"),
        ):
            assert old in spec, old
            spec = spec.replace(old, new)
        return spec


@pytest.fixture(scope="session")
def tutorial(tmp_path_factory):
    """Every command of the tutorial and of README's own photos, typed once."""
    place = Tutorial(tmp_path_factory.mktemp("tutorial"), {})
    for line in [*documents.console(documents.TUTORIAL), *documents.own_photos()]:
        place.type(line)
    return place


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, without a window."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install playwright"
    )
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: apt install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def s3_server():
    """A local S3 server; every test makes buckets of its own."""
    pytest.importorskip("moto", reason="no moto: pip install 'moto[s3]' flask flask-cors")
    pytest.importorskip("obstore", reason="no obstore: pip install 'robust-vote[bucket]'")
    from tests.s3_server import S3Server

    server = S3Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """36 drawn people, 252 photos of 96 x 128 pixels."""
    from data_prep.sample.portrait_data_set import build

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
