"""Code of the user in a spec: what `check` says of it, and that only --allow-code allows it."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from orchestrator.base.errors import SpecError
from orchestrator.board.actions import Upload
from orchestrator.board.actions import check as board_check
from orchestrator.board.run_cache import Hub
from orchestrator.run import driver
from orchestrator.run.prerequisites import require_code
from orchestrator.spec.load import read
from orchestrator.spec.models import Spec
from orchestrator.store.artifacts import Store
from orchestrator.store.run_dir import RunPaths
from tests.conftest import ROOT

FOLDER = ROOT / "experiments/own_parts"


@pytest.fixture
def spec(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "own")
    return tmp_path / "own/spec.yaml"


def check(spec, *arguments, **environment):
    command = [sys.executable, "-m", "orchestrator", "check", str(spec), "--offline", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=environment
    )


def test_check_says_in_a_sentence_what_is_required_and_nothing_but_the_flag_allows(spec):
    (spec.parent / "my_parts.py").write_text("raise SystemExit('ran')\n")
    refused = check(spec, ORCHESTRATOR_ALLOW_CODE="1", ALLOW_CODE="1")
    assert 2 == refused.returncode
    assert "my_parts.py is code that runs with your rights: read it, then give --allow-code" in (
        refused.stderr
    )
    assert "spec.yaml:" in refused.stderr
    assert "ran" not in refused.stderr
    with_key = spec.read_text() + "allow_code: true\n"
    spec.write_text(with_key)
    assert 2 == check(spec).returncode


def test_check_with_the_flag_tries_the_parts_and_names_the_users_line(spec):
    assert 0 == check(spec, "--allow-code").returncode
    code = (spec.parent / "my_parts.py").read_text()
    (spec.parent / "my_parts.py").write_text(code.replace("return photo", "return photo.nonsense"))
    broken = check(spec, "--allow-code")
    assert 2 == broken.returncode
    assert "my_parts.py, line " in broken.stderr
    assert "in gray_patches: AttributeError" in broken.stderr


def test_a_changed_file_is_another_setting_and_readers_of_a_run_need_no_file(spec):
    first = read(spec, check_roots=False)
    assert {"my_parts.py"} == set(first.code)
    setting, _ = first.setting("base", {})
    with (spec.parent / "my_parts.py").open("a") as code:
        code.write("# another comment\n")
    second = read(spec, check_roots=False)
    assert setting != second.setting("base", {})[0]
    (spec.parent / "resolved.yaml").write_text(json.dumps(first.resolved()))
    (spec.parent / "my_parts.py").unlink()
    resolved = read(spec.parent / "resolved.yaml", check_roots=False)
    assert setting == resolved.setting("base", {})[0]
    assert ("my_parts.py",) * 4 == resolved.lost_code
    with pytest.raises(SpecError, match=r"the file my_parts\.py was required in"):
        read(spec, check_roots=False)


def test_a_driver_runs_no_code_without_the_option(spec, tmp_path):
    experiment = read(spec, check_roots=False)
    with pytest.raises(SpecError, match="give --allow-code"):
        require_code(experiment, is_allowed=False)
    require_code(experiment, is_allowed=True)
    paths = RunPaths(tmp_path / "store/runs/own")
    paths.root.mkdir(parents=True)
    shutil.copytree(spec.parent, paths.code, ignore=shutil.ignore_patterns("*.yaml"))
    driver.dump_yaml(experiment.resolved(), paths.resolved)
    with pytest.raises(SpecError, match="give --allow-code"):
        read(paths.resolved, check_roots=False, allow_code=False)
    again = read(paths.resolved, check_roots=False, allow_code=True)
    assert paths.code / "my_parts.py" == again.code["my_parts.py"]
    assert Store(paths.store)  # the copy lies in the store, which all workers see


def test_specs_without_code_know_nothing_of_it():
    dumped = Spec.model_json_schema()
    assert "sha256" not in json.dumps(
        read(ROOT / "experiments/smoke.yaml", check_roots=False).resolved()
    )
    assert "allow_code" not in json.dumps(dumped)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("my_parts.py:cosine_head", "../my_parts.py:cosine_head", "use"),
        ("my_parts.py:cosine_head", "my_parts.py", "use"),
        ("  duration: 4 epochs", "  duration: 4 epochs\n  precision: auto", "auto is not tried on code"),
    ],
)  # fmt: skip
def test_a_wrong_form_is_refused(spec, old, new, message):
    spec.write_text(spec.read_text().replace(old, new))
    with pytest.raises(SpecError, match=message):
        read(spec, check_roots=False)


def test_the_file_beside_the_spec_comes_before_one_in_a_folder_code(spec):
    (spec.parent / "code").mkdir()
    (spec.parent / "code/my_parts.py").write_text("an_old_copy = 1\n")
    assert spec.parent / "my_parts.py" == read(spec, check_roots=False).code["my_parts.py"]


def test_auto_is_refused_where_a_search_may_choose_code(spec):
    text = spec.read_text().replace(
        'head: {use: "my_parts.py:cosine_head", scale: 16.0}', "head: shallow"
    )
    text = text.replace(
        'backbone: {use: "my_parts.py:small_network", width: 16}', "backbone: test_efficientnet"
    )
    assert "small_network" not in text
    search = '{space: {train.model.head: {choice: [shallow, {use: "my_parts.py:cosine_head"}]}}}'
    lines = [line for line in text.splitlines() if not line.startswith("search:")]
    spec.write_text("\n".join([*lines, f"search: {search}", ""]))
    read(spec, check_roots=False)
    with pytest.raises(SpecError, match="auto is not tried on code"):
        read(spec, ["train.precision=auto"], check_roots=False)


def test_the_board_refuses_code_with_the_sentence_of_check(spec, tmp_path):
    upload = Upload("spec.yaml", spec.read_text(), spec.parent)
    problems = board_check(Hub(Store(tmp_path), tmp_path), upload).problems
    assert "my_parts.py is code that runs with your rights: read it, then give --allow-code" in (
        problems
    )
