"""Pretrained backbones out of timm's hub: kept beside the other weights, and demanded as they first came.

Nobody pins their sha256, and a hub's `main` moves. What a machine has of one when it is first asked for is copied into
the cache of weights and its hash is recorded there; from then on that copy is verified and used, whatever the hub says.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.weights.cache import adopt, cache_dir, kept
from data_prep.weights.registry import WeightsError

_SUFFIXES = (".safetensors", ".bin", ".pth", ".npz")
_SAFE = ("model.safetensors", "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")


def local(backbone: str) -> Path | None:
    """Return the verified file of a backbone's weights, or None where this machine has none. Downloads nothing.

    Looked at are the cache of weights (also a file put there by hand), and the caches of huggingface_hub and torch.

    Raises:
        WeightsError: a file is there and its sha256 is not the recorded one.
    """
    if (found := kept(backbone)) is not None:
        return found
    return next((adopt(backbone, place) for place in _places(backbone) if place.is_file()), None)


def require(backbone: str) -> Path:
    """Return the verified file of a backbone's weights.

    Raises:
        WeightsError: there is none, or it is not the recorded one.
    """
    if (found := local(backbone)) is None:
        raise WeightsError(
            f"weights {backbone}: a file was required, found none; put it at {cache_dir() / backbone}.safetensors "
            f"(or {', '.join(_SUFFIXES[1:])}), its sha256 is recorded then; or submit with --allow-download where there "
            "is internet, or use tf_efficientnet_lite0 or train.model.pretrained: false"
        )
    return found


def fetch(backbone: str) -> Path:
    """Return the verified file of a backbone's weights, letting timm download it where there is none.

    Raises:
        WeightsError: it cannot be had.
    """
    if local(backbone) is None:
        import timm  # noqa: PLC0415

        try:
            timm.create_model(
                backbone, pretrained=True, num_classes=0
            )  # leaves the file in a library's cache
        except Exception as error:  # noqa: BLE001 - whatever the hub's client raises, the weights did not come
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            raise WeightsError(
                f"weights {backbone}: the hub did not give them ({reason}); on a machine with internet submit with "
                f"--allow-download and copy {cache_dir()} from there"
            ) from None
    return require(backbone)


def _places(backbone: str) -> Iterator[Path]:
    """Yield where the file may lie, in the order in which timm would look."""
    yield from (cache_dir() / f"{backbone}{suffix}" for suffix in _SUFFIXES)
    import timm  # noqa: PLC0415
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415
    from torch.hub import get_dir  # noqa: PLC0415

    facts: Any = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
    if facts is None:
        return
    if facts.hf_hub_id:
        repository, _, revision = facts.hf_hub_id.partition("@")
        for name in (*_SAFE, facts.hf_hub_filename or "pytorch_model.bin"):
            if isinstance(
                found := try_to_load_from_cache(repository, name, revision=revision or None), str
            ):
                yield Path(found)
    if facts.url:
        yield Path(get_dir()) / "checkpoints" / facts.url.rpartition("/")[2]
