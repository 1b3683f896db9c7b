"""Views that the detector cuts off: extended as a water cylinder before they are filtered, and said once."""

from __future__ import annotations

import dataclasses
import logging
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bundle.physics import MU_WATER, FanBeamGeometry, FilteredBackprojection, attenuation_to_hu

from .phantoms import (
    SHEPP_LOGAN,
    ellipse_image,
    ellipse_sinogram,
    field_of_view,
    gaussian_sinogram,
    half_width,
    rms,
    scan,
)

LOGGER = "bundle.physics.fbp"


def narrow(**changes) -> FanBeamGeometry:
    """A field of view within the image."""
    return scan(48, num_cells=40, **changes)


def wide_disc(geometry: FanBeamGeometry, radius: float, off: float) -> np.ndarray:
    """A water disc, its radius and its place in radii of the field of view."""
    unit = geometry.field_of_view_radius / half_width(geometry)
    return np.array([(off * unit, 0.5 * off * unit, radius * unit, radius * unit, 0, 1.0)])


def random_sinogram(geometry: FanBeamGeometry, slices: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(slices, 1, *geometry.sinogram_shape, dtype=torch.float64, generator=generator)


def error_hu(geometry: FanBeamGeometry, ellipses: np.ndarray, truncation: str) -> float:
    """RMSE in nine tenths of the field of view."""
    image = FilteredBackprojection(geometry, truncation=truncation)(ellipse_sinogram(geometry, ellipses))
    error = attenuation_to_hu(image) - attenuation_to_hu(ellipse_image(geometry, ellipses))
    return rms(error[0, 0][field_of_view(geometry, 0.9)])


@pytest.mark.parametrize("changes", [{}, {"detector": "equiangular"}, {"detector_offset": 0.25, "arc": -4.6}], ids=str)
@pytest.mark.parametrize(("radius", "off"), [(1.05, 0.0), (1.1, 0.0), (1.3, 0.0), (1.6, 0.0), (1.4, 0.2), (1.0, 0.5)])
def test_the_extension_takes_away_most_of_the_error_of_slight_and_of_heavy_truncation(changes, radius, off):
    geometry = narrow(**changes)
    disc = wide_disc(geometry, radius, off)
    assert error_hu(geometry, disc, "extend") < 0.3 * error_hu(geometry, disc, "ignore") + 2


@pytest.mark.parametrize("radius", [1.1, 1.4])
def test_what_is_a_third_as_dense_as_water_gains_too(radius):
    lungs = wide_disc(narrow(), radius, 0.0)
    lungs[:, 5] = 0.3
    assert error_hu(narrow(), lungs, "extend") < 0.6 * error_hu(narrow(), lungs, "ignore")


def test_a_head_whose_skull_lies_outside_gains_too():
    geometry, head = narrow(), SHEPP_LOGAN.copy()
    head[:, :4] *= 1.4 * geometry.field_of_view_radius / half_width(geometry) / 0.92
    assert error_hu(geometry, head, "extend") < 0.3 * error_hu(geometry, head, "ignore")


@pytest.mark.parametrize("detector", ["flat", "equiangular"])
@pytest.mark.parametrize(("radius", "off"), [(1.05, 0.0), (1.3, 0.0), (1.2, 0.1)])
def test_a_water_disc_looks_as_if_the_detector_saw_all_of_it(detector, radius, off):
    geometry = narrow(detector=detector)
    disc = wide_disc(geometry, radius, off)
    wide = dataclasses.replace(geometry, num_cells=40 + 2 * 12)
    image, expected = (FilteredBackprojection(g)(ellipse_sinogram(g, disc)) for g in (geometry, wide))
    inside = field_of_view(geometry, 0.9)
    assert rms((image - expected)[0, 0][inside]) < 0.015 * MU_WATER


@pytest.mark.parametrize("detector", ["flat", "equiangular"])
def test_what_is_not_truncated_stays_as_it_is(detector):
    geometry = scan(48, detector=detector)
    sinogram = ellipse_sinogram(geometry).float()
    assert sinogram[..., [0, -1]].abs().max() == 0
    one, other = (FilteredBackprojection(geometry, truncation=t)(sinogram) for t in ("extend", "ignore"))
    assert torch.equal(one, other)


def test_noise_in_air_changes_nothing():
    geometry = scan(48)
    noise = 0.025 * torch.randn(1, 1, *geometry.sinogram_shape, generator=torch.Generator().manual_seed(0))
    sinogram = ellipse_sinogram(geometry).float() + noise
    one, other = (FilteredBackprojection(geometry, truncation=t)(sinogram) for t in ("extend", "ignore"))
    assert torch.equal(one, other)


# Exactly differentiable


SMALL = {"num_views": 8, "num_cells": 9, "image_shape": (4, 5)}


@pytest.mark.parametrize(
    "changes", [{}, {"detector": "equiangular", "detector_offset": 0.25}, {"arc": 5.0, "num_views": 10}], ids=str
)
def test_the_matrix_of_the_gradient_is_the_transpose(changes, backend):
    geometry = scan(5, **SMALL | changes)
    count = math.prod(geometry.sinogram_shape)
    fbp = FilteredBackprojection(geometry, "hann", backend, cutoff=0.9, truncation="ignore")
    unit = torch.eye(count, dtype=torch.float64).view(count, 1, *geometry.sinogram_shape)
    matrix = fbp(unit).view(count, 20)
    sinogram = torch.zeros(20, 1, *geometry.sinogram_shape, dtype=torch.float64, requires_grad=True)
    fbp(sinogram).backward(torch.eye(20, dtype=torch.float64).view(20, 1, 4, 5))
    assert (sinogram.grad.view(20, count) - matrix.T).abs().max() < 1e-12 * matrix.abs().max()


@pytest.mark.parametrize("changes", [{}, {"detector": "equiangular"}, {"arc": 4.0, "num_views": 10}], ids=str)
def test_first_and_second_derivatives_of_truncated_views_are_right(changes, backend):
    geometry = scan(4, **SMALL | {"image_shape": (4, 4), "pixel_size": 5.0, "cell_pitch": 10.0} | changes)
    fbp = FilteredBackprojection(geometry, backend=backend)
    sinogram = (0.5 + random_sinogram(geometry)).requires_grad_()
    assert torch.autograd.gradcheck(fbp, sinogram, atol=1e-8, rtol=1e-6)
    assert torch.autograd.gradgradcheck(fbp, sinogram, atol=1e-6, rtol=1e-5)


def test_the_gradient_of_truncated_views_equals_finite_differences(backend):
    geometry = narrow(num_views=36)
    fbp = FilteredBackprojection(geometry, backend=backend)

    def loss(sinogram: Tensor) -> Tensor:
        return torch.sin(100 * fbp(sinogram)).sum()

    sinogram = ellipse_sinogram(geometry, wide_disc(geometry, 1.4, 0.2)).requires_grad_()
    direction, step = random_sinogram(geometry), 2e-6
    loss(sinogram).backward()
    difference = (loss(sinogram + step * direction) - loss(sinogram - step * direction)) / (2 * step)
    assert (sinogram.grad * direction).sum().item() == pytest.approx(difference.item(), rel=1e-6)


def test_a_slice_does_not_depend_on_the_others():
    geometry = narrow()
    fbp = FilteredBackprojection(geometry)
    stack = random_sinogram(geometry, 40)
    stack[::2, ..., [0, -1]] = 0
    single = torch.cat([fbp(one[None]) for one in stack])
    assert (fbp(stack) - single).abs().max() < 1e-12 * single.abs().max()


# What the user is told


def said(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == LOGGER and r.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("truncation", "done"),
    [("extend", "views are extended beyond the detector"), ("ignore", "that is ignored, so HU are wrong")],
)
def test_truncation_is_said_once_with_the_share_of_views(caplog, truncation, done):
    geometry = narrow()
    fbp = FilteredBackprojection(geometry, truncation=truncation)
    sinogram = gaussian_sinogram(geometry)
    sinogram[..., :18, -3:] = 1.0
    for _ in range(2):
        fbp(sinogram)
    (message,) = said(caplog)
    assert message.startswith("truncated projections: 17 % of the views see material") and done in message


@pytest.mark.parametrize("end", [slice(0, 2), slice(-2, None)])
def test_either_end_counts(caplog, end):
    geometry = narrow()
    sinogram = torch.zeros(2, 1, *geometry.sinogram_shape)
    sinogram[1, ..., end] = 1.0
    FilteredBackprojection(geometry)(sinogram)
    assert "100 % of the views" in said(caplog)[0]


def test_noise_in_air_and_a_few_views_are_no_truncation(caplog):
    geometry = scan(48)
    noise = 0.02 * torch.randn(3, 1, *geometry.sinogram_shape, generator=torch.Generator().manual_seed(0))
    sinogram = noise + torch.tensor([0.0, 1.0, 5.0]).view(3, 1, 1, 1) * ellipse_sinogram(geometry).float()
    sinogram[..., :3, :] += 1.0
    FilteredBackprojection(geometry)(sinogram)
    assert not said(caplog)


def test_an_unknown_option_is_refused_with_those_there():
    with pytest.raises(ValueError, match=r"truncation must be one of \('extend', 'ignore'\), got 'mirror'"):
        FilteredBackprojection(scan(32), truncation="mirror")
