"""Views that the detector cuts off: extended before they are filtered, linearly, and said once."""

from __future__ import annotations

import dataclasses
import logging
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bundle.physics import FanBeamGeometry, FilteredBackprojection, attenuation_to_hu

from .phantoms import ellipse_image, ellipse_sinogram, field_of_view, gaussian_sinogram, half_width, rms, scan

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


@pytest.mark.parametrize("changes", [{}, {"detector": "equiangular"}, {"detector_offset": 0.25, "arc": -4.6}], ids=str)
@pytest.mark.parametrize(("radius", "off"), [(1.3, 0.0), (1.6, 0.0), (1.4, 0.2), (1.0, 0.5)])
def test_the_extension_takes_away_most_of_the_error(changes, radius, off):
    geometry = narrow(**changes)
    disc = wide_disc(geometry, radius, off)
    truth, inside = attenuation_to_hu(ellipse_image(geometry, disc)), field_of_view(geometry, 0.9)
    extended, ignored = (
        rms(
            (
                attenuation_to_hu(FilteredBackprojection(geometry, truncation=t)(ellipse_sinogram(geometry, disc)))
                - truth
            )[0, 0][inside]
        )
        for t in ("extend", "ignore")
    )
    assert extended < 0.4 * ignored and extended < 200


@pytest.mark.parametrize("detector", ["flat", "equiangular"])
def test_it_equals_a_wider_detector_that_sees_the_extension(detector):
    geometry = narrow(detector=detector)
    reach = 6  # 15 % of 40 cells
    wide = dataclasses.replace(geometry, num_cells=40 + 2 * reach)
    sinogram = random_sinogram(geometry)
    roll_off = (1 - (torch.arange(1, reach + 1, dtype=torch.float64) / (reach + 1)) ** 2).sqrt()
    extended = torch.cat([sinogram[..., :1] * roll_off.flip(0), sinogram, sinogram[..., -1:] * roll_off], -1)
    image, expected = (
        FilteredBackprojection(geometry)(sinogram),
        FilteredBackprojection(wide, truncation="ignore")(extended),
    )
    inside = field_of_view(geometry, 0.97)
    assert (image - expected)[0, 0][inside].abs().max() < 1e-9 * expected.abs().max()


@pytest.mark.parametrize("detector", ["flat", "equiangular"])
def test_what_is_not_truncated_stays_as_it_is(detector):
    geometry = scan(48, detector=detector)
    sinogram = ellipse_sinogram(geometry).float()
    assert sinogram[..., [0, -1]].abs().max() == 0
    one, other = (FilteredBackprojection(geometry, truncation=t)(sinogram) for t in ("extend", "ignore"))
    assert torch.equal(one, other)


def test_noise_in_air_hardly_changes_the_image():
    geometry = scan(48)
    noise = torch.randn(1, 1, *geometry.sinogram_shape, generator=torch.Generator().manual_seed(0))
    one, other = (FilteredBackprojection(geometry, truncation=t)(noise) for t in ("extend", "ignore"))
    inside = field_of_view(geometry)
    assert rms((one - other)[0, 0][inside]) < 0.05 * rms(other[0, 0][inside])


# Exactly differentiable


SMALL = {"num_views": 8, "num_cells": 9, "image_shape": (4, 5)}


@pytest.mark.parametrize(
    "changes", [{}, {"detector": "equiangular", "detector_offset": 0.25}, {"arc": 5.0, "num_views": 10}], ids=str
)
@pytest.mark.parametrize("truncation", ["extend", "ignore"])
def test_the_matrix_of_the_gradient_is_the_transpose(changes, truncation, backend):
    geometry = scan(5, **SMALL | changes)
    count = math.prod(geometry.sinogram_shape)
    fbp = FilteredBackprojection(geometry, "hann", backend, cutoff=0.9, truncation=truncation)
    unit = torch.eye(count, dtype=torch.float64).view(count, 1, *geometry.sinogram_shape)
    matrix = fbp(unit).view(count, 20)
    sinogram = torch.zeros(20, 1, *geometry.sinogram_shape, dtype=torch.float64, requires_grad=True)
    fbp(sinogram).backward(torch.eye(20, dtype=torch.float64).view(20, 1, 4, 5))
    assert (sinogram.grad.view(20, count) - matrix.T).abs().max() < 1e-12 * matrix.abs().max()


def test_the_gradient_of_truncated_views_equals_finite_differences(backend):
    geometry = narrow(num_views=36)
    fbp = FilteredBackprojection(geometry, backend=backend)

    def loss(sinogram: Tensor) -> Tensor:
        return torch.sin(100 * fbp(sinogram)).sum()

    sinogram = ellipse_sinogram(geometry, wide_disc(geometry, 1.4, 0.2)).requires_grad_()
    direction, step = random_sinogram(geometry), 1e-5
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
    [("extend", "each view is extended by 15% of the detector"), ("ignore", r"that is ignored, so HU are wrong")],
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
