"""What is done to a cluster of containers while a run is on it."""

import contextlib
import time
from dataclasses import dataclass

import psutil

_UPLOAD_BYTES = 20_000
"""A request of this size is the upload of a file of an artifact."""
_AWAY_S = 60.0


@dataclass(frozen=True)
class Kind:
    """A fault: when it strikes, what it does, and what the cluster needs for it."""

    name: str
    moments: tuple[str, ...]  # taken in turns, one for each injection
    strike: object  # (cluster, moment) -> what was hit, or None if the moment is not there yet
    needs_redis: bool = False
    takes_s: float = 0.0  # until the cause is over


_TITLES = {
    "prepare": ("ray::PrepWorker",),
    "search": ("ray::TrialWorker s-",),
    "confirm": ("ray::TrialWorker c-",),
    "vote": ("ray::vote",),
}
"""Stage -> titles of the processes that work in it."""


def _is_at(cluster, moment):
    """Return the first (node, process) that shows that a run is at a stage; None if none does."""
    found = cluster.find(*_TITLES[moment])
    return found[0] if found else None


def kill_worker_node(cluster, moment):
    there = _is_at(cluster, moment)
    if there is None:
        return None
    node, process = there
    with contextlib.suppress(psutil.Error):
        title = " ".join(" ".join(process.cmdline()).split())  # it is padded
        node.kill()
        return f"{node.name} with {title}"
    return None


def _driver(cluster):
    for node, process in cluster.find("-m orchestrator submit"):
        if node.name == "head":
            with contextlib.suppress(psutil.Error):
                if "python" in process.name():
                    return process
    return None


def kill_driver(cluster, moment):
    process = _driver(cluster)
    if process is None or _is_at(cluster, moment) is None:
        return None
    process.kill()
    return f"driver, process {process.pid}"


def kill_head(cluster, moment):
    if _is_at(cluster, moment) is None:
        return None
    cluster.nodes["head"].kill()
    return "head"


def kill_s3_in_an_upload(cluster, moment):
    """Ask the front to end itself in the next upload; it is started again 5 s later."""
    if _is_at(cluster, moment) is None:
        return None
    s3 = cluster.s3
    s3.orders.write_text(str(_UPLOAD_BYTES))
    deadline = time.monotonic() + 120
    while s3.is_up:
        if time.monotonic() > deadline:
            s3.orders.unlink(missing_ok=True)
            return None
        time.sleep(0.05)
    time.sleep(5)
    s3.start_front()
    return "S3 server in the middle of an upload, back after 5 s"


def take_s3_away(cluster, moment):
    if _is_at(cluster, moment) is None:
        return None
    cluster.s3.stop_front()
    time.sleep(_AWAY_S)
    cluster.s3.start_front()
    return f"S3 server, back after {_AWAY_S:.0f} s"


def kill_queue(cluster, moment):
    found = cluster.find("ray::_QueueActor")
    if not found or _is_at(cluster, moment) is None:
        return None
    node, process = found[0]
    with contextlib.suppress(psutil.Error):
        process.kill()
        return f"queue's actor on {node.name}"
    return None


_WORK = ("prepare", "search", "confirm")
KINDS = (
    *(
        Kind(f"worker node in {stage}, kill -9", (stage,), kill_worker_node)
        for stage in ("prepare", "search", "confirm", "vote")
    ),
    Kind("driver, kill -9", _WORK, kill_driver),
    Kind("head without fault tolerance, kill -9", _WORK, kill_head),
    Kind("head with fault tolerance, kill -9", _WORK, kill_head, needs_redis=True),
    Kind("S3 server in an upload, kill -9", _WORK, kill_s3_in_an_upload),
    Kind("S3 server away for a minute", _WORK, take_s3_away),
    Kind("queue's actor, kill -9", _WORK, kill_queue),
)
