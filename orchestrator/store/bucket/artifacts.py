"""A store on a bucket, with a folder of this machine as its cache.

The layout is that of a store in a folder, so any tool for buckets copies one into the other. Only
the files of an artifact lie one folder deeper, in one that its manifest names: two writers of one
artifact never write the same object, and the manifest, which is written last and once, decides.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from data_prep.files import atomic_path, file_sha256
from orchestrator.base.errors import UserError
from orchestrator.store.artifacts import DRAFT, MANIFEST, Artifact, Lock, Store, read_manifest
from orchestrator.store.bucket.client import Bucket, hurried, in_parallel
from orchestrator.store.bucket.lease import Lease
from orchestrator.store.bucket.runs import RunMirror, Runs

LIMIT_VARIABLE = "ORCHESTRATOR_CACHE_GB"
_LIMIT_GB = 100.0
_KEPT_S = 3600.0  # what was used so lately is never dropped from the cache
_TRIM_EVERY_S = 60.0
_FILES = "files-"
_LOCKS = "locks"
_RUN_FOLDERS = {"runs", "audits"}


class BucketStore(Store):
    """Artifacts and runs on a bucket."""

    def __init__(self, root: Path, url: str) -> None:
        """Open it; no request is made yet.

        Args:
            root: the cache.
            url: of the bucket.
        """
        super().__init__(root)
        self.url = url
        self._known: dict[tuple[str, str], Artifact] = {}  # whose manifests this process has read
        self._trimmed = time.monotonic()
        self._shared: set[tuple[Path, int, int]] = set()

    @cached_property
    def bucket(self) -> Bucket:
        """The objects below the URL."""
        return Bucket(self.url)

    @cached_property
    def _hurried(self) -> Bucket:
        """The same, for requests that are repeated anyway."""
        return hurried(self.url)

    @cached_property
    def runs(self) -> Runs:
        """The folders of runs in the bucket."""
        return Runs(self.bucket, self.root)

    @property
    def name(self) -> str:
        return self.url

    def find(self, kind: str, key: str) -> Artifact | None:
        """Return a finished artifact, as the bucket has it; its files come when they are asked for."""
        known = self._known.get((kind, key))
        if known is not None:
            return known
        content = self.bucket.read(f"{kind}/{key}/{MANIFEST}")
        return None if content is None else self._keep(kind, key, content.data)

    def _keep(self, kind: str, key: str, raw: bytes) -> Artifact | None:
        """Put a manifest into the cache and return its artifact; None if it is damaged."""
        manifest = read_manifest(raw)
        if manifest is None:
            return None
        home = self.root / kind / key
        place = home / MANIFEST
        if place.is_file() and place.read_bytes() != raw:
            shutil.rmtree(home, ignore_errors=True)  # of an artifact that was made again since
        if not place.is_file():  # files without it are those of a process that is publishing them
            with atomic_path(place) as beside:
                beside.write_bytes(raw)
        artifact = Artifact(kind, key, home / manifest.get("folder", ""), manifest, self._fetch)
        self._known[kind, key] = artifact
        return artifact

    def has(self, kind: str, key: str) -> bool:
        return (kind, key) in self._known or self.bucket.exists(f"{kind}/{key}/{MANIFEST}")

    def all(self, kind: str) -> Iterator[Artifact]:
        keys = self.bucket.folders(kind)
        artifacts = []
        for artifact in in_parallel(lambda key: self.find(kind, key), keys):
            if artifact is not None:
                artifacts.append(artifact)
        yield from sorted(artifacts, key=lambda artifact: -artifact.manifest["finished"])

    # -- files ----------------------------------------------------------------------------------
    def _fetch(self, artifact: Artifact, name: str | None) -> None:
        """Bring a file of an artifact into the cache, or all; each is verified once.

        Raises:
            UserError: the bucket lacks one, or it differs from what the manifest says.
        """
        with suppress(OSError):  # its last use, before others drop what was unused for long
            os.utime(self.root / artifact.kind / artifact.key)
        files = artifact.manifest["files"]
        wanted = list(files) if name is None else [name]
        if any(not _is_here(artifact, each) for each in wanted):
            lock = super().lock(artifact.kind, f".lock-fetch-{artifact.key}")
            lock.acquire()
            try:
                missing = [each for each in wanted if not _is_here(artifact, each)]
                list(in_parallel(lambda each: self._fetch_file(artifact, each), missing))
                self._keep_again(artifact)
            finally:
                lock.release()
            self._trim()

    def _keep_again(self, artifact: Artifact) -> None:
        """Put the manifest beside files that came back after they were dropped: `trim` looks for it."""
        kind, key = artifact.kind, artifact.key
        if not (self.root / kind / key / MANIFEST).is_file():
            content = self.bucket.read(f"{kind}/{key}/{MANIFEST}")
            if content is not None:
                self._keep(kind, key, content.data)

    def _fetch_file(self, artifact: Artifact, name: str) -> None:
        place = artifact.folder / name
        source = place.relative_to(self.root).as_posix()
        home = f"{self.url}/{artifact.kind}/{artifact.key}"
        advice = f"delete {home} and submit again"
        try:
            with atomic_path(place) as beside:
                self.bucket.download(source, beside)
                required = artifact.manifest["files"][name]["sha256"]
                actual = file_sha256(beside)
                if actual != required:
                    raise UserError(
                        f"{self.url}/{source}: sha256 is {actual[:8]}.., the manifest says "
                        f"{required[:8]}..; {advice}"
                    )
        except FileNotFoundError:
            raise UserError(
                f"{self.url}/{source}: required by {MANIFEST}, found no such object; {advice}"
            ) from None

    def _publish(self, beside: Path, place: Path) -> None:
        """Put files up, then the manifest: the first one counts, a later writer drops its own."""
        kind = place.parent.name
        key = place.name
        manifest = json.loads((beside / MANIFEST).read_bytes())
        folder = _FILES + beside.name[-8:]
        manifest["folder"] = folder
        (beside / MANIFEST).unlink()
        objects = {}
        for name in manifest["files"]:
            objects[f"{kind}/{key}/{folder}/{name}"] = beside / name
        list(in_parallel(lambda name: self.bucket.upload(objects[name], name), objects))
        place.mkdir(parents=True, exist_ok=True)
        beside.rename(place / folder)
        raw = (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()
        name = f"{kind}/{key}/{MANIFEST}"
        if self.bucket.create(name, raw) is None:
            content = self.bucket.read(name)
            first = None if content is None else read_manifest(content.data)
            if first is None:
                self.bucket.write(name, raw)  # a damaged one counts for nothing
            elif first.get("folder") != folder:
                self.bucket.delete(objects)
                shutil.rmtree(place / folder, ignore_errors=True)
                return
        with atomic_path(place / MANIFEST) as draft:
            draft.write_bytes(raw)
        self._keep(kind, key, raw)

    def remove(self, kind: str, name: str) -> None:
        self._known.pop((kind, name), None)
        folder = f"{kind}/{name.removeprefix(DRAFT)}"
        self.bucket.delete([f"{folder}/{MANIFEST}"])
        self.bucket.delete(each.name for each in self.bucket.objects(folder))
        super().remove(kind, name)

    def sizes(self, kind: str) -> dict[str, int]:
        """Return what the bucket has of a kind; uploads that were never finished count as drafts."""
        sizes: dict[str, int] = defaultdict(int)
        finished: dict[str, str | None] = {}  # key -> folder of its files
        for artifact in self.all(kind):
            finished[artifact.key] = artifact.manifest.get("folder")
        for stored in self.bucket.objects(kind):
            parts = stored.name.split("/")
            key = parts[1]
            folder = parts[2] if len(parts) > 3 else None
            name = key
            if key not in finished:
                name = DRAFT + key
            elif folder is not None and folder.startswith(_FILES) and folder != finished[key]:
                name = f"{DRAFT}{key}/{folder}"
            sizes[name] += stored.size_bytes
        return dict(sizes)

    # -- other machines -------------------------------------------------------------------------
    def lock(self, kind: str, name: str) -> Lock:
        return Lease(self._hurried, f"{_LOCKS}/{kind}/{name.strip('.')}", patient=self.bucket)

    def place_of(self, path: str) -> Path:
        from orchestrator.store.store_address import CACHES  # noqa: PLC0415

        parts = Path(path).parts
        start = len(parts) - parts[::-1].index(CACHES) + 1  # after the name of that cache
        return self.root.joinpath(*parts[start:])

    def here(self, path: str) -> Path:
        place = self.place_of(path)
        inside = place.relative_to(self.root)
        if inside.parts[0] not in _RUN_FOLDERS:
            kind, key = inside.parts[:2]
            return self.get(kind, key).path
        if not place.is_file():
            try:
                self.bucket.download(inside.as_posix(), place)
            except FileNotFoundError:
                raise UserError(
                    f"{self.url}/{inside}: a file of the run was required, found none"
                ) from None
        return place

    def share(self, path: Path) -> None:
        facts = path.stat()
        mark = (path, facts.st_mtime_ns, facts.st_size)
        if mark not in self._shared:
            self.bucket.upload(path, path.relative_to(self.root).as_posix())
            self._shared.add(mark)

    def driving(self, run: Path) -> AbstractContextManager[Callable[[], None]]:
        return RunMirror(self.runs, run, Lease(self._hurried, self.runs.lease_of(run)))

    # -- the cache ------------------------------------------------------------------------------
    def _trim(self) -> None:
        """Drop what was not used for longest while the cache is larger than its limit."""
        if time.monotonic() - self._trimmed < _TRIM_EVERY_S:
            return
        self._trimmed = time.monotonic()
        self.trim(float(os.environ.get(LIMIT_VARIABLE) or _LIMIT_GB) * 1e9)

    def trim(self, limit_bytes: float) -> None:
        """Drop artifacts from the cache until it fits a limit, those unused for longest first.

        What was used within the last hour stays: a training may be reading it.
        """
        cached = []
        for manifest in self.root.glob(f"*/*/{MANIFEST}"):
            home = manifest.parent
            with suppress(FileNotFoundError):  # another process drops it at the same time
                n_bytes = sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
                cached.append(_Cached(home.stat().st_mtime, n_bytes, home))
        excess = sum(each.n_bytes for each in cached) - limit_bytes
        for each in sorted(cached):
            if excess <= 0 or time.time() - each.used < _KEPT_S:
                return
            if _used(each.home) > each.used:  # since it was measured
                continue
            shutil.rmtree(each.home, ignore_errors=True)
            excess -= each.n_bytes


class _Cached(NamedTuple):
    """An artifact in the cache."""

    used: float  # seconds since 1970
    n_bytes: int
    home: Path


def _used(home: Path) -> float:
    """Return when an artifact of the cache was last used; 0 where another process has dropped it."""
    try:
        return home.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _is_here(artifact: Artifact, name: str) -> bool:
    """Return True if the cache has a file of the right size; its hash was verified when it came."""
    try:
        size_bytes = (artifact.folder / name).stat().st_size
    except OSError:
        return False
    return size_bytes == artifact.manifest["files"][name]["size_bytes"]
