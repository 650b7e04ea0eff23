"""Files of a training: a resumable state, and the best weights with what rebuilds their model."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.optimizer import StateDict

from data_prep.files import atomic_path, write_json

STATE = "last.pt"
WEIGHTS = "weights.safetensors"
MODEL = "model.json"
_EPOCH_WEIGHTS = r"weights-\d+\.safetensors"
_DIGEST_BYTES = hashlib.sha256().digest_size  # of the hash after the state


class State(TypedDict):
    """Everything that a training needs to go on after an epoch."""

    model: dict[str, Tensor]  # of the head alone where the backbone is frozen
    optimizer: StateDict
    scaler: StateDict
    plateau: list[Any]  # best, waited, cuts
    history: list[dict[str, float]]
    step: int
    micro_batch: int
    average: NotRequired[dict[str, Tensor]]  # of the same tensors as `model`


class Description(TypedDict):
    """What rebuilds a model from its weights alone."""

    format_version: int
    model: dict[str, Any]  # the spec's section
    label_sizes: dict[str, int]
    branches: dict[str, list[str]]
    size: int  # of a photo, in pixels
    precision: str
    n_params: int


def save_state(folder: Path, state: State) -> None:
    """Write the resumable state, followed by its sha256."""
    with atomic_path(folder / STATE) as path:
        torch.save(state, path)
        with path.open("r+b") as handle:
            digest = hashlib.file_digest(handle, "sha256").digest()  # reads to the end of the file
            handle.write(digest)


def load_state(folder: Path) -> State | None:
    """Return the resumable state; None, with a line in the log, if it is missing or damaged."""
    path = folder / STATE
    if not path.is_file():
        return None
    damage = None
    try:
        file = memoryview(path.read_bytes())
        content = file[:-_DIGEST_BYTES]
        if hashlib.sha256(content).digest() != file[-_DIGEST_BYTES:]:
            damage = "its sha256 is another"
    except OSError as error:
        damage = str(error)
    if damage is not None:
        _tell_damage(path, damage)
        return None
    state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def load_state_with_weights(folder: Path, n_best: int = 1) -> State | None:
    """Return the resumable state; one without the weights of its best epochs counts as damaged.

    Args:
        folder: of the training.
        n_best: of how many epochs weights are kept.
    """
    state = load_state(folder)
    if state is None:
        return None
    for epoch in best_epochs(state["history"], n_best):
        name = _weights_of(epoch)
        is_renamed = n_best == 1 and (folder / WEIGHTS).exists()
        if not (folder / name).exists() and not is_renamed:
            _tell_damage(folder / STATE, f"{name} is missing beside it")
            return None
    return state


def _tell_damage(path: Path, damage: str) -> None:
    sys.stderr.write(
        f"{path} is damaged ({damage}); the training starts again from its first epoch\n"
    )


def score_of(metrics: dict[str, float]) -> float:
    """Return what the best epoch is chosen by: `val_score` where it is reported, else macro F1."""
    return metrics.get("val_score", metrics["val_macro_f1"])


def best_epoch(history: list[dict[str, float]]) -> int:
    """Return the epoch (from 1) with the best score, the first of equals."""
    scores = [score_of(metrics) for metrics in history]
    return scores.index(max(scores)) + 1


def best_epochs(history: list[dict[str, float]], n: int) -> list[int]:
    """Return at most `n` epochs (from 1) with the best scores, the best first, of equals the first."""
    scores = [score_of(metrics) for metrics in history]
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    return [index + 1 for index in order[:n]]


def save_weights(
    folder: Path, weights: dict[str, Tensor], description: Description, *, epoch: int | None = None
) -> None:
    """Write weights and what rebuilds their model.

    Args:
        folder: gets model.json and the weights.
        weights: of a model.
        description: of the model.
        epoch: the weights get a name with this number, until `rename_best`; None: the final name.
    """
    name = WEIGHTS if epoch is None else _weights_of(epoch)
    with atomic_path(folder / name) as path:
        save_file(_separate(weights), path)
    write_json(folder / MODEL, description)


def remove_weights(folder: Path, *, except_epochs: Iterable[int]) -> None:
    """Remove the weights of all epochs but some."""
    kept = {_weights_of(epoch) for epoch in except_epochs}
    for path in folder.iterdir():
        if re.fullmatch(_EPOCH_WEIGHTS, path.name) and path.name not in kept:
            path.unlink()


def epoch_weights(folder: Path, epoch: int) -> dict[str, Tensor]:
    """Read the weights of an epoch that are kept under its number."""
    weights: dict[str, Tensor] = load_file(folder / _weights_of(epoch))
    return weights


def rename_best(folder: Path, epoch: int) -> None:
    """Give the weights of an epoch their final name; nothing is done if they have it."""
    path = folder / _weights_of(epoch)
    if path.exists():
        path.replace(folder / WEIGHTS)


def _weights_of(epoch: int) -> str:
    return f"weights-{epoch}.safetensors"


def _separate(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors that share memory one each: the format of the file has no shared ones."""
    seen: set[int] = set()
    separate = {}
    for name, value in weights.items():
        place = value.untyped_storage().data_ptr()
        separate[name] = value.clone() if place in seen else value.contiguous()
        seen.add(place)
    return separate


def load_weights(folder: Path) -> tuple[dict[str, Tensor], Description]:
    """Read what `save_weights` wrote."""
    description: Description = json.loads((folder / MODEL).read_text(encoding="utf-8"))
    return load_file(folder / WEIGHTS), description
