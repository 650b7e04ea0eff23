"""A check in a process of its own: what it imports, and how it may end, stays there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_apart(
    module: str, jobs: Sequence[Any], *, timeout_s: float, crashed: str | None = None
) -> list[str | None]:
    """Run a module as a program that reads jobs as JSON and prints a problem, or null, per job.

    Args:
        module: the program.
        jobs: plain data.
        timeout_s: after which the jobs count as without a problem.
        crashed: the problem of each job where the program fails; None where that means that the
            libraries are not here.
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
        problems: list[str | None] = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.CalledProcessError, ValueError, IndexError):
        return [crashed] * len(jobs)
    except (subprocess.SubprocessError, OSError):
        return [None] * len(jobs)
    return problems
