"""The fork server: a process that has torch and timm imported, from which others are forked.

Search, confirm, vote and certificate run in workers of Ray that end with their phase, and each of
them would import for seconds what the one before had imported. So the driver starts a fork server, and a
worker asks it for a child. The child ends when its worker, the fork server or the driver ends. A worker
that reaches no fork server, because it is on another machine or the fork server has died, imports by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import os
import pickle
import secrets
import selectors
import signal
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe, reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from data_prep.process_title import show_process_title

Task = Callable[[Any, int], Any]
"""What a child does: gets its end of a pipe, and the pid of the process that it was forked from."""

_PR_SET_PDEATHSIG = 1  # prctl(2)
_N_WAITING = 128  # connections, while the fork server imports
_REAP_EVERY_S = 0.01


class ForkServerGone(ConnectionError):  # noqa: N818 - says what is the case
    """No fork server can be reached from here."""


class ChildDied(RuntimeError):  # noqa: N818 - says what happened
    """The child that a call was made in has died."""


@dataclass(frozen=True)
class _Order:
    """What a child takes over from the worker that asks for it."""

    task: bytes  # pickled
    environment: dict[str, str]
    folder: str


@dataclass
class _Child:
    """A child as the fork server sees it."""

    pid: int
    is_awaited: bool = False  # its worker asks for its exit status


@contextmanager
def start_fork_server(modules: Iterable[str], *, threads: int) -> Iterator[str]:
    """Run a fork server while the block lasts; yield its address.

    Args:
        modules: what it imports, in this order; a child that is asked for early has the first.
        threads: of numerical libraries; they read it once, when they are imported.
    """
    address = f"robust-vote-{os.getpid()}-{secrets.token_hex(8)}"
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"OMP_NUM_THREADS": str(threads), "NO_ALBUMENTATIONS_UPDATE": "1", **os.environ}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{address}")  # no file, so that nothing is left after a kill
        listener.listen(_N_WAITING)
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(listener.fileno()), str(os.getpid()), *modules],
            env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt is for the driver
        )
    try:
        yield address
    finally:
        process.kill()
        process.wait()


class Fork:
    """A child of the fork server, as its worker sees it."""

    def __init__(self, control: Connection, pid: int) -> None:
        self.pid = pid
        self._control = control

    def wait(self) -> int:
        """Wait for its end; return its status as `os.waitpid` does."""
        try:
            self._control.send_bytes(b"wait")
            return int(self._control.recv_bytes())
        except (EOFError, OSError):
            return signal.SIGKILL  # the fork server has died, and its children with it
        finally:
            self._control.close()


def fork(address: str, task: Task, child_end: Connection) -> Fork:
    """Let the fork server fork a child that does a task.

    It has this process's environment and folder.

    Args:
        address: of the fork server; it may still be importing.
        task: a function of a module, or a partial of one.
        child_end: of a pipe; close it afterwards.

    Raises:
        ForkServerGone: there is none, the task is no function of a module, or this process could
            not see the child.
    """
    try:
        order = _Order(pickle.dumps(task), dict(os.environ), str(Path.cwd()))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"\0{address}")
            if _peer_of(client).pid == 0:
                # a container with this machine's network: it would not see the child's pid either
                raise ForkServerGone(f"{address} is in another space of process ids")
            control = Connection(client.detach())
    except (OSError, AttributeError, TypeError, pickle.PicklingError) as error:
        raise ForkServerGone(str(error)) from None
    try:
        control.send_bytes(pickle.dumps(order))
        reduction.send_handle(control, child_end.fileno(), None)
        return Fork(control, int(control.recv_bytes()))
    except (EOFError, OSError) as error:
        control.close()
        raise ForkServerGone(str(error)) from None


class _Peer(NamedTuple):
    """The process at the other end of a socket."""

    pid: int  # 0 where it is not to be seen from here
    user: int


def _peer_of(connected: socket.socket) -> _Peer:
    form = "3i"
    given = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(form))
    pid, user, _ = struct.unpack(form, given)
    return _Peer(pid, user)


def call(address: str, function: Callable[[Any], Any], item: Any) -> Any:
    """Call a function of a module in a child of the fork server; without a fork server, call it here.

    A process has one such child, which keeps what it has loaded for the next call. An error of the
    function is raised here.

    Raises:
        ChildDied: the child died, for lack of memory for example.
    """
    try:
        pipe = _caller(address)
    except ForkServerGone:
        return function(item)
    try:
        pipe.send((function, item))
        is_error, answer = pipe.recv()
    except (EOFError, ConnectionError):
        _caller.cache_clear()
        name = getattr(function, "__name__", "a function")
        raise ChildDied(f"the process that ran {name} died; look at free memory") from None
    if is_error:
        raise answer
    return answer


@functools.cache
def _caller(address: str) -> Connection:
    """Return the pipe to a child that answers calls."""
    here, there = Pipe()
    child = fork(address, _answer_calls, there)
    there.close()
    _children.append(child)
    return here


_children: list[Fork] = []  # they end when this process closes their connection


def _answer_calls(pipe: Connection, parent: int) -> None:
    leave_parent(pipe.fileno(), parent)
    with contextlib.suppress(EOFError, OSError):
        while True:
            function, item = pipe.recv()
            try:
                answer = False, function(item)
            except Exception as error:  # noqa: BLE001 - the caller raises it
                answer = True, _sendable(error)
            pipe.send(answer)


def _sendable(error: Exception) -> Exception:
    """Return an error that arrives; a class that wants other arguments than its text does not."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:  # noqa: BLE001 - whatever a class raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def leave_parent(pipe: int, parent: int) -> None:
    """Keep nothing of the process this one was forked from but a pipe, and end when it ends.

    Args:
        pipe: its file descriptor.
        parent: pid of that process.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        # where memory runs out, the kernel shall end a trial and not the cluster
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    for path in list(Path("/proc/self/fd").iterdir()):
        handle = int(path.name)
        if handle > 2 and handle != pipe:
            with contextlib.suppress(OSError):
                os.close(handle)  # the cluster's sockets must not stay open here
    # the cluster's own streams write to its logs
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)


class _Server:
    """Forks a child per connection. It has one thread, because a fork copies only that one."""

    def __init__(self, listener: socket.socket, modules: Iterable[str]) -> None:
        self._listener = listener
        self._modules = deque(modules)  # to be imported
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._children: dict[Connection, _Child | None] = {}  # by connection; None before the order

    def run(self) -> NoReturn:
        """Import a module at a time and answer in between, then answer until the driver ends."""
        while True:
            timeout_s = None
            if self._modules:
                importlib.import_module(self._modules.popleft())
                # the collector would otherwise touch, and so copy, each page that children share
                gc.freeze()
                timeout_s = 0.0
            elif any(child and child.is_awaited for child in self._children.values()):
                timeout_s = _REAP_EVERY_S
            for key, _ in self._selector.select(timeout_s):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._hear(key.fileobj)
            self._reap()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if _peer_of(client).user != os.getuid():
            client.close()
            return
        control = Connection(client.detach())
        self._children[control] = None
        self._selector.register(control, selectors.EVENT_READ)

    def _hear(self, control: Any) -> None:
        """Take in what a worker says: an order first, later that it waits for the end."""
        child = self._children[control]
        try:
            message = control.recv_bytes()
            if child is None:
                handle = reduction.recv_handle(control)
                pid = self._fork(message, handle)
                self._children[control] = _Child(pid)
                os.close(handle)
                control.send_bytes(str(pid).encode())
            else:
                child.is_awaited = True
        except (EOFError, OSError):  # the worker has ended
            self._selector.unregister(control)
            child = self._children[control]
            if child is None:
                self._close(control)
                return
            child.is_awaited = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)

    def _fork(self, order: bytes, handle: int) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            wanted: _Order = pickle.loads(order)  # noqa: S301 - of a process of the same user
            os.environ.clear()
            os.environ.update(wanted.environment)
            with contextlib.suppress(OSError):
                os.chdir(wanted.folder)
            pickle.loads(wanted.task)(Connection(handle), parent)  # noqa: S301
            status = 0
        finally:
            os._exit(status)

    def _reap(self) -> None:
        """Take the status of awaited children that have ended, and pass it on."""
        for control, child in list(self._children.items()):
            if child is None or not child.is_awaited:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                with contextlib.suppress(OSError):  # the worker has ended too
                    control.send_bytes(str(status).encode())
                self._close(control)

    def _close(self, control: Connection) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(control)
        del self._children[control]
        control.close()


def main(handle: int, parent: int, modules: Iterable[str]) -> NoReturn:
    """Import, and fork children for whoever asks, until the driver ends.

    Args:
        handle: file descriptor of the listening socket.
        parent: pid of the driver.
        modules: what to import.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
    # children change theirs: the library finds its place only in an untouched environment
    show_process_title(f"fork server of {parent}")
    _Server(socket.socket(fileno=handle), modules).run()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
