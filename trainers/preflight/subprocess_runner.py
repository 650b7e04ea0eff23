"""A check in a process of its own: what it imports, and how it may end, stays there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_apart(module: str, jobs: Sequence[Any], *, timeout_s: float) -> list[str | None]:
    """Run a module as a program that reads jobs as JSON and prints a problem, or null, per job.

    Returns:
        The problems; none where the program fails, because then the libraries are not here.
    """
    root = str(Path(__file__).resolve().parents[2])
    search_path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            [sys.executable, "-m", module],
            input=json.dumps(list(jobs)),
            env={**os.environ, "PYTHONPATH": search_path, "NO_ALBUMENTATIONS_UPDATE": "1"},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
        )
    except (subprocess.SubprocessError, OSError):
        return [None] * len(jobs)
    problems: list[str | None] = json.loads(done.stdout.splitlines()[-1])
    return problems
