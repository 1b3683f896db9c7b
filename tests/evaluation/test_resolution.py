"""A disc under a known blur."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from bundle.evaluation import task_transfer

PIXEL, RADIUS, SIZE, FINE = 0.8, 10.0, 48, 8


def disc(sigma: float, contrast: float = 100.0, center: tuple[float, float] = (23.3, 24.1)) -> torch.Tensor:
    """A disc under a Gaussian of ``sigma`` mm, sampled at pixel centres: blurred on a grid eight times as fine."""
    axis = (np.arange(SIZE * FINE) - FINE / 2) / FINE
    y, x = axis[:, None] - center[0], axis[None] - center[1]
    fine = contrast * (np.hypot(y, x) * PIXEL < RADIUS)
    blurred = gaussian_filter(fine, sigma / PIXEL * FINE)
    return torch.from_numpy(blurred[FINE // 2 :: FINE, FINE // 2 :: FINE].copy())


@pytest.mark.parametrize("contrast", [100.0, -400.0])
@pytest.mark.parametrize("sigma", [0.6, 1.0])
def test_a_gaussian_blur_has_a_gaussian_transfer(sigma, contrast):
    found = task_transfer(disc(sigma, contrast), PIXEL, (23.3, 24.1), RADIUS)
    expected = torch.exp(-2 * (math.pi * sigma * found.frequency) ** 2)
    torch.testing.assert_close(found.transfer, expected, rtol=0, atol=0.03)
    assert found.contrast == pytest.approx(contrast, rel=0.01)
    assert found.ttf50 == pytest.approx(math.sqrt(math.log(2) / 2) / (math.pi * sigma), rel=0.03)


def test_ttf10_lies_above_ttf50_and_is_none_where_never_reached():
    soft = task_transfer(disc(1.0), PIXEL, (23.3, 24.1), RADIUS)
    assert soft.ttf10 == pytest.approx(math.sqrt(math.log(10) / 2) / math.pi, rel=0.05) and soft.ttf10 > soft.ttf50
    sharp = task_transfer(disc(0.3), PIXEL, (23.3, 24.1), RADIUS)
    assert sharp.ttf10 is None


def test_realisations_are_averaged_and_counted():
    generator = torch.Generator().manual_seed(0)
    images = disc(0.8) + 20 * torch.randn((100, SIZE, SIZE), generator=generator)
    found = task_transfer(images, PIXEL, (23.3, 24.1), RADIUS)
    assert found.n == 100
    assert found.ttf50 == pytest.approx(task_transfer(disc(0.8), PIXEL, (23.3, 24.1), RADIUS).ttf50, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"center": (5.0, 5.0)}, "leaves the image"),
        ({"radius": 0.0}, "0 < reach <= radius"),
        ({"reach": 1.0}, "three pixels"),
        ({"image": torch.zeros(SIZE, SIZE)}, "no contrast"),
        ({"image": torch.full((SIZE, SIZE), torch.nan)}, "finite"),
    ],
)
def test_input_that_cannot_be_is_named(changes, match):
    arguments = {"image": disc(1.0), "pixel_size": PIXEL, "center": (23.3, 24.1), "radius": RADIUS} | changes
    with pytest.raises(ValueError, match=match):
        task_transfer(**arguments)
