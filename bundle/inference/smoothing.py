"""Gaussian means of images, and slopes behind them."""

from __future__ import annotations

import torch
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor


def gauss(image: Tensor, sigma: float) -> Tensor:
    """Gaussian mean of ``image`` ``(B, 1, H, W)``, ``sigma`` in pixels; the rim goes on beyond the image."""
    kernel = gaussian_1d(torch.tensor(sigma), truncated=3.0, normalize=True).to(image)
    return separable_filtering(image, [kernel, kernel], mode="replicate")


def slope(image: Tensor) -> Tensor:
    """Gradient's length behind a Gaussian of 1 pixel, in the image's unit a pixel, ``(B, 1, H, W)``."""
    rows, columns = torch.gradient(gauss(image, 1.0), dim=(2, 3))
    return torch.hypot(rows, columns)
