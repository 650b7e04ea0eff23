"""README and docs: references are current, links lead somewhere, and what is said to be typed works."""

import importlib.util
import itertools
import json
import re
import subprocess
from pathlib import Path

import click
import pytest

from data_prep.sample.portrait_data_set import PHOTOS
from orchestrator.cli import main
from orchestrator.spec.data_checks import check_data
from orchestrator.spec.load import read
from orchestrator.spec.models import schema
from orchestrator.spec.starter_spec import starter_spec
from orchestrator.spec.yaml_source import lone_value
from tests import documents

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "experiments/full_example.yaml"
LINKED = [documents.README, *documents.PAGES]
SECTIONS = "Spec Data Split Prep Train Model Augment Search Limits Confirm Select Vote Track Wandb Resources TrialShare PrepShare Report"


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# references


@pytest.mark.parametrize("page", ["spec.md", "cli.md", "example.md"])
def test_a_reference_is_current(page):
    written = (ROOT / "docs/reference" / page).read_text()
    assert written == generator().PAGES[page](), "run `make references` and commit what it writes"


def test_every_field_of_a_spec_is_described():
    described = schema()
    parts = {**described["$defs"], "Spec": described}
    silent = []
    for name, part in parts.items():
        for key, field in part.get("properties", {}).items():
            if not field.get("description"):
                silent.append(f"{name}.{key}")
    assert [] == silent  # write a docstring below each


def test_every_command_and_option_is_described():
    silent = []
    for name, command in main.commands.items():
        options = [item for item in command.params if isinstance(item, click.Option)]
        silent += [f"{name} {item.opts[0]}" for item in options if not item.help]
        silent += [] if command.help else [name]
    assert [] == silent


def name_people(root):
    """Write the tables of the drawn people, with empty files for their photos."""
    people = ["id,gender,race,age,path"]
    answers = ["ImageID,ans"]
    for number, (gender, age) in enumerate(itertools.product(("male", "female"), (20, 40, 60) * 4)):
        people.append(f"{number},{gender},drawn,{age},{number}")
        for photo in PHOTOS:
            path = root / f"train/images/{number}/{photo}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (root / "eval/images").mkdir(parents=True)
    for code in range(18):
        (root / f"eval/images/{code}.jpg").touch()
        answers.append(f"{code}.jpg,{code}")
    (root / "train/train.csv").write_text("\n".join(people))
    (root / "eval/info.csv").write_text("\n".join(answers))


def test_the_full_example_is_valid_and_names_every_key_of_its_sections(tmp_path):
    name_people(tmp_path / "data/sample")
    spec = tmp_path / "experiments/full_example.yaml"
    spec.parent.mkdir()
    spec.write_text(EXAMPLE.read_text())
    experiment = read(spec, need_data=True, try_components=True)
    assert [] == check_data(experiment, spec).warnings
    described = schema()
    parts = {**described["$defs"], "Spec": described}
    wanted = {key for name in SECTIONS.split() for key in parts[name]["properties"]}
    named = set(re.findall(r"[\w]+(?=:)", EXAMPLE.read_text()))
    assert set() == wanted - named, "write these keys into experiments/full_example.yaml"


# pages


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_every_link_and_anchor_leads_somewhere(page):
    for target in documents.links(page):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{name_of(page)}: {target}"
        if page != documents.README:  # the site holds docs/ alone
            assert place.is_relative_to(ROOT / "docs"), f"{name_of(page)}: {target}"
        if anchor:
            assert anchor in documents.anchors(place), f"{name_of(page)}: {target}"


def test_every_page_is_in_the_sites_navigation_and_reached_from_the_first_one():
    nav = (ROOT / "mkdocs.yml").read_text().split("nav:")[1]
    names = {page.relative_to(ROOT / "docs").as_posix() for page in documents.PAGES}
    assert names == set(re.findall(r"[\w/]+\.md", nav))
    linked = {link.partition("#")[0] for link in documents.links(ROOT / "docs/index.md")}
    assert names == linked | {"index.md"}


def test_every_decision_has_a_number_of_its_own():
    text = (documents.ROOT / "DESIGN.md").read_text()
    numbers = re.findall(r"^\*\*(\d+)\. ", text, re.MULTILINE)
    assert sorted(map(int, numbers)) == sorted(set(map(int, numbers)))


def test_readme_is_short():
    assert len(documents.README.read_text().splitlines()) <= 70


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_commands_and_their_options_exist(page):
    for name, *arguments in documents.commands(page):
        command = main.commands.get(name)
        assert command is not None, name
        if "[OPTIONS]" in arguments:
            continue  # the usage lines of the reference
        context = click.Context(command)
        values, left_over, _ = command.make_parser(context).parse_args(list(arguments))
        assert [] == left_over, (name, arguments)
        for item in command.params:
            if isinstance(item, click.Argument) and item.required:
                assert values.get(item.name), (name, arguments)
    makefile = (ROOT / "Makefile").read_text()
    for target in documents.targets(page):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize(
    ("tree", "lines"),
    [pytest.param(tree, lines, id=title) for title, tree, lines in documents.layouts()],
)
def test_init_reads_a_drawn_layout_as_the_page_says(tmp_path, tree, lines):
    root = documents.plant_tree(tmp_path, tree)
    written = starter_spec(root, tmp_path).splitlines()
    data = [re.sub(r"  +#.*", "", line)[2:] for line in written if line.startswith("  ")]
    assert lines == data[: len(lines)]


def test_the_layouts_are_read():
    assert 6 == len(list(documents.layouts()))


def test_quickstart_is_the_experiment_that_test_learning_runs():
    printed = subprocess.run(
        ["make", "--dry-run", "--always-make", "quickstart"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "-m orchestrator submit experiments/quickstart.yaml" in printed
    assert "experiments/quickstart.yaml" in (ROOT / "tests/test_learning.py").read_text()


# commands that run


@pytest.mark.ray
@pytest.mark.models
@pytest.mark.slow
def test_every_command_of_the_tutorial_and_of_readme_does_what_it_says(tutorial):
    for command, done in tutorial.done.items():
        assert 0 == done.returncode, f"{command}\n{done.stdout}{done.stderr}"
    spec = lone_value((tutorial.root / "plants.yaml").read_text())
    assert {"from": "name", "pattern": "plant-(?P<group>[0-9]+)"} == spec["data"]["group"]
    (run,) = [run for run in tutorial.runs() if run.name.startswith("plants-")]
    assert "SUCCEEDED" == json.loads((run / "summary.json").read_text())["state"]
    answers = (tutorial.root / "answers.csv").read_text().splitlines()
    assert 1 + len(list((tutorial.root / "data/plants/new").iterdir())) == len(answers)


def test_the_tutorial_run_leaves_out_no_command_of_its_pages():
    for page, typed in (
        (documents.README, documents.own_photos()),
        (documents.TUTORIAL, documents.console(documents.TUTORIAL)),
    ):
        n_typed = sum("-m orchestrator" in line for line in typed)
        assert n_typed == len(documents.commands(page)), name_of(page)


def test_the_tests_of_odd_input_are_there():
    text = (ROOT / "tests/cases/README.md").read_text()
    files = {path.as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    for name in re.findall(r"`((?:\w+/)*test_\w+\.py)`", text):
        assert any(path.endswith(f"/{name}") for path in files), name
