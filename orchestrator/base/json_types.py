"""What files of JSON hold."""

from typing import Any

Json = dict[str, Any]
"""An object: its names and values."""
