"""Files of a training: a resumable state, and the best weights with what is needed to rebuild the model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

STATE, WEIGHTS, MODEL = "last.pt", "weights.safetensors", "model.json"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the resumable state beside its place and rename it there."""
    beside = folder / f".{STATE}.{os.getpid()}"
    torch.save(state, beside)
    beside.replace(folder / STATE)


def load_state(folder: Path) -> dict[str, Any] | None:
    """Return the resumable state, or None where there is none that can be read."""
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError):
        return None  # torn by a full disk: the training starts again
    return state


def save_weights(folder: Path, weights: dict[str, Tensor], model: dict[str, Any]) -> None:
    """Write weights and what rebuilds their model, each beside its place and renamed."""
    beside = folder / f".{WEIGHTS}.{os.getpid()}"
    save_file({name: value.contiguous() for name, value in weights.items()}, beside)
    beside.replace(folder / WEIGHTS)
    described = folder / f".{MODEL}.{os.getpid()}"
    described.write_text(json.dumps(model, indent=1) + "\n", encoding="utf-8")
    described.replace(folder / MODEL)


def load_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_weights` wrote."""
    return load_file(folder / WEIGHTS), json.loads((folder / MODEL).read_text(encoding="utf-8"))
