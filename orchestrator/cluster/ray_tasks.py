"""Map a function over items with Ray tasks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

from orchestrator.cluster.fork_server import call

_READER_VARIABLE = "ORCHESTRATOR_READER"
"""Ray keeps processes of another environment apart."""


def ray_map(
    function: Callable[[Any], Any],
    items: Collection[Any],
    *,
    name: str,
    cpu: float = 1,
    gpu: float = 0,
    fork_server: str | None = None,
    on_bucket: bool = False,
) -> Iterator[Any]:
    """Map a function over items with Ray tasks; yield the results in order.

    At most two tasks per core wait or run. An error of the function is raised here.

    Args:
        function: of one item.
        items: what to map.
        name: of the tasks; Ray's dashboard shows it as `catalog 12/70`.
        cpu: of one task.
        gpu: of one task.
        fork_server: address of a fork server whose children call the function, where one is in reach.
        on_bucket: the function makes requests to a bucket. Its tasks get processes of their own,
            which Ray gives to no worker of trials afterwards: one that forks would hang.
    """
    import ray  # noqa: PLC0415

    def get(reference: Any) -> Any:
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error

    def run(item: Any) -> Any:
        return function(item) if fork_server is None else call(fork_server, function, item)

    options: dict[str, Any] = {"num_cpus": cpu, "num_gpus": gpu}
    if on_bucket:
        options["runtime_env"] = {"env_vars": {_READER_VARIABLE: "1"}}
    remote = ray.remote(**options)(run)
    limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: list[Any] = []
    for number, item in enumerate(items, 1):
        task = remote.options(name=f"{name} {number}/{len(items)}")
        waiting.append(task.remote(item))
        if len(waiting) >= limit:
            yield get(waiting.pop(0))
    for reference in waiting:
        yield get(reference)
