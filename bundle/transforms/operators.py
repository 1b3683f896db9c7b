"""Projection and reconstruction of stacks of slices, with one operator per geometry."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from bundle.physics import FanBeamGeometry, FanBeamProjector, FilteredBackprojection

# Building an operator costs more than projecting a small slice; a data set has few geometries at a time.
projector = lru_cache(maxsize=8)(FanBeamProjector)
filtered_backprojection = lru_cache(maxsize=8)(FilteredBackprojection)


@lru_cache(maxsize=64)
def parsed_geometry(text: str) -> FanBeamGeometry:
    """:class:`FanBeamGeometry` of its JSON."""
    return FanBeamGeometry.from_json(text)


def in_batches(
    apply: Callable[[Tensor], Tensor], stack: Tensor, size: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Apply a map of ``(B, 1, ...)`` to a stack ``(S, ...)``, ``size`` slices at a time on ``device``; no gradient.

    The result is where the stack is.
    """
    with torch.no_grad():
        return torch.cat([apply(part[:, None].to(device))[:, 0].to(stack.device) for part in stack.split(size)])
