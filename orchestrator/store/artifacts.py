"""The content-addressed store: `<store>/<kind>/<key>/`, complete when its manifest.json stands."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from data_prep.files import file_sha256, write_json
from orchestrator.base.errors import UserError

MANIFEST = "manifest.json"
_READ: dict[str, Any] = {  # of a manifest, and of what kind
    "params": dict,
    "inputs": dict,
    "result": dict,
    "files": dict,
    "finished": int | float,
    "host": str,
    "git_commit": str | None,
}
_PACKAGES = (
    "ray",
    "optuna",
    "torch",
    "timm",
    "albumentations",
    "rembg",
    "deepface",
    "onnxruntime",
    "numpy",
    "opencv-contrib-python-headless",
    "pillow",
    "pyarrow",
    "pydantic",
)


@dataclass(frozen=True)
class Artifact:
    """A finished folder of the store and what its manifest says."""

    kind: str
    key: str
    path: Path
    manifest: dict[str, Any]

    @property
    def result(self) -> dict[str, Any]:
        """What the stage wrote down about its outcome, small JSON values that planning may read."""
        value: dict[str, Any] = self.manifest["result"]
        return value

    def file(self, name: str, *, verify: bool = True) -> Path:
        """Return one of its files, checked against the manifest's size and sha256.

        Raises:
            UserError: the file is missing or differs from what the manifest says.
        """
        path = self.path / name
        facts = self.manifest["files"].get(name)
        if facts is None or not path.is_file():
            raise UserError(
                f"{path}: required by {MANIFEST}, found no such file; delete {self.path} and submit again"
            )
        if verify and (found := file_sha256(path)) != facts["sha256"]:
            raise UserError(
                f"{path}: sha256 is {found[:8]}.., the manifest says {facts['sha256'][:8]}..; "
                f"delete {self.path} and submit again"
            )
        return path


@dataclass
class Draft:
    """A folder being written; it becomes an artifact when its `with` block ends without an error."""

    path: Path
    result: dict[str, Any]


class Store:
    """A folder of artifacts that any number of processes may read and write at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, kind: str, key: str) -> Artifact | None:
        """Return a finished artifact, or None where there is none or its manifest is damaged: it is then made again."""
        path = self.root / kind / key
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):  # no JSON, or not even text
            return None
        return Artifact(kind, key, path, manifest) if _is_whole(manifest) else None

    def get(self, kind: str, key: str) -> Artifact:
        """Return a finished artifact.

        Raises:
            UserError: there is none.
        """
        if (artifact := self.find(kind, key)) is None:
            raise UserError(
                f"{self.root / kind / key}: a finished artifact was required, none is there; submit again"
            )
        return artifact

    def all(self, kind: str) -> Iterator[Artifact]:
        """Yield the finished artifacts of a kind, newest first."""
        folder = self.root / kind
        if folder.is_dir():
            keys = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
            found = [artifact for key in keys if (artifact := self.find(kind, key))]
            yield from sorted(found, key=lambda artifact: -artifact.manifest["finished"])

    def work_dir(self, kind: str, key: str) -> Path:
        """Return a folder for resumable work in progress on an artifact; removed when it is finished."""
        path = self.root / kind / f".work-{key}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def draft(self, kind: str, key: str, *, params: Any, inputs: dict[str, str]) -> Iterator[Draft]:
        """Write an artifact beside its place; rename it there at the end. The loser of a race drops its own."""
        home = self.root / kind
        home.mkdir(parents=True, exist_ok=True)
        beside = home / f".draft-{key[:16]}-{uuid.uuid4().hex[:8]}"
        beside.mkdir()
        started = time.perf_counter()
        draft = Draft(beside, {})
        try:
            yield draft
            manifest = {
                "kind": kind,
                "key": key,
                "params": params,
                "inputs": inputs,
                "result": draft.result,
                "files": _file_facts(beside),
                "wall_s": round(time.perf_counter() - started, 3),
                "finished": time.time(),
                "host": platform.node(),
                "git_commit": git_commit(),
                "packages": packages(),
            }
            write_json(beside / MANIFEST, manifest)
            self._publish(beside, home / key)
            shutil.rmtree(home / f".work-{key}", ignore_errors=True)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _publish(self, beside: Path, place: Path) -> None:
        if place.exists() and self.find(place.parent.name, place.name) is None:
            shutil.rmtree(
                place, ignore_errors=True
            )  # half-deleted by hand, or damaged: no manifest, no artifact
        try:
            beside.rename(place)
        except OSError:
            if self.find(place.parent.name, place.name) is None:
                raise


def _is_whole(manifest: Any) -> bool:
    """Say whether a manifest has all that is read of it; a damaged one may still be JSON."""
    return (
        isinstance(manifest, dict)
        and manifest.keys() >= _READ.keys()
        and all(isinstance(manifest[name], kind) for name, kind in _READ.items())
        and all(
            isinstance(facts, dict) and facts.keys() >= {"size_bytes", "sha256"}
            for facts in manifest["files"].values()
        )
    )


def _file_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """Flush data to the disk and return every file's size and hash: a manifest never stands before what it lists."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = {}
    for path in files:
        with path.open("rb") as handle:
            if (
                path.parent == folder
            ):  # below lie Tune's files alone, 5 a trial and 1.5 ms each, which nobody computes with
                os.fsync(handle.fileno())
            size = os.fstat(handle.fileno()).st_size
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
        facts[path.relative_to(folder).as_posix()] = {"size_bytes": size, "sha256": sha256}
    return facts


@cache
def git_commit() -> str | None:
    """Return the commit of this code, '+' appended when the tree differs from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
        dirty = subprocess.run(
            ["git", "diff", "--quiet", "HEAD"],
            cwd=here,
            capture_output=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (
        commit.stdout.strip() + ("+" if dirty.returncode else "")
        if commit.returncode == 0
        else None
    )


@cache
def packages() -> dict[str, str]:
    """Return the versions of the packages that decide a result."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), **versions}
