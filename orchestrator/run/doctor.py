"""A check of this machine: Python, packages, weights, disk, processors."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

FLOORS = {
    "ray": (2, 56),
    "torch": (2, 6),
    "pyarrow": (14, 0, 1),
    "pillow": (12, 3),
    "rembg": (2, 0, 75),
}
"""Older versions have known security holes."""
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


class Check(NamedTuple):
    """The result of one check."""

    passed: bool
    text: str

    def line(self) -> str:
        """Return the check as a line of `doctor`."""
        return f"{'ok  ' if self.passed else 'LACK'} {self.text}"


def examine(folder: Path | None = None) -> tuple[list[str], bool]:
    """Return one line per check, and True if nothing required is missing."""
    checks = [_python(), *_packages(), *_weights(), _disk(folder or Path.cwd()), *_machine()]
    checks += [_token(), *_ports()]
    return [check.line() for check in checks], all(check.passed for check in checks)


def _python() -> Check:
    version = platform.python_version()
    is_tested = version.startswith(("3.11.", "3.12.", "3.13."))
    return Check(is_tested, f"Python {version} (required 3.11, 3.12 or 3.13)")


def _packages() -> list[Check]:
    return [_package(name) for name in _NEEDED]


def _package(name: str) -> Check:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(False, f"{name}: not installed; run `make setup`")
    floor = FLOORS.get(name, ())
    numbers = tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())
    if numbers >= floor:
        return Check(True, f"{name} {version}")
    required = ".".join(map(str, floor))
    text = f"required {required} or newer, older versions have known security holes"
    return Check(False, f"{name} {version}; {text}")


def _weights() -> list[Check]:
    """Return where pinned weights are; none is required, because only some specs name them."""
    from data_prep.weights.cache import local  # noqa: PLC0415
    from data_prep.weights.registry import pinned  # noqa: PLC0415

    checks = []
    for name in pinned():
        path = local(name)
        place = f"at {path}"
        if path is None:
            place = f"not here; `python -m orchestrator weights {name}` fetches them"
        checks.append(Check(True, f"weights {name}: {place}"))
    return checks


def _disk(folder: Path) -> Check:
    free_gib = shutil.disk_usage(folder).free / 2**30
    text = f"{free_gib:.1f} GiB free at {folder} (required {_MIN_FREE_GIB:.0f})"
    return Check(free_gib >= _MIN_FREE_GIB, text)


def _machine() -> list[Check]:
    from orchestrator.cluster.connection import local_gpus  # noqa: PLC0415

    n_gpus = local_gpus()
    processors = f"{os.cpu_count()} CPU cores, {n_gpus} GPU(s)"
    if not n_gpus:
        processors += "; specs must say gpu: 0 or auto"
    has_key = bool(os.environ.get("WANDB_API_KEY")) or (Path.home() / ".netrc").exists()
    dashboard = Check(True, "Ray dashboard")
    if util.find_spec("aiohttp") is None:
        dashboard = Check(False, "Ray dashboard: parts missing; install ray[default]")
    wandb = "W&B: a key is set" if has_key else "W&B: no key: offline"
    return [Check(True, processors), Check(True, wandb), dashboard]


def _token() -> Check:
    """Return whether Ray asks for a token, and where it comes from."""
    from orchestrator.cluster.authentication import MODE, token_file, token_source  # noqa: PLC0415

    mode = os.environ.get(MODE, "token")
    if mode != "token":
        text = f"{MODE}={mode}: whoever reaches a port of Ray runs code as you; unset it"
        return Check(False, text)
    source = token_source()
    if source is None:
        text = f"Ray token: none yet; the first local run writes {token_file()}"
        return Check(True, text)
    if source.problem is not None:
        return Check(False, f"Ray token: {source.problem}")
    return Check(True, f"Ray token: asked for, from {source.name}")


def _ports() -> list[Check]:
    """Return where Ray listens now; a head of a cluster has to be reached from other machines."""
    from orchestrator.cluster.open_ports import open_ports, ray_processes  # noqa: PLC0415

    checks = []
    for port in open_ports(ray_processes()):
        reach = "this machine alone" if port.is_local else "other machines too"
        text = f"Ray port {port.ip}:{port.port}: {port.process} ({port.pid}), for {reach}"
        checks.append(Check(True, text))
    return checks or [Check(True, "Ray ports: none open; a local run opens them on 127.0.0.1")]
