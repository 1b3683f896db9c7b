"""What every result of this room says beside its numbers: over which pixels, and how many."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """A measurement that can't be had without what it was taken on; each kind adds its own range or window.

    Args:
        mask: which pixels were measured, in words.
        n: how many pixels, images or slices (each kind says which) the numbers come from.

    Raises:
        ValueError: no mask, or an ``n`` that is no count.
    """

    mask: str
    n: int

    def __post_init__(self) -> None:
        if not isinstance(self.mask, str) or not self.mask.strip():
            raise ValueError(f"mask must say which pixels were measured, got {self.mask!r}")
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 0:
            raise ValueError(f"n must be a whole number, 0 or more, got {self.n!r}")

    def row(self) -> dict[str, Any]:
        """The fields, ready for JSON: tensors as lists, what is not finite as None."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def stated_range(name: str, pair: Any) -> tuple[float, float]:
    """A range in HU as two numbers, low before high.

    Raises:
        ValueError: it is none; the message has ``name``.
    """
    try:
        low, high = (float(value) for value in pair)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"{name} must be [low, high] in HU, got {pair!r}")
    return low, high


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
