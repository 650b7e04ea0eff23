"""The name of a process in `ps` and on Ray's dashboard."""

from __future__ import annotations

import sys

import setproctitle


def show_process_title(title: str) -> None:
    """Give this process a name, until Ray gives it another one.

    In a worker of Ray the name begins with `ray::`, as all of Ray's do. There Ray's own copy of the
    library sets it, because it has moved what a second copy would look for.
    """
    raylet = sys.modules.get("ray._raylet")
    if raylet is None:
        setproctitle.setproctitle(title)
    else:
        raylet.setproctitle(f"ray::{title}")
