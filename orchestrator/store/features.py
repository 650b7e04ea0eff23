"""Features of frozen backbones in the store: computed once, then read by all trainings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from orchestrator.base.keys import stage_key
from orchestrator.base.stage_versions import VERSIONS
from orchestrator.store.artifacts import WORK, Store

FeatureStore = Callable[..., Any]
"""As `trainers.feature_cache.FeatureStore`; the features are (n, F) float32, mapped."""


def feature_store(store: Store, photos: str) -> FeatureStore:
    """Return where `trainers.feature_cache.FeatureCache` keeps the features of a preparation.

    Args:
        store: the artifacts.
        photos: key of the preparation, or its folder.
    """
    return partial(_keep, store, photos)


def _keep(
    store: Store,
    photos: str,
    identity: dict[str, object],
    compute: Callable[[], Any],
    *,
    wait: bool = True,
) -> Any:
    """Find features or compute them, once however many processes ask. Map them read-only.

    Returns:
        None where another process is computing them and `wait` is False.
    """
    import numpy as np  # noqa: PLC0415
    from filelock import Timeout  # noqa: PLC0415

    key = stage_key("features", VERSIONS["features"], identity, {"photos": photos})
    if store.find("features", key) is None:
        lock = store.lock("features", f"{WORK}{key}.lock")
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            return None
        try:
            if store.find("features", key) is None:
                inputs = {"photos": photos}
                with store.draft("features", key, params=identity, inputs=inputs) as draft:
                    np.save(draft.path / "features.npy", compute())
        finally:
            lock.release()
    return np.load(store.get("features", key).path / "features.npy", mmap_mode="r")
