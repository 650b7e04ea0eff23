"""The package: what it depends on, and that its wheel works away from the checkout."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"orchestrator", "trainers", "data_prep"}
IMPORTED_THROUGH = {
    "pydantic-core": "pydantic",
    "onnxruntime": "rembg",
}  # by an extra or exactly pinned
NOT_IMPORTED = {
    "werkzeug": "deepface imports it and does not declare it",
    "python-multipart": "starlette imports it to read forms",
}
OPTIONAL = {"IPython", "mlflow", "obstore", "pillow_heif"}  # a notebook has it; extras of their own


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def imported():
    """Return the distributions that the three packages import."""
    modules = set()
    for path in (path for name in PACKAGES for path in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module.split(".")[0])
    owners = packages_distributions()
    third_party = modules - set(sys.stdlib_module_names) - PACKAGES - OPTIONAL
    return {normal(owner) for module in third_party for owner in owners[module]}


def test_what_is_imported_is_declared_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {normal(re.match(r"[\w.-]+", entry)[0]) for entry in project["dependencies"]}
    assert set(NOT_IMPORTED) == declared - imported()
    assert set(IMPORTED_THROUGH) == imported() - declared
    assert set(IMPORTED_THROUGH.values()) <= declared


def test_what_is_installed_has_the_pinned_versions():
    pins = re.findall(r"(?m)^([\w.-]+)==([^\s;#]+)", (ROOT / "constraints.txt").read_text())
    assert len(pins) > 100
    others = {}
    for name, pinned in pins:
        with suppress(PackageNotFoundError):
            if version(name) != pinned:
                others[name] = version(name)
    assert not others


@pytest.mark.slow
def test_the_wheel_checks_and_plans_from_another_folder(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    archive = subprocess.run(
        ["git", "archive", "--format=tar", "HEAD"], cwd=ROOT, capture_output=True, check=True
    )
    source.mkdir()
    subprocess.run(["tar", "-x"], cwd=source, input=archive.stdout, check=True)
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("robust_vote-*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", *options, "--target", site, wheel], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, site / "bin/robust-vote", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert 0 == done.returncode, done.stderr
        return done.stdout + done.stderr

    where = "import orchestrator; print(orchestrator.__file__)"
    place = subprocess.check_output(
        [sys.executable, "-c", where], cwd=tmp_path, env=environment, text=True
    )
    assert place.startswith(str(site))
    assert "next: submit work/experiments/quickstart.yaml" in run(
        "sample", "work", "--people", "36"
    )
    assert "valid; 2 variant(s): a, b" in run("check", "work/experiments/smoke.yaml")
    assert "trials at most: 4 search" in run("plan", "work/experiments/smoke.yaml")
    for template in (ROOT / "orchestrator/report").glob("*.[hcj]*"):
        assert (site / "orchestrator/report" / template.name).is_file()
