"""Images with known errors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def body(slices: int = 2, size: int = 64, seed: int = 0) -> Tensor:
    """A soft-tissue disc with texture in air, HU, ``(S, H, W)``."""
    axis = torch.linspace(-1, 1, size)
    disc = axis[:, None] ** 2 + axis**2 < 0.7
    texture = 10 * torch.randn((slices, size, size), generator=torch.Generator().manual_seed(seed))
    return torch.where(disc, 40 + texture, torch.tensor(-1000.0))


def noise(std: float, like: Tensor, seed: int = 1) -> Tensor:
    return std * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def organs(size: int = 160) -> torch.Tensor:
    """A plain body of 40 HU in air with discs of 200 HU, ``(1, H, W)``."""
    axis = torch.linspace(-1, 1, size)
    y, x = axis[:, None], axis[None]
    image = torch.where(y**2 + x**2 < 0.8, 40.0, -1000.0)
    for row in (-0.5, -0.2, 0.1, 0.4):
        for column in (-0.45, -0.15, 0.15, 0.45):
            image = torch.where((y - row) ** 2 + (x - column) ** 2 < 0.08**2, 200.0, image)
    return image[None] + noise(0.5, image, seed=7)


def blurred(image: torch.Tensor, share: float) -> torch.Tensor:
    """The image with ``share`` of every edge gone into a 3x3 mean."""
    mean = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (1 - share) * image + share * mean
