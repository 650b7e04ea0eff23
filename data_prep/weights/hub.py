"""Pretrained backbones out of timm's hub, verified by the hash with which they first came.

Nobody pins their sha256, and a hub's `main` moves. The file that a machine has when a backbone is
first asked for is copied into the cache of weights and its hash is recorded there. From then on
that copy is verified and used, whatever the hub gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.errors import some
from data_prep.weights.cache import adopt, adopted, cache_dir
from data_prep.weights.downloads import RECORD
from data_prep.weights.registry import WeightsError

_SUFFIXES = (".safetensors", ".bin", ".pth", ".npz")
_FIXED = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask")
"""Ends of the names of tensors that a backbone computes itself or does not need."""
_SAFE_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
)


def local(backbone: str) -> Path | None:
    """Return the verified file of a backbone's weights, or None. Downloads nothing.

    It looks into the cache of weights (also for a file put there by hand), and into the caches of
    huggingface_hub and torch.

    Raises:
        WeightsError: a file is there and its sha256 is not the recorded one.
    """
    path = adopted(backbone)
    if path is not None:
        return path
    for candidate in _candidates(backbone):
        if candidate.is_file():
            create(backbone, candidate)
            return adopt(backbone, candidate)
    return None


def create(backbone: str, file: Path, **settings: Any) -> Any:
    """Return a backbone without classifier, with the weights of a file.

    timm loads what fits and leaves the rest as it was drawn, in silence: a wrong file would train
    from random weights.

    Args:
        backbone: name of timm.
        file: its weights.
        settings: of timm's `create_model`.

    Raises:
        WeightsError: the file lacks tensors of the backbone, or they have another shape.
    """
    from data_prep.timm_without_wandb import timm  # noqa: PLC0415

    overlay = {"file": str(file)}
    try:
        with _load_results() as results:
            model = timm.create_model(
                backbone, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **settings
            )
    except (RuntimeError, KeyError, ValueError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise WeightsError(_misfit(backbone, file, some(lines[1:] or lines))) from None
    needed = [name for name in model.state_dict() if not name.endswith(_FIXED)]
    missing: list[str] = []
    for result in results:
        missing += [name for name in result.missing_keys if name in needed]
    if missing:
        found = [name for result in results for name in result.unexpected_keys]
        there = f"; it has {some(found)}" if found else ""
        text = f"{len(missing)} of {len(needed)} tensors are not in it: {some(missing)}{there}"
        raise WeightsError(_misfit(backbone, file, text))
    return model


def _misfit(backbone: str, file: Path, text: str) -> str:
    return (
        f"weights {backbone}: {file} does not fit the backbone: {text}. Put the right file there, "
        f"or set train.model.pretrained: false; if it was recorded before, take {backbone} out of "
        f"{cache_dir() / RECORD}"
    )


@contextmanager
def _load_results() -> Iterator[list[Any]]:
    """Collect what every load of a state dict leaves out; timm only logs it."""
    from torch import nn  # noqa: PLC0415

    results = []
    original = nn.Module.load_state_dict

    def load_state_dict(module: Any, *arguments: Any, **settings: Any) -> Any:
        result = original(module, *arguments, **settings)
        results.append(result)
        return result

    nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign, assignment]
    try:
        yield results
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]


def require(backbone: str) -> Path:
    """Return the verified file of a backbone's weights.

    Raises:
        WeightsError: there is none, or it is not the recorded one.
    """
    path = local(backbone)
    if path is None:
        raise WeightsError(
            f"weights {backbone}: a file was required, found none; put it at "
            f"{cache_dir() / backbone}.safetensors (or {', '.join(_SUFFIXES[1:])}), its sha256 is "
            "recorded then; or submit with --allow-download where there is internet, or use "
            "tf_efficientnet_lite0 or train.model.pretrained: false"
        )
    return path


def fetch(backbone: str) -> Path:
    """Return the verified file of a backbone's weights; timm downloads it if there is none.

    Raises:
        WeightsError: it cannot be downloaded.
    """
    if local(backbone) is None:
        from data_prep.timm_without_wandb import timm  # noqa: PLC0415

        try:
            # leaves the file in a library's cache
            timm.create_model(backbone, pretrained=True, num_classes=0)
        except Exception as error:  # noqa: BLE001 - whatever the hub's client raises
            first_line = str(error).partition("\n")[0]
            raise WeightsError(
                f"weights {backbone}: the hub did not give them "
                f"({type(error).__name__}: {first_line}); on a machine with internet submit with "
                f"--allow-download and copy {cache_dir()} from there"
            ) from None
    return require(backbone)


def _candidates(backbone: str) -> Iterator[Path]:
    """Yield where the file may lie, in the order in which timm looks."""
    for suffix in _SUFFIXES:
        yield cache_dir() / f"{backbone}{suffix}"
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415
    from torch.hub import get_dir  # noqa: PLC0415

    from data_prep.timm_without_wandb import timm  # noqa: PLC0415

    config: Any = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
    if config is None:
        return
    if config.hf_hub_id:
        repository, _, revision = config.hf_hub_id.partition("@")
        for name in (*_SAFE_FILES, config.hf_hub_filename or "pytorch_model.bin"):
            path = try_to_load_from_cache(repository, name, revision=revision or None)
            if isinstance(path, str):
                yield Path(path)
    if config.url:
        yield Path(get_dir()) / "checkpoints" / config.url.rpartition("/")[2]
