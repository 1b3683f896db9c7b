"""Gaussian means against their moments, slopes against planes."""

from __future__ import annotations

import math

import pytest
import torch

from bundle.inference.smoothing import gauss, slope


@pytest.mark.parametrize("sigma", [1.0, 1.5, 3.0, 8.0])
def test_a_point_becomes_a_gaussian_of_that_width(sigma):
    point = torch.zeros(1, 1, 81, 81, dtype=torch.float64)
    point[..., 40, 40] = 1.0
    spread, x = gauss(point, sigma)[0, 0], torch.arange(81.0, dtype=torch.float64) - 40
    assert spread.sum() == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(spread, spread.T, msg="the same in rows and columns")
    # A pixel's own width (variance 1/12) comes on top; cut off at three widths it is a little narrower.
    assert float(spread.sum(0) @ x.square()) == pytest.approx(sigma**2 + 1 / 12, rel=0.03)
    along = torch.exp(-(x.square()) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    torch.testing.assert_close(spread.sum(0), along, atol=0.06 / sigma, rtol=0)


def test_what_is_the_same_everywhere_stays_up_to_the_rim():
    image = torch.full((2, 1, 20, 30), -1000.0)
    torch.testing.assert_close(gauss(image, 4.0), image, atol=1e-3, rtol=0)


def test_every_image_of_a_batch_is_smoothed_alone_and_the_given_one_is_left_as_it_is():
    images = torch.randn(3, 1, 24, 32, generator=torch.Generator().manual_seed(0))
    given = images.clone()
    together = gauss(images, 2.0)
    assert torch.equal(images, given) and together.dtype == images.dtype
    for index, image in enumerate(images):
        torch.testing.assert_close(gauss(image[None], 2.0)[0], together[index])


@pytest.mark.parametrize(("rows", "columns"), [(0.0, 0.0), (7.0, 0.0), (0.0, -5.0), (3.0, 4.0)])
def test_the_slope_of_a_plane_is_its_steepness(rows, columns):
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(40.0), indexing="ij")
    plane = (rows * y + columns * x)[None, None]
    # The rim goes on flat, so it is less steep there.
    inside = slope(plane)[..., 6:-6, 6:-6]
    torch.testing.assert_close(inside, torch.full_like(inside, math.hypot(rows, columns)), atol=1e-3, rtol=1e-4)
