"""The written references are those of the models and commands of today."""

import importlib.util
from pathlib import Path

import click
import pytest

from orchestrator.cli import main
from orchestrator.spec.models import schema

ROOT = Path(__file__).resolve().parents[1]


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["spec.md", "cli.md"])
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
