"""Files of a training: a resumable state, and the best weights with what is needed to rebuild the model."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

STATE, WEIGHTS, MODEL = "last.pt", "weights.safetensors", "model.json"
_DIGEST = hashlib.sha256().digest_size  # bytes that stand behind the state


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the resumable state and its sha256 beside its place, and rename it there."""
    beside = folder / f".{STATE}.{os.getpid()}"
    torch.save(state, beside)
    with beside.open("r+b") as handle:
        handle.write(hashlib.file_digest(handle, "sha256").digest())  # the file was read to its end
    beside.replace(folder / STATE)


def load_state(folder: Path) -> dict[str, Any] | None:
    """Return the resumable state; None, with a word in the log, where there is none that is as it was written."""
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        whole = memoryview(path.read_bytes())
        content, digest = whole[:-_DIGEST], whole[-_DIGEST:]
        wrong = None if hashlib.sha256(content).digest() == digest else "its sha256 is another"
    except OSError as error:
        wrong = str(error)
    if wrong:
        sys.stderr.write(
            f"{path} is damaged ({wrong}); the training starts again from its first epoch\n"
        )
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
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
