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
from typing import Any, TypedDict

from data_prep.files import file_sha256, write_json
from orchestrator.base.errors import UserError

MANIFEST = "manifest.json"
Json = dict[str, Any]
"""A JSON object whose form its stage decides."""
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


class FileFacts(TypedDict):
    """What a manifest says of a file."""

    size_bytes: int
    sha256: str


class Manifest(TypedDict):
    """What readers need of a manifest.json."""

    params: Json
    inputs: dict[str, str]
    result: Json  # small values that the stage wrote down, which planning may read
    files: dict[str, FileFacts]
    finished: float
    host: str
    git_commit: str | None


_TYPES: dict[str, Any] = {"finished": int | float, "host": str, "git_commit": str | None}
"""Key of a manifest -> its type; all other keys hold an object."""


@dataclass(frozen=True)
class Artifact:
    """A finished folder of the store and its manifest."""

    kind: str
    key: str
    path: Path
    manifest: Manifest

    @property
    def result(self) -> Json:
        """What the stage wrote down about its outcome."""
        return self.manifest["result"]

    def file(self, name: str, *, verify: bool = True) -> Path:
        """Return one of its files; `verify` compares its sha256 with the manifest's.

        Raises:
            UserError: the file is missing or differs from what the manifest says.
        """
        path = self.path / name
        facts = self.manifest["files"].get(name)
        if facts is None or not path.is_file():
            text = f"required by {MANIFEST}, found no such file"
            raise UserError(f"{path}: {text}; delete {self.path} and submit again")
        if not verify:
            return path
        required = facts["sha256"]
        actual = file_sha256(path)
        if actual != required:
            text = f"sha256 is {actual[:8]}.., the manifest says {required[:8]}.."
            raise UserError(f"{path}: {text}; delete {self.path} and submit again")
        return path


@dataclass
class Draft:
    """A folder that becomes an artifact when its `with` block ends without an error."""

    path: Path
    result: Json


class Store:
    """A folder of artifacts; several processes may read and write it at the same time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, kind: str, key: str) -> Artifact | None:
        """Return a finished artifact; None if there is none or its manifest is damaged."""
        path = self.root / kind / key
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):  # no JSON, or not even text
            return None
        return Artifact(kind, key, path, manifest) if _is_complete(manifest) else None

    def has(self, kind: str, key: str) -> bool:
        """Return True if an artifact is there; its manifest is not read."""
        return (self.root / kind / key / MANIFEST).is_file()

    def get(self, kind: str, key: str) -> Artifact:
        """Return a finished artifact.

        Raises:
            UserError: there is none.
        """
        artifact = self.find(kind, key)
        if artifact is None:
            path = self.root / kind / key
            raise UserError(f"{path}: a finished artifact was required, found none; submit again")
        return artifact

    def all(self, kind: str) -> Iterator[Artifact]:
        """Yield the finished artifacts of a kind, newest first."""
        folder = self.root / kind
        paths = list(folder.iterdir()) if folder.is_dir() else []
        artifacts = []
        for path in paths:
            artifact = None if path.name.startswith(".") else self.find(kind, path.name)
            if artifact is not None:
                artifacts.append(artifact)
        yield from sorted(artifacts, key=lambda artifact: -artifact.manifest["finished"])

    def work_dir(self, kind: str, key: str) -> Path:
        """Return the folder for unfinished work on an artifact; it is removed at the end."""
        path = self.root / kind / f".work-{key}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def draft(self, kind: str, key: str, *, params: Any, inputs: dict[str, str]) -> Iterator[Draft]:
        """Write an artifact beside its place and rename it at the end.

        If another process was faster, its artifact stays and this one is dropped.
        """
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
            shutil.rmtree(place, ignore_errors=True)  # damaged, or partly deleted by hand
        try:
            beside.rename(place)
        except OSError:
            if self.find(place.parent.name, place.name) is None:
                raise


def _is_complete(manifest: Any) -> bool:
    """Return True if a manifest has all that is read of it; a damaged one may still be JSON."""
    if not isinstance(manifest, dict):
        return False
    for name in Manifest.__annotations__:
        if name not in manifest or not isinstance(manifest[name], _TYPES.get(name, dict)):
            return False
    for facts in manifest["files"].values():
        if not isinstance(facts, dict) or not facts.keys() >= FileFacts.__annotations__.keys():
            return False
    return True


def _file_facts(folder: Path) -> dict[str, FileFacts]:
    """Return the size and hash of each file, after its data are on the disk."""
    facts: dict[str, FileFacts] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as handle:
            # in subfolders are only Tune's files, 5 a trial and 1.5 ms each, which no result needs
            if path.parent == folder:
                os.fsync(handle.fileno())
            size_bytes = os.fstat(handle.fileno()).st_size
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
        name = path.relative_to(folder).as_posix()
        facts[name] = {"size_bytes": size_bytes, "sha256": sha256}
    return facts


@cache
def git_commit() -> str | None:
    """Return the commit of this code, with '+' if files differ from it; None without a checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        difference = _git("diff", "--quiet", "HEAD")
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode != 0:
        return None
    return commit.stdout.strip() + ("+" if difference.returncode else "")


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).resolve().parent
    return subprocess.run(
        ["git", *arguments], cwd=here, capture_output=True, text=True, timeout=5, check=False
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
