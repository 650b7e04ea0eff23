"""Image-classification experiments: spec -> plan -> run -> ensemble with its interval.

In a notebook: `run = orchestrator.open_run("latest")`, `orchestrator.submit("spec.yaml")`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.api import OpenRun, open_run, submit

__version__ = "0.1.0"
__all__ = ["OpenRun", "__version__", "open_run", "submit"]


def __getattr__(name: str) -> Any:
    """Import the interface for Python when it is first used; the command line needs none of it."""
    if name in __all__:
        from orchestrator import api  # noqa: PLC0415

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
