"""A lease: an object that says who works on something, renewed while its holder lives.

Who finds a lease that was not renewed for its time takes it over, by a write that succeeds for one
only. The age of a lease is the server's time of its last write against the local clock; a clock
that is ahead must not end a live lease, so the one that wants it also sees no renewal for a while.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from orchestrator.base.json_types import Json
from orchestrator.store.bucket.client import Bucket, BucketError, Content, Lost

TIME_S = 60.0
"""After so long without renewal a lease is free."""
_RENEWALS = 4  # in its time
_POLL_S = 0.5


def _nothing() -> None:
    pass


@dataclass
class Lease:
    """A lease on a name of a bucket; `acquire` and `release` are those of a `FileLock`."""

    bucket: Bucket  # hurried: renewals are repeated anyway
    name: str
    patient: Bucket | None = None  # to take it with, where a bucket that is gone is waited for
    time_s: float = TIME_S
    on_lost: Callable[[], None] = _nothing  # called when another one has taken it over
    _holder: str = field(default_factory=lambda: uuid.uuid4().hex)
    _version: Mapping[str, str] | None = None
    _n_renewed: int = 0
    _released: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def acquire(self, timeout: float = -1) -> None:
        """Wait for the lease and hold it.

        Args:
            timeout: seconds; -1 waits for ever. A stale lease is watched for a quarter of its time
                in any case.

        Raises:
            filelock.Timeout: somebody else holds it.
            BucketError: the bucket refuses, or does not answer.
        """
        from filelock import Timeout  # noqa: PLC0415

        deadline = time.monotonic() + timeout if timeout >= 0 else None
        while not self._take():
            if deadline is not None and time.monotonic() >= deadline:
                raise Timeout(self.name)
            time.sleep(_POLL_S)
        self._released.clear()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")
        self._thread.start()

    def _take(self) -> bool:
        """Create the lease or take a dead one over; return False while somebody holds it."""
        bucket = self.patient or self.bucket
        self._version = bucket.create(self.name, self._text())
        if self._version is not None:
            return True
        content = bucket.read(self.name)
        if content is None:
            return False
        if _facts(content).get("holder") == self._holder:  # written, and the answer was lost
            self._version = content.version
            return True
        if not _is_of_dead_process(content):
            if is_fresh(content, self.time_s):
                return False
            time.sleep(self.time_s / _RENEWALS * 1.3)
        try:
            self._version = bucket.replace(self.name, self._text(), content.version)
        except Lost:
            return False
        return True

    def _text(self) -> bytes:
        self._n_renewed += 1
        facts = {"holder": self._holder, "renewed": self._n_renewed, **_this_process()}
        return json.dumps(facts).encode()

    def _renew(self) -> None:
        while not self._released.wait(self.time_s / _RENEWALS):
            try:
                self._version = self.bucket.replace(self.name, self._text(), self._version or {})
            except Lost:
                if not self.is_ours():
                    self.on_lost()
                    return
            except BucketError:
                continue  # it may answer again before somebody else takes over

    def is_ours(self) -> bool:
        """Return True if the last write was ours after all: its answer may have been lost."""
        try:
            return self.is_ours_in(self.bucket)
        except BucketError:
            return True

    def is_ours_in(self, bucket: Bucket) -> bool:
        """Return True if the last write was ours, as the bucket says within its patience.

        Raises:
            BucketError: it does not answer, so nobody knows.
        """
        content = bucket.read(self.name)
        if content is None or _facts(content).get("holder") != self._holder:
            return False
        self._version = content.version
        return True

    def release(self) -> None:
        """Give the lease back. Where the bucket does not answer, it ends by itself."""
        self._released.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        try:
            content = self.bucket.read(self.name)
            if content is not None and _facts(content).get("holder") == self._holder:
                self.bucket.delete([self.name])
        except BucketError:
            return


def is_held(bucket: Bucket, name: str, time_s: float = TIME_S) -> bool:
    """Return True if somebody holds a lease, as far as its age and the local clock say."""
    content = bucket.read(name)
    return content is not None and is_fresh(content, time_s) and not _is_of_dead_process(content)


def is_fresh(content: Content, time_s: float) -> bool:
    """Return True if a lease was renewed within its time."""
    return time.time() - content.modified < time_s


def _facts(content: Content) -> Json:
    try:
        facts = json.loads(content.data)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _this_process() -> Json:
    """Return what tells this process from all others, on whatever machine."""
    return {
        "space": _process_space(),
        "pid": os.getpid(),
        "began": psutil.Process().create_time(),
    }


def _process_space() -> str:
    """Return the machine, its start and the namespace in which a pid means something."""
    names = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            is_link = Path(path).is_symlink()
            names.append(str(Path(path).readlink()) if is_link else Path(path).read_text().strip())
        except OSError:
            continue
    return " ".join(names)


def _is_of_dead_process(content: Content) -> bool:
    """Return True if the holder was a process of this machine that has ended: no need to wait."""
    facts = _facts(content)
    if facts.get("space") != _process_space():
        return False
    try:
        pid = int(facts["pid"])
        began = float(facts["began"])
    except (KeyError, TypeError, ValueError):
        return True
    try:
        process = psutil.Process(pid)
        is_same = abs(process.create_time() - began) < 1
        return not is_same or process.status() == psutil.STATUS_ZOMBIE
    except (ValueError, OverflowError):  # no pid
        return True
    except psutil.Error:
        return not _is_hidden(pid)


def _is_hidden(pid: int) -> bool:
    """Return True for a process of another user, which the system may not show (hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        pass
    return False
