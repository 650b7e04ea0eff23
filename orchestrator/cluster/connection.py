"""The connection to a Ray cluster: a running one, or a local one that is started for a run."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from orchestrator.base.errors import SpecError, UserError
from orchestrator.cluster.authentication import (
    MODE,
    TOKEN_PATH,
    require_accepted_token,
    token_file,
    token_source,
    write_token,
)
from orchestrator.cluster.local_guard import guard_cluster, marking
from orchestrator.cluster.local_watch import ServerDied, watch_servers, watch_start

_OBJECT_STORE_BYTES = 512 * 2**20
_PORT = 10001  # of ray:// where none is named
_ANSWER_S = 10.0
_STARTS = 3  # of a local cluster, until its servers stay
_LOCAL_NAMES = {"localhost", "auto", "local"}
_QUIET: Final = {
    "log_to_driver": False,
    "logging_level": logging.ERROR,
    "configure_logging": True,
}


@dataclass(frozen=True)
class Cluster:
    """A cluster to run on."""

    dashboard_url: str | None
    dashboard_problem: str | None  # why one that was wanted did not come up
    resources: dict[str, float]
    local: bool
    job_page: str | None = None  # of this process, on the dashboard

    def require(self, *, cpu: float, gpu: float) -> None:
        """Check that a worker fits into the cluster; Tune would wait for ever.

        Raises:
            SpecError: it has too few CPUs or GPUs.
        """
        for name, wanted in (("CPU", cpu), ("GPU", gpu)):
            available = self.resources.get(name, 0.0)
            if wanted > available:
                raise SpecError(
                    f"resources: {name.lower()}: {wanted:g} was required, the cluster has "
                    f"{available:g}; lower resources.per_trial or resources.per_prep_worker"
                )


def local_gpus() -> int:
    """Return the number of usable NVIDIA GPUs of this machine; imports nothing heavy."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in {"", "-1"}])
    return len([path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdecimal()])


@contextmanager
def connect(
    address: str | None,
    *,
    insecure: bool = False,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    dashboard: bool = True,
    may_exit: bool = False,
) -> Iterator[Cluster]:
    """Attach to the cluster at an address, or start a local one that ends with the block.

    Args:
        address: of a running cluster; None starts one.
        insecure: allow another machine's cluster without a token.
        num_cpus: of a local cluster; None: as many as the machine has.
        num_gpus: the same.
        dashboard: of a local cluster.
        may_exit: end this process, with a sentence, where Ray waits for a GCS that died at the start.

    Raises:
        UserError: nothing answers there, the token is wrong, or another machine needs one.
    """
    prepare_environment(address, insecure=insecure)
    _require_answer(address)
    import ray  # noqa: PLC0415 - a second, and the environment must stand before

    if address and "://" not in address and address not in _LOCAL_NAMES:
        require_accepted_token(address)
    if not address:
        started = _start_local(
            num_cpus=num_cpus, num_gpus=num_gpus, dashboard=dashboard, may_exit=may_exit
        )
    else:
        started = _attach(address)
    with started as context:
        node = ray._private.worker._global_node  # noqa: SLF001 - there is no public way
        watch = nullcontext(threading.Event()) if address else watch_servers(node)
        with watch as closing:
            try:
                yield _describe(context, local=not address, dashboard=dashboard)
            finally:
                closing.set()
                _leave()
                if not address:
                    # a folder per trial, whose content Tune has copied into the run
                    artifacts = Path(node.get_session_dir_path()) / "artifacts"
                    shutil.rmtree(artifacts, ignore_errors=True)


@contextmanager
def _attach(address: str) -> Iterator[Any]:
    """Connect to a running cluster; yield Ray's context."""
    import ray  # noqa: PLC0415

    try:
        # Ray would look for 127.0.0.1 at the machine's own address
        with _keep_sigterm(), _loopback_only() if _is_loopback(address) else nullcontext():
            context = ray.init(address=address, **_QUIET)
    except Exception as error:  # noqa: BLE001 - Ray raises many kinds; all mean: no cluster
        raise _unreachable(f"the Ray cluster at {address}", error) from None
    yield context


@contextmanager
def _start_local(
    *, num_cpus: int | None, num_gpus: int | None, dashboard: bool, may_exit: bool
) -> Iterator[Any]:
    """Start a cluster on this machine; yield Ray's context.

    Where the machine is so busy that an agent takes more than 15 s to start, Ray's raylet ends itself.
    Ray is then started again.
    """
    for n_more in reversed(range(_STARTS)):
        with guard_cluster() as mark:
            try:
                context = _init_local(
                    mark, num_cpus, num_gpus, dashboard=dashboard, may_exit=may_exit
                )
            except ServerDied:
                if n_more:
                    continue
                raise
            except Exception as error:  # noqa: BLE001 - Ray raises many kinds; all mean: no cluster
                raise _unreachable("a local Ray cluster", error) from None
            yield context
            return


def _init_local(
    mark: str, num_cpus: int | None, num_gpus: int | None, *, dashboard: bool, may_exit: bool
) -> Any:
    import ray  # noqa: PLC0415

    try:
        with _keep_sigterm(), _loopback_only(), marking(mark), watch_start(may_exit=may_exit):
            return ray.init(
                address="local",
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                # True would end the run where it does not come up
                include_dashboard=None if dashboard else False,
                dashboard_host="127.0.0.1",
                object_store_memory=_OBJECT_STORE_BYTES,
                **_QUIET,
            )
    except BaseException:
        _leave()
        raise


def _leave() -> None:
    """Leave the cluster; one that was started here ends."""
    import ray  # noqa: PLC0415

    ray.shutdown()
    if threading.current_thread() is threading.main_thread():
        # its C++ part takes the answer of this process to SIGTERM away
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _describe(context: Any, *, local: bool, dashboard: bool) -> Cluster:
    """Return the cluster that Ray is connected to."""
    import ray  # noqa: PLC0415

    url = f"http://{context.dashboard_url}" if context.dashboard_url else None
    problem = None
    if local and dashboard and url is None:
        problem = _last_line_of_dashboard()
    page = f"{url}/#/jobs/{ray.get_runtime_context().get_job_id()}" if url else None
    return Cluster(url, problem, ray.cluster_resources(), local=local, job_page=page)


def _unreachable(what: str, error: Exception) -> UserError:
    return UserError(
        f"{what} was required and could not be reached: {_brief(error)}; "
        "check the address, that Ray's versions are equal, and the token (RAY_AUTH_TOKEN_PATH)"
    )


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Let a cluster that is started or joined in the block be on 127.0.0.1 and nowhere else.

    Ray turns `_node_ip_address="127.0.0.1"` into the address of the machine. Where it supports no
    clusters, which is the case on macOS, it takes 127.0.0.1 by itself, and all its servers listen
    there.
    """
    from ray._private import ray_constants  # noqa: PLC0415 - there is no public way

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _keep_sigterm() -> Iterator[None]:
    """Answer SIGTERM when Ray has started, and as this process answers it.

    Ray's own answer ends it with exit code 15, and an exception in the middle of a start can abort it.
    While Ray's C++ part is made, some hundredths of a second, it has an answer of its own, which
    aborts: then the driver ends as by `kill -9`.
    """
    from ray._private import utils  # noqa: PLC0415 - there is no public way

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    set_handler = utils.set_sigterm_handler
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_handler
        signal.signal(signal.SIGTERM, before)
        if came:
            os.kill(os.getpid(), signal.SIGTERM)


def _last_line_of_dashboard() -> str:
    """Return the last line that this session's dashboard wrote."""
    import ray  # noqa: PLC0415

    node = ray._private.worker._global_node  # noqa: SLF001 - there is no public way
    for name in ("dashboard.log", "dashboard.err"):
        log = Path(node.get_logs_dir_path()) / name
        if log.is_file():
            text = log.read_text(encoding="utf-8", errors="replace")
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            if lines:
                return lines[-1][:300]
    return "it wrote nothing"


def _require_answer(address: str | None) -> None:
    """Raise unless something listens at an address; Ray would wait for minutes.

    Raises:
        UserError: nothing does within some seconds.
    """
    if not address or address in _LOCAL_NAMES:
        return
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        host = parts.hostname or ""
        port = parts.port or _PORT
        socket.create_connection((host, port), timeout=_ANSWER_S).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"a Ray cluster at {address} was required, nothing answers there: {error}; start it, "
            "correct --address (or RAY_ADDRESS), or leave it out for a local cluster"
        ) from None


def prepare_environment(address: str | None, *, insecure: bool) -> None:
    """Set what Ray reads when it is imported.

    Raises:
        SpecError: an address of another machine has no token.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # workers import these packages from the same place as this process
    root = str(Path(__file__).resolve().parents[2])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, paths)])
    has_token = token_source() is not None
    if address and not is_local(address) and not has_token and not insecure:
        raise SpecError(
            f"--address {address}: a token is required for another machine's cluster, found none; "
            f"set {TOKEN_PATH}, or use --insecure in a trusted network"
        )
    if address is None and not has_token:
        write_token(token_file())
        has_token = True
    if has_token:
        os.environ.setdefault(MODE, "token")


def is_local(address: str) -> bool:
    """Return True for an address of this machine; `local-gpu:6379` is another machine."""
    return _host_of(address) in _LOCAL_NAMES or _is_loopback(address)


def _is_loopback(address: str) -> bool:
    """Return True for an address whose host is a number such as 127.0.0.1."""
    host = _host_of(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_of(address: str) -> str:
    return urlsplit(address if "://" in address else f"ray://{address}").hostname or ""


def _brief(error: Exception) -> str:
    """Return an error's first line, without tokens."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"\b[0-9a-f]{32,}\b", "...", text)[:300]
