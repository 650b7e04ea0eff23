"""Content keys: the sha256 of canonical JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical(value: Any) -> str:
    """Return a value as JSON in canonical form: sorted keys, no spaces, UTF-8.

    Raises:
        ValueError: it contains a NaN or an infinity, which JSON readers treat differently.
        TypeError: something is not a JSON value.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any) -> str:
    """Return the sha256 of a JSON value in canonical form, 64 hex digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def stage_key(kind: str, version: int, params: Any, inputs: dict[str, str]) -> str:
    """Return the key of an artifact: a hash of its kind, version, settings and inputs' keys."""
    return digest({"kind": kind, "version": version, "params": params, "inputs": inputs})


def setting_id(resolved: Any) -> str:
    """Return the id of a setting: 8 hex digits of the hash of its data, prep and train."""
    return digest(resolved)[:8]
