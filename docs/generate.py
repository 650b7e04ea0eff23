"""Write docs/reference from the models, the commands and an example: `make references` runs it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import click

from orchestrator.cli import main as commands
from orchestrator.spec.models import schema

REFERENCE = Path(__file__).resolve().parent / "reference"
_EXAMPLE = REFERENCE.parents[1] / "experiments" / "full_example.yaml"
_NOTE = "<!-- Written by docs/generate.py. Change the models or commands, then run `make references`. -->\n"
_COMMAND = "python -m orchestrator"


def spec_page() -> str:
    """Return the reference of the spec: a table per section, the root first."""
    described = schema()
    parts = [
        _NOTE,
        "# Spec reference\n",
        "Every key of a spec. A component with a `name`, such as a loss, may be written as its bare name.\n",
    ]
    for title, part in {"Spec": described, **described["$defs"]}.items():
        if "properties" in part:
            parts.append(_section(title, part))
    return "\n".join(parts)


def _section(title: str, part: dict[str, Any]) -> str:
    lines = [f"## {title}\n"]
    if part.get("description"):
        lines.append(inspect.cleandoc(part["description"]) + "\n")
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    required = set(part.get("required", ()))
    for key, field in part["properties"].items():
        default = _default_text(key, field, required).replace("|", "\\|")
        kind = _type_text(field).replace("|", "\\|")
        meaning = field["description"].replace("|", "\\|")
        lines.append(f"| `{key}` | {kind} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _type_text(field: dict[str, Any]) -> str:
    """Return a JSON Schema's type in a few words, with links to sections."""
    for union in ("anyOf", "oneOf", "allOf"):
        if union in field:
            texts = [_type_text(option) for option in field[union]]
            return " or ".join(dict.fromkeys(texts))
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in field or "enum" in field:
        values = field.get("enum", [field.get("const")])
        return ", ".join(f"`{value}`" for value in values)
    kind = field.get("type", "any value")
    kinds = kind if isinstance(kind, list) else [kind]
    inner = field.get("items") or field.get("additionalProperties")
    if isinstance(inner, dict) and inner:
        word = {"array": "list of", "object": "map to"}[kinds[0]]
        return f"{word} {_type_text(inner)}"
    return " or ".join({"array": "list", "object": "map"}.get(name, name) for name in kinds)


def _default_text(key: str, field: dict[str, Any], required: set[str]) -> str:
    if key in required:
        return "required"
    default = field.get("default")
    if isinstance(default, dict) and len(default) > 1:
        return "its defaults"
    return f"`{json.dumps(default)}`"


def cli_page() -> str:
    """Return the reference of the command line: every command as its help says it."""
    parts = [
        _NOTE,
        "# Command reference\n",
        f"`{_COMMAND} COMMAND`, or `robust-vote COMMAND` where the package is installed.\n",
        "`RUN` is a run's id, a unique prefix of one, or `latest`.\n",
        "Exit codes: 0 done, 1 failed, 2 the input is wrong, 130 interrupted.\n",
    ]
    for name, command in sorted(commands.commands.items()):
        parts.append(_command(name, command))
    return "\n".join(parts)


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"{_COMMAND} {name}")
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = [f"## {name}\n", f"    {usage}\n", inspect.cleandoc(command.help or "") + "\n"]
    options = [item for item in command.params if isinstance(item, click.Option)]
    rows = [item.get_help_record(context) for item in options]
    if rows:
        lines += ["| option | meaning |", "|---|---|"]
        for row in rows:
            if row:
                lines.append(f"| `{row[0].replace('|', '/')}` | {row[1].replace('|', '/')} |")
        lines.append("")
    return "\n".join(lines)


def example_page() -> str:
    """Return the full spec with its comments."""
    parts = [
        _NOTE,
        "# A full spec with comments\n",
        "This is `experiments/full_example.yaml`. A test checks that it is valid and has every section.",
        "A spec of your own needs a tenth of it: `init` writes one. Each key is described in the",
        "[spec reference](spec.md).\n",
        f"```yaml\n{_EXAMPLE.read_text(encoding='utf-8')}```\n",
    ]
    return "\n".join(parts)


PAGES = {"spec.md": spec_page, "cli.md": cli_page, "example.md": example_page}


def main() -> None:
    """Write every page."""
    REFERENCE.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
