"""Weights of the user's own for a backbone of timm, out of a file in the safetensors format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import some
from data_prep.files import file_sha256

if TYPE_CHECKING:
    from torch import nn

Shapes = dict[str, tuple[int, ...]]
"""Name of a tensor -> its shape."""

_OURS = "backbone."
"""What names begin with in the weights of a training of ours."""
_COMPUTED = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask")
"""Ends of the names of tensors that a backbone computes itself or does not need."""


def load_own_weights(backbone: nn.Module, path: Path, sha256: str | None = None) -> None:
    """Load a file into a backbone; tensors that the backbone lacks, such as a head's, are passed over.

    Args:
        backbone: of timm, without its classifier.
        path: weights of timm's names, or those of a training of ours.
        sha256: of the file, where it is known.

    Raises:
        ValueError: the file cannot be read or is another one, or does not fit; tensors are named.
    """
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    try:
        if sha256 is not None and (actual := file_sha256(path)) != sha256:
            raise ValueError(
                f"{path}: sha256 {sha256[:12]}.. was required, found {actual[:12]}..; the file was "
                "changed after the spec was read; submit again"
            )
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: weights as safetensors were required, found: {error}") from None
    tensors = _of_backbone(tensors)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    problem = misfit(backbone, shapes)
    if problem is not None:
        raise ValueError(f"{path}: {problem}")
    needed = backbone.state_dict()
    backbone.load_state_dict({name: tensors.get(name, value) for name, value in needed.items()})


def misfit(backbone: nn.Module, shapes: Shapes) -> str | None:
    """Return why tensors of such names and shapes are no weights of a backbone, None if they are."""
    needed = backbone.state_dict()
    faults = []
    missing = []
    for name, value in needed.items():
        shape: Any = shapes.get(name)
        if shape is None and not name.endswith(_COMPUTED):
            missing.append(f"{name} {tuple(value.shape)}")
        if shape is not None and shape != tuple(value.shape):
            faults.append(f"{name} of shape {tuple(value.shape)} was required, found {shape}")
    if missing:
        faults.insert(0, f"{len(missing)} tensors of the backbone are not in it: {some(missing)}")
        others = [f"{name} {shape}" for name, shape in shapes.items() if name not in needed]
        if others:
            faults.append(f"it has {some(others)}")
    if not faults:
        return None
    return f"{'; '.join(faults[:5])}; use weights of this backbone under timm's names"


def shapes_of(path: Path) -> Shapes:
    """Read the shapes of a file's tensors for a backbone, out of its header and without torch.

    Raises:
        ValueError: it is no file in the safetensors format.
    """
    try:
        with path.open("rb") as file:
            n_bytes = int.from_bytes(file.read(8), "little")
            if not 0 < n_bytes < path.stat().st_size:
                raise ValueError("a header as long as its first 8 bytes say was required")
            header = json.loads(file.read(n_bytes))
        shapes = {}
        for name, facts in header.items():
            if name != "__metadata__":
                shapes[name] = tuple(int(size) for size in facts["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: weights as safetensors were required, found: {error}") from None
    return _of_backbone(shapes)


def _of_backbone(by_name: dict[str, Any]) -> dict[str, Any]:
    """Return what belongs to the backbone, where the names are those of a training of ours."""
    if not any(name.startswith(_OURS) for name in by_name):
        return by_name
    kept = {}
    for name, value in by_name.items():
        if name.startswith(_OURS):
            kept[name.removeprefix(_OURS)] = value
    return kept
