"""Features of frozen backbones in the store: computed once, then read by all trainings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from orchestrator.base.keys import stage_key
from orchestrator.base.stage_versions import VERSIONS
from orchestrator.store.artifacts import Store

FeatureStore = Callable[[dict[str, object], Callable[[], Any]], Any]
"""(what identifies the features, how to compute them) -> the features, (n, F) float32, mapped."""


def feature_store(store: Store, photos: str) -> FeatureStore:
    """Return where `trainers.feature_cache.FeatureCache` keeps the features of a preparation.

    Args:
        store: the artifacts.
        photos: key of the preparation, or its folder.
    """
    return partial(_keep, store, photos)


def _keep(
    store: Store, photos: str, identity: dict[str, object], compute: Callable[[], Any]
) -> Any:
    """Find features or compute them, once however many processes ask. Map them read-only."""
    import numpy as np  # noqa: PLC0415
    from filelock import FileLock  # noqa: PLC0415

    key = stage_key("features", VERSIONS["features"], identity, {"photos": photos})
    if store.find("features", key) is None:
        folder = store.work_dir("features", key)
        with FileLock(folder.with_suffix(".lock")):
            if store.find("features", key) is None:
                with store.draft(
                    "features", key, params=identity, inputs={"photos": photos}
                ) as draft:
                    np.save(draft.path / "features.npy", compute())
    return np.load(store.get("features", key).path / "features.npy", mmap_mode="r")
