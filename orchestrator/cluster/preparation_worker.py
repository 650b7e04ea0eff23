"""A worker of the preparation whose models are loaded in a child of the fork server."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from data_prep.preparation.pool import PrepWorker
from data_prep.process_title import show_process_title
from orchestrator.cluster.fork_server import ChildDied, call

_loaded = PrepWorker()  # of a child


class ForkedWorker(PrepWorker):
    """Passes on what it is asked; where no fork server is in reach, it loads the models itself."""

    address = ""  # of the fork server

    def load(self, *args: Any) -> Any:
        """Load the models, see `PrepWorker`."""
        return self._ask(_load, args)

    def prepare(self, *args: Any) -> Any:
        """Prepare a few photos, see `PrepWorker`."""
        show_process_title(str(self))
        return self._ask(_prepare, (self.number, *args))

    def _ask(self, function: Callable[[Any], Any], args: Any) -> Any:
        try:
            return call(self.address, function, args)
        except ChildDied:
            os._exit(1)  # the pool counts the death of a worker, and starts another one


def forked_worker(address: str) -> type[PrepWorker]:
    """Return the class of workers that use a fork server."""
    return type("PrepWorker", (ForkedWorker,), {"address": address})


def _load(args: Any) -> Any:
    return _loaded.load(*args)


def _prepare(args: Any) -> Any:
    _loaded.number, *photos = args
    return _loaded.prepare(*photos)
