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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, TypedDict

from data_prep.files import file_sha256, write_json
from orchestrator.base.errors import UserError
from orchestrator.base.json_types import Json

MANIFEST = "manifest.json"
DRAFT = ".draft-"
WORK = ".work-"
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


class _Required(TypedDict):
    """What every manifest.json has."""

    params: Json
    inputs: dict[str, str]
    result: Json  # small values that the stage wrote down, which planning may read
    files: dict[str, FileFacts]
    finished: float
    host: str
    git_commit: str | None


class Manifest(_Required, total=False):
    """What readers need of a manifest.json."""

    folder: str  # of its files, where they are not beside it: an artifact that was put on a bucket


_TYPES: dict[str, Any] = {"finished": int | float, "host": str, "git_commit": str | None}
"""Key of a manifest -> its type; all other keys hold an object."""


@dataclass(frozen=True)
class Artifact:
    """A finished folder of the store and its manifest."""

    kind: str
    key: str
    folder: Path
    manifest: Manifest
    fetch: Callable[[Artifact, str | None], None] | None = None  # brings a file, or all, to here

    @property
    def path(self) -> Path:
        """Its folder, with all its files."""
        if self.fetch is not None:
            self.fetch(self, None)
        return self.folder

    @property
    def result(self) -> Json:
        """What the stage wrote down about its outcome."""
        return self.manifest["result"]

    def file(self, name: str, *, verify: bool = True) -> Path:
        """Return one of its files; `verify` compares its sha256 with the manifest's.

        Raises:
            UserError: the file is missing or differs from what the manifest says.
        """
        path = self.folder / name
        facts = self.manifest["files"].get(name)
        if facts is not None and self.fetch is not None:
            self.fetch(self, name)
        if facts is None or not path.is_file():
            text = f"required by {MANIFEST}, found no such file"
            raise UserError(f"{path}: {text}; delete {self.folder} and submit again")
        if not verify:
            return path
        required = facts["sha256"]
        actual = file_sha256(path)
        if actual != required and self.fetch is not None:  # the copy of this machine was changed
            path.unlink()
            self.fetch(self, name)
            actual = file_sha256(path)
        if actual != required:
            text = f"sha256 is {actual[:8]}.., the manifest says {required[:8]}.."
            raise UserError(f"{path}: {text}; delete {self.folder} and submit again")
        return path


@dataclass
class Draft:
    """A folder that becomes an artifact when its `with` block ends without an error."""

    path: Path
    result: Json


class Lock(Protocol):
    """A lock of the store, as `filelock.FileLock` is one."""

    def acquire(self, timeout: float = -1) -> Any:
        """Hold it; raises `filelock.Timeout`."""

    def release(self) -> Any:
        """Give it back."""


class Store:
    """A folder of artifacts; several processes may read and write it at the same time.

    `store/bucket/artifacts.py` is the same over a bucket, with this folder as its cache.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def name(self) -> str:
        """What `places.open_store` opens this store by, on any machine that reaches it."""
        return str(self.root)

    def find(self, kind: str, key: str) -> Artifact | None:
        """Return a finished artifact; None if there is none or its manifest is damaged."""
        path = self.root / kind / key
        try:
            raw = (path / MANIFEST).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        manifest = read_manifest(raw)
        if manifest is None:
            return None
        return Artifact(kind, key, path / manifest.get("folder", ""), manifest)

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

    def remove(self, kind: str, name: str) -> None:
        """Delete an artifact, a draft or unfinished work.

        Without its manifest it is no artifact, so that goes first.
        """
        (self.root / kind / name / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.root / kind / name, ignore_errors=True)

    def sizes(self, kind: str) -> dict[str, int]:
        """Return the artifacts, drafts and unfinished work of a kind, with the bytes that each takes."""
        home = self.root / kind
        sizes: dict[str, int] = {}
        for path in sorted(home.iterdir()) if home.is_dir() else []:
            is_hidden = path.name.startswith(".") and not path.name.startswith((DRAFT, WORK))
            if path.is_dir() and not is_hidden:
                sizes[path.name] = _size(path)
        return sizes

    def lock(self, kind: str, name: str) -> Lock:
        """Return a lock that one process at a time may hold, on whatever machine."""
        from filelock import FileLock  # noqa: PLC0415

        folder = self.root / kind
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / name)

    def place_of(self, path: str) -> Path:
        """Return the place on this machine of a path in another one's copy of this store."""
        return Path(path)

    def here(self, path: str) -> Path:
        """Return the same, with its content."""
        return Path(path)

    def share(self, path: Path) -> None:
        """Let other machines have a file of a run now; in a folder they see it already."""

    def driving(self, run: Path) -> AbstractContextManager[Callable[[], None]]:
        """Return a block in which this process alone drives a run. Its value is called at commits.

        Raises:
            LedgerLocked: another process does.
        """
        del run
        return nullcontext(_nothing)

    def work_dir(self, kind: str, key: str) -> Path:
        """Return the folder for unfinished work on an artifact; it is removed at the end."""
        path = self.root / kind / f"{WORK}{key}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def draft(self, kind: str, key: str, *, params: Any, inputs: dict[str, str]) -> Iterator[Draft]:
        """Write an artifact beside its place and rename it at the end.

        If another process was faster, its artifact stays and this one is dropped.
        """
        home = self.root / kind
        home.mkdir(parents=True, exist_ok=True)
        beside = home / f"{DRAFT}{key[:16]}-{uuid.uuid4().hex[:8]}"
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
            shutil.rmtree(home / f"{WORK}{key}", ignore_errors=True)
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


def _nothing() -> None:
    pass


def read_manifest(raw: bytes) -> Manifest | None:
    """Return a manifest; None for a damaged one, which may be no JSON or not even text."""
    try:
        manifest = json.loads(raw)
    except ValueError:
        return None
    return manifest if _is_complete(manifest) else None


def _is_complete(manifest: Any) -> bool:
    """Return True if a manifest has all that is read of it; a damaged one may still be JSON."""
    if not isinstance(manifest, dict):
        return False
    if not isinstance(manifest.get("folder", ""), str):
        return False
    for name in _Required.__annotations__:
        if name not in manifest or not isinstance(manifest[name], _TYPES.get(name, dict)):
            return False
    for facts in manifest["files"].values():
        if not isinstance(facts, dict) or not facts.keys() >= FileFacts.__annotations__.keys():
            return False
    return True


def _size(path: Path) -> int:
    """Return the bytes that deleting a folder frees: a file with another link frees none."""
    n_bytes = 0
    for file in path.rglob("*"):
        if file.is_file() and not file.is_symlink():
            facts = file.stat()
            n_bytes += facts.st_size // facts.st_nlink
    return n_bytes


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
