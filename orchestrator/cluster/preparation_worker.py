"""A worker of the preparation whose models are loaded in a child of the fork server."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from data_prep.preparation.pool import Worker
from orchestrator.cluster.fork_server import ChildDied, call

_loaded = Worker()  # of a child


class ForkedWorker(Worker):
    """Passes on what it is asked; where no fork server is in reach, it loads the models itself."""

    address = ""  # of the fork server

    def load(self, *args: Any) -> Any:
        """Load the models, see `Worker`."""
        return self._ask(_load, args)

    def prepare(self, *args: Any) -> Any:
        """Prepare a few photos, see `Worker`."""
        return self._ask(_prepare, args)

    def _ask(self, function: Callable[[Any], Any], args: Any) -> Any:
        try:
            return call(self.address, function, args)
        except ChildDied:
            os._exit(1)  # the pool counts the death of a worker, and starts another one


def forked_worker(address: str) -> type[Worker]:
    """Return the class of workers that use a fork server."""
    return type("Worker", (ForkedWorker,), {"address": address})


def _load(args: Any) -> Any:
    return _loaded.load(*args)


def _prepare(args: Any) -> Any:
    return _loaded.prepare(*args)
