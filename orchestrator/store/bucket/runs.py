"""The folders of runs in a bucket: what other machines wrote comes, what a driver writes goes up.

The ledger goes up in segments, named by the byte that they begin at and written once each: a driver
that was taken over cannot write into the ledger of its successor. When a driver leaves, the segments
become one `events.jsonl`, as a store in a folder has it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from data_prep.files import atomic_path, write_json
from orchestrator.base.errors import UserError
from orchestrator.store.bucket.client import Bucket, BucketError, Stored, hurried, in_parallel
from orchestrator.store.bucket.lease import Lease, is_held
from orchestrator.store.ledger import EVENTS, LOCK, LedgerLocked, is_driven_here

SEGMENTS = "events"
LEASE = "driver.lease"
_INDEX = ".objects.json"
_SMALL = {
    "spec.yaml",
    "resolved.yaml",
    "summary.json",
    "plan.json",
    "families.json",
    "selection.json",
    "trials.parquet",
    "error.txt",
    "control/pending",
    EVENTS,
}
"""What `runs`, `plan` and a later search read of all runs."""
_LEFT_OUT = {"control", "tune"}  # folders that stay where the driver is
_SHOWN = {"control/dashboard", "control/pending"}
_LOOK_EVERY_S = 2.0
_SEND_EVERY_S = 1.0
_FILES_EVERY_S = 10.0
_LIVE_S = 60.0


class Runs:
    """The runs of a bucket, and their copies in the cache."""

    def __init__(self, bucket: Bucket, root: Path) -> None:
        self.bucket = bucket
        self.root = root
        self._looked: dict[Path, tuple[float, bool]] = {}  # run -> when, and whether it was live

    def prefix_of(self, run: Path) -> str:
        """Return the name of a run's folder in the bucket."""
        return run.relative_to(self.root).as_posix()

    def lease_of(self, run: Path) -> str:
        """Return the name of the lease that the driver of a run holds."""
        return f"{self.prefix_of(run)}/{LEASE}"

    def pull_all(self) -> None:
        """Bring what lists and plans read of all runs."""
        by_run: dict[Path, list[Stored]] = {}
        for stored in self.bucket.objects("runs"):
            parts = stored.name.split("/")
            run = self.root / parts[0] / parts[1]
            by_run.setdefault(run, []).append(stored)
        for run, objects in by_run.items():
            self._pull(run, objects, only_small=True)
        for run in (self.root / "runs").glob("*"):
            is_deleted = run not in by_run and Index(run).n_event_bytes > 0
            if is_deleted and not is_driven_here(run):
                shutil.rmtree(run, ignore_errors=True)

    def pull(self, run: Path) -> None:
        """Bring what the bucket has of one run."""
        self._pull(run, self.bucket.objects(self.prefix_of(run)), only_small=False)

    def _pull(self, run: Path, objects: list[Stored], *, only_small: bool) -> None:
        if is_driven_here(run) or not objects:
            return
        index = Index(run)
        prefix = f"{self.prefix_of(run)}/"
        names: dict[str, Stored] = {}
        for stored in objects:
            names[stored.name.removeprefix(prefix)] = stored
        events = {name: stored for name, stored in names.items() if _is_of_ledger(name)}
        self._pull_events(run, index, events)
        wanted = []
        for name, stored in names.items():
            is_file = name not in events and name != LEASE and _is_mirrored(name)
            is_new = index.versions.get(name) != stored.version or not (run / name).is_file()
            if is_file and is_new and (not only_small or name in _SMALL):
                wanted.append(name)

        def bring(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self.bucket.download(names[name].name, run / name, names[name].modified)
                index.versions[name] = names[name].version

        list(in_parallel(bring, wanted))
        for name in index.versions.keys() - names.keys():
            (run / name).unlink(missing_ok=True)
            del index.versions[name]
        index.n_bytes = sum(stored.size_bytes for stored in objects)
        index.write()

    def _pull_events(self, run: Path, index: Index, events: dict[str, Stored]) -> None:
        """Bring the part of a ledger that is new. What this machine alone has of it stays."""
        end = _end_of(events)
        if end < index.n_event_bytes:  # another store was copied to there
            index.n_event_bytes = 0
        start = index.n_event_bytes
        if end == start:
            return
        place = run / EVENTS
        before = place.read_bytes()[:start] if place.is_file() else b""
        if len(before) < start:
            start = 0
            before = b""
        added = self.read_events(run, events, start)
        if not added:  # joined or deleted since it was listed; the next look tells
            return
        data = before + added
        modified = max(stored.modified for stored in events.values())
        with atomic_path(place) as beside:
            beside.write_bytes(data)
            os.utime(beside, (modified, modified))
        index.n_event_bytes = len(data)

    def read_events(self, run: Path, events: dict[str, Stored], start: int) -> bytes:
        """Return the ledger's bytes in the bucket from a place on."""
        data = b""
        prefix = self.prefix_of(run)
        if EVENTS in events and events[EVENTS].size_bytes > start:
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                data = self.bucket.read_from(f"{prefix}/{EVENTS}", start)
        wanted = []
        for name in sorted(events.keys() - {EVENTS}):
            if _start_of(name) >= start + len(data):
                wanted.append(name)
        contents = in_parallel(lambda name: self.bucket.read(f"{prefix}/{name}"), wanted)
        for name, content in zip(wanted, contents, strict=True):
            if content is None or _start_of(name) != start + len(data):
                break
            data += content.data
        return data

    def is_live(self, run: Path) -> bool:
        """Return True if a driver on any machine holds the run; bring what it has written meanwhile.

        The bucket is asked every two seconds at most.
        """
        asked, was_live = self._looked.get(run, (-_LOOK_EVERY_S, False))
        if time.monotonic() - asked < _LOOK_EVERY_S:
            return was_live
        is_live = is_held(self.bucket, self.lease_of(run), _LIVE_S)
        self._pull(run, self.bucket.objects(self.prefix_of(run)), only_small=True)
        self._looked[run] = (time.monotonic(), is_live)
        return is_live

    def size_bytes(self, run: Path) -> int | None:
        """Return what the bucket had of a run when it was looked at last; None before."""
        return Index(run).n_bytes

    def remove(self, run: Path) -> None:
        """Delete a run's folder in the bucket."""
        self.bucket.delete(stored.name for stored in self.bucket.objects(self.prefix_of(run)))

    def request(self, run: Path, name: str) -> None:
        """Leave a request to the driver of a run."""
        self.bucket.write(f"{self.prefix_of(run)}/control/{name}", b"")


class Index:
    """What the cache has of a run, in a file beside it: versions of objects, bytes of the ledger."""

    def __init__(self, run: Path) -> None:
        self._place = run / _INDEX
        self.versions: dict[str, str] = {}
        self.n_event_bytes = 0  # of the local ledger that the bucket has
        self.n_bytes: int | None = None  # of the run in the bucket
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            facts = json.loads(self._place.read_bytes())
            self.n_event_bytes = int(facts["event_bytes"])
            self.n_bytes = facts["bytes"]
            self.versions = dict(facts["versions"])

    def write(self) -> None:
        """Write the file."""
        facts = {"event_bytes": self.n_event_bytes, "bytes": self.n_bytes}
        write_json(self._place, {**facts, "versions": self.versions})


class RunMirror:
    """Holds the lease of a run and sends what its driver writes; a `with` block.

    Its value is called at every commit of the ledger.
    """

    def __init__(self, runs: Runs, run: Path, lease: Lease) -> None:
        self.runs = runs
        self.run = run
        self.lease = lease
        self.prefix = runs.prefix_of(run)
        self.index = Index(run)
        self._bucket = runs.bucket
        self._requests = hurried(self._bucket.url)
        self._sent: dict[str, tuple[int, int]] = {}  # file -> time and size when it was sent
        self._files_sent = 0.0
        self._is_lost = False
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Callable[[], None]:
        from filelock import Timeout  # noqa: PLC0415

        if is_driven_here(self.run):  # the sentence of a store in a folder
            raise LedgerLocked(f"run {self.run.name} is driven by another process")
        self.lease.on_lost = self._end
        try:
            self.lease.acquire(timeout=0)
        except Timeout:
            raise LedgerLocked(f"run {self.run.name} is driven by another process") from None
        try:
            self.runs.pull(self.run)
            self.index = Index(self.run)
            requests = self._bucket.objects(f"{self.prefix}/control")
            old = [stored.name for stored in requests]  # to an earlier driver
            self._bucket.delete([*old, f"{self.prefix}/summary.json"])
        except BaseException:
            self.lease.release()
            raise
        for work in (self._send_now_and_then, self._listen):
            thread = threading.Thread(target=work, daemon=True, name=f"mirror {work.__name__}")
            thread.start()
            self._threads.append(thread)
        return self._wake.set

    def __exit__(self, *exc: object) -> None:
        self._closed.set()
        self._wake.set()
        for thread in self._threads:
            thread.join()
        try:
            self._is_lost = self._is_lost or not self.lease.is_ours_in(self._bucket)
            self._send_events()
            self._send_files()
            self._join_segments()
        except BucketError as error:
            raise BucketError(
                f"{error}. The run's files are in {self.run}; the same command sends the rest"
            ) from None
        finally:
            self.lease.release()
        if self._is_lost:
            (self.run / "summary.json").unlink(missing_ok=True)  # the other driver writes its own
            raise UserError(
                f"run {self.run.name}: another driver has taken it over, because nothing was heard "
                f"of this one for {self.lease.time_s:g} s; follow it with `status {self.run.name}`"
            )

    def _end(self) -> None:
        """End this driver, as `kill` does: another one has taken the run over."""
        self._is_lost = True
        os.kill(os.getpid(), signal.SIGTERM)

    def _send_now_and_then(self) -> None:
        while not self._closed.is_set():
            self._wake.wait(_FILES_EVERY_S)  # a run that waits for its turn commits nothing
            self._wake.clear()
            try:
                self._send_events()
                if time.monotonic() - self._files_sent > _FILES_EVERY_S:
                    self._send_files()
                    self._files_sent = time.monotonic()
            except (UserError, OSError):  # OSError: a folder that vanished while it was listed
                self._wake.set()  # again, until the run ends
            self._closed.wait(_SEND_EVERY_S)

    def _listen(self) -> None:
        """Bring requests to this driver that other machines have left."""
        folder = f"{self.prefix}/control"
        while not self._closed.wait(_LOOK_EVERY_S):
            with contextlib.suppress(BucketError, OSError):  # OSError: a full disk, or a new folder
                for stored in self._requests.objects(folder):
                    place = self.run / "control" / stored.name.rpartition("/")[2]
                    if f"control/{place.name}" not in _SHOWN and place.parent.is_dir():
                        place.touch()

    def _send_events(self) -> None:
        """Send the complete new lines of the ledger as one segment."""
        place = self.run / EVENTS
        if self._is_lost or not place.is_file():
            return
        start = self.index.n_event_bytes
        with place.open("rb") as file:
            file.seek(start)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        if not data:
            return
        name = f"{self.prefix}/{SEGMENTS}/{start:012d}.jsonl"
        if self._bucket.create(name, data) is None:
            content = self._bucket.read(name)
            first = content.data if content else b""
            if not first or not data.startswith(first):  # not ours, whose answer was lost
                self._end()
                return
            data = first
        self.index.n_event_bytes = start + len(data)
        self.index.write()

    def _send_files(self) -> None:
        """Send files that are new or changed; of those that are shown, take back what has gone."""
        if self._is_lost:  # those of the driver that took the run over stay
            return
        new = {}
        for path in self.run.rglob("*"):
            name = path.relative_to(self.run).as_posix()
            if not path.is_file() or not _is_mirrored(name) or _is_of_ledger(name):
                continue
            with contextlib.suppress(FileNotFoundError):
                facts = path.stat()
                mark = (facts.st_mtime_ns, facts.st_size)
                if self._sent.get(name) != mark:
                    new[name] = mark

        gone = [name for name in _SHOWN & self._sent.keys() if not (self.run / name).is_file()]
        if not new and not gone:
            return

        def send(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):  # it was a draft
                version = self._bucket.upload(self.run / name, f"{self.prefix}/{name}")
                self.index.versions[name] = version
                self._sent[name] = new[name]

        last = [name for name in new if name == "summary.json"]  # it says that the rest is there
        list(in_parallel(send, [name for name in new if name not in last]))
        list(in_parallel(send, last))
        self._bucket.delete(f"{self.prefix}/{name}" for name in gone)
        for name in gone:
            del self._sent[name]
            self.index.versions.pop(name, None)
        self.index.write()

    def _join_segments(self) -> None:
        """Make one object of the segments."""
        place = self.run / EVENTS
        if self._is_lost or not place.is_file():
            return
        self._bucket.upload(place, f"{self.prefix}/{EVENTS}")
        self.index.n_event_bytes = place.stat().st_size
        self.index.write()
        segments = self._bucket.objects(f"{self.prefix}/{SEGMENTS}")
        self._bucket.delete(stored.name for stored in segments)


def _is_mirrored(name: str) -> bool:
    """Return True for a file of a run that belongs into the bucket."""
    parts = name.split("/")
    if name in _SHOWN:
        return True
    is_hidden = any(part.startswith(".") for part in parts)
    return not is_hidden and parts[0] not in _LEFT_OUT and name not in {LOCK, LEASE}


def _is_of_ledger(name: str) -> bool:
    return name == EVENTS or name.startswith(f"{SEGMENTS}/")


def _start_of(segment: str) -> int:
    return int(segment.removeprefix(f"{SEGMENTS}/").removesuffix(".jsonl"))


def _end_of(events: dict[str, Stored]) -> int:
    """Return how many bytes of a ledger a bucket has."""
    ends = [0]
    for name, stored in events.items():
        start = 0 if name == EVENTS else _start_of(name)
        ends.append(start + stored.size_bytes)
    return max(ends)
