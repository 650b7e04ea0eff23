"""timm, imported without Weights & Biases.

`timm.utils.summary` imports wandb where it is installed. That takes a tenth of timm's own import
(`python -X importtime`) in every process that trains, and leaves two folders in the system's
temporary folder for each process that is killed. Nothing here uses that module of timm.
"""

import sys

_UNWANTED = "wandb"

if "timm" in sys.modules or _UNWANTED in sys.modules:
    import timm
else:
    sys.modules[_UNWANTED] = None  # type: ignore[assignment]  # an import of it raises ImportError
    try:
        import timm
    finally:
        del sys.modules[_UNWANTED]

__all__ = ["timm"]
