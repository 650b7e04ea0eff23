"""What this machine has and lacks."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata, util
from pathlib import Path

FLOORS = {
    "ray": (2, 56),
    "torch": (2, 6),
    "pyarrow": (14, 0, 1),
    "pillow": (12, 3),
    "rembg": (2, 0, 75),
}
"""Versions below have known holes."""
_NEEDED = (
    "ray",
    "torch",
    "torchvision",
    "timm",
    "albumentations",
    "rembg",
    "deepface",
    "optuna",
    "wandb",
    "pyarrow",
    "pydantic",
    "onnxruntime",
    "facenet-pytorch",
    "pillow",
)
_MIN_FREE_GIB = 2.0


def examine(folder: Path | None = None) -> tuple[list[str], bool]:
    """Return what was found, a line each, and whether everything needed is there."""
    checks = [_python(), *_packages(), *_weights(), _disk(folder or Path.cwd()), *_machine()]
    lines = [f"{'ok  ' if good else 'LACK'} {text}" for good, text in checks]
    return lines, all(good for good, _ in checks)


def _python() -> tuple[bool, str]:
    found = platform.python_version()
    return found.startswith("3.11."), f"Python {found} (required 3.11)"


def _packages() -> list[tuple[bool, str]]:
    checks = []
    for name in _NEEDED:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            checks.append((False, f"{name}: not installed; run `make setup`"))
            continue
        floor = FLOORS.get(name)
        numbers = tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())
        good = floor is None or numbers >= floor
        need = (
            ""
            if good
            else f"; required {'.'.join(map(str, floor or ()))} or newer, older ones have known holes"
        )
        checks.append((good, f"{name} {version}{need}"))
    return checks


def _weights() -> list[tuple[bool, str]]:
    from data_prep.weights.cache import local  # noqa: PLC0415
    from data_prep.weights.registry import pinned  # noqa: PLC0415

    checks = []
    for name in pinned():
        found = local(name)
        state = (
            f"at {found}"
            if found
            else f"not here; `python -m orchestrator weights {name}` fetches them"
        )
        checks.append((True, f"weights {name}: {state}"))  # needed only by specs that name them
    return checks


def _disk(folder: Path) -> tuple[bool, str]:
    free_gib = shutil.disk_usage(folder).free / 2**30
    return (
        free_gib >= _MIN_FREE_GIB,
        f"{free_gib:.1f} GiB free at {folder} (required {_MIN_FREE_GIB:.0f})",
    )


def _machine() -> list[tuple[bool, str]]:
    from orchestrator.cluster.connection import local_gpus  # noqa: PLC0415

    n_gpus = local_gpus()
    cuda = "" if n_gpus else "; specs must say gpu: 0"
    key = (
        "a key is set"
        if os.environ.get("WANDB_API_KEY") or (Path.home() / ".netrc").exists()
        else "no key: offline"
    )
    dashboard = util.find_spec("aiohttp") is not None
    return [
        (True, f"{os.cpu_count()} CPU cores, {n_gpus} GPU(s){cuda}"),
        (True, f"W&B: {key}"),
        (
            dashboard,
            "Ray dashboard" + ("" if dashboard else ": parts missing; install ray[default]"),
        ),
    ]
