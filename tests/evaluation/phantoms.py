"""Images with known errors."""

from __future__ import annotations

import torch
from torch import Tensor


def body(slices: int = 2, size: int = 64, seed: int = 0) -> Tensor:
    """A soft-tissue disc with texture in air, HU, ``(S, H, W)``."""
    axis = torch.linspace(-1, 1, size)
    disc = axis[:, None] ** 2 + axis**2 < 0.7
    texture = 10 * torch.randn((slices, size, size), generator=torch.Generator().manual_seed(seed))
    return torch.where(disc, 40 + texture, torch.tensor(-1000.0))


def noise(std: float, like: Tensor, seed: int = 1) -> Tensor:
    return std * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
