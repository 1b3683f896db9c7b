"""A sinogram known in closed form, and noise on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bundle.physics import simulate_low_dose

PHOTONS, DOSE, ELECTRONIC_VARIANCE = 1.5e5, 0.25, 10.0


def ellipse_sinogram(views: int, cells: int) -> Tensor:
    """Parallel line integrals (1, 1, V, D) of two ellipses, up to p = 5: rays through the body, a few degrees apart."""
    angle = (0.5 * torch.arange(views) / views)[:, None]
    position = torch.linspace(-0.5, 0.5, cells)[None]
    sinogram = torch.zeros(views, cells)
    # half axes, centre, attenuation
    for a, b, x, y, attenuation in ((0.9, 0.7, 0.0, 0.0, 3.2), (0.4, 0.3, -0.1, 0.1, -1.5)):
        extent = (a * angle.cos()) ** 2 + (b * angle.sin()) ** 2
        distance = position - x * angle.cos() - y * angle.sin()
        sinogram += 2 * attenuation * a * b * (extent - distance**2).clamp_min(0).sqrt() / extent
    return sinogram[None, None]


@pytest.fixture
def clean() -> Tensor:
    """Noise-free line integrals (1, 1, 64, 64)."""
    return ellipse_sinogram(64, 64)


@pytest.fixture
def noisy(clean: Tensor) -> Tensor:
    """Four quarter-dose scans (4, 1, 64, 64)."""
    generator = torch.Generator().manual_seed(0)
    noise_model = {"dose": DOSE, "electronic_variance": ELECTRONIC_VARIANCE}
    return simulate_low_dose(clean.expand(4, -1, -1, -1), PHOTONS, generator=generator, **noise_model)
