"""Reconstruction against phantoms known in closed form; its gradient against finite differences."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from bundle.physics import RAMP_WINDOWS, FanBeamGeometry, FilteredBackprojection, attenuation_to_hu
from bundle.physics.fbp import ramp_response, redundancy_weights, view_steps

from .phantoms import ellipse_sinogram, field_of_view, gaussian_image, gaussian_sinogram, grid, half_width, rms, scan

DISC = np.array([(0.05, -0.03, 0.6, 0.6, 0, 1.0)])
FAN = 2 * math.atan(183.5 * 658.33 / 256 / 1085.6)
FULL_SCAN = np.arange(576) * 2 * math.pi / 576
JITTER = np.random.default_rng(0).uniform(-0.4, 0.4, 576)


def error_hu(geometry: FanBeamGeometry, backend: str = "numba", **options) -> float:
    """RMSE in the field of view for an edge-free phantom, from exact line integrals."""
    image = FilteredBackprojection(geometry, backend=backend, **options)(gaussian_sinogram(geometry).float())
    error = attenuation_to_hu(image.double()) - attenuation_to_hu(gaussian_image(geometry))
    return rms(error[0, 0][field_of_view(geometry)])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def noise_std(**options) -> float:
    geometry = scan(64)
    noise = torch.randn(1, 1, *geometry.sinogram_shape, generator=torch.Generator().manual_seed(0))
    return FilteredBackprojection(geometry, **options)(noise)[0, 0][field_of_view(geometry)].std().item()


# HU are true


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="flat"),
        pytest.param({"detector": "equiangular"}, id="equiangular"),
        pytest.param({"detector_offset": 0.25}, id="quarter-cell offset"),
        pytest.param({"arc": -2 * math.pi}, id="clockwise"),
        pytest.param({"num_views": 575}, id="odd views"),
        pytest.param({"image_center": (20.0, -10.0)}, id="image off centre"),
        pytest.param({"arc": math.pi + FAN + 1e-3}, id="shortest arc"),
        pytest.param({"arc": -math.pi - FAN - 1e-3}, id="shortest arc clockwise"),
        pytest.param(
            {"arc": 5.0, "detector": "equiangular", "detector_offset": 0.25}, id="long arc equiangular offset"
        ),
        pytest.param({"arc": -5.0, "detector": "equiangular", "start_angle": 1.0}, id="long arc equiangular clockwise"),
        pytest.param({"angles": FULL_SCAN + 0.1 * np.sin(FULL_SCAN)}, id="uneven angles"),
        pytest.param({"angles": (FULL_SCAN + JITTER * 2 * math.pi / 576)[::-1]}, id="jittered angles clockwise"),
        pytest.param({"angles": (FULL_SCAN + JITTER * 2 * math.pi / 576) * 0.75}, id="jittered short scan"),
    ],
)
def test_an_edge_free_phantom_comes_back_within_half_a_hu(changes):
    assert error_hu(scan(256, **changes)) < 0.5


@pytest.mark.parametrize("detector", ["flat", "equiangular"])
def test_torch_alone_is_as_true(detector):
    assert error_hu(scan(176, detector=detector, num_views=180), "torch") < 0.5


@pytest.mark.parametrize(
    "changes", [{}, {"detector": "equiangular"}, {"arc": 4.3}, {"arc": -4.3, "detector_offset": 0.25}], ids=str
)
def test_water_is_0_hu_and_air_minus_1000(changes):
    geometry = scan(256, **changes)
    image = FilteredBackprojection(geometry)(ellipse_sinogram(geometry, DISC).float())
    image_hu = attenuation_to_hu(image.double())[0, 0]
    x, y = grid(geometry)
    radius = torch.from_numpy(np.hypot(x / half_width(geometry) - 0.05, y / half_width(geometry) + 0.03))
    water, air = image_hu[radius < 0.5], image_hu[(radius > 0.7) & field_of_view(geometry)]
    assert water.abs().max() < 1
    # Views and cells are finite, so streaks leave the edge along its tangents: air is right on average.
    assert air.mean().item() == pytest.approx(-1000, abs=1)


def test_listed_angles_equal_the_arc_they_list(backend):
    for changes in ({}, {"arc": 4.3}, {"arc": -4.3}):
        plain = scan(32, **changes)
        listed = scan(32, angles=tuple(plain.view_angles))
        sinogram = draw(2, 1, *plain.sinogram_shape)
        image, expected = (FilteredBackprojection(g, backend=backend)(sinogram) for g in (listed, plain))
        assert torch.allclose(image, expected, rtol=0, atol=1e-9 * expected.abs().max().item())


def test_backends_reconstruct_the_same(geometry):
    sinogram = draw(3, 1, *geometry.sinogram_shape).float()
    numba, plain = (FilteredBackprojection(geometry, backend=name)(sinogram) for name in ("numba", "torch"))
    assert torch.allclose(numba, plain, rtol=0, atol=1e-5 * plain.abs().max().item())


@pytest.mark.parametrize("slices", [3, 8])
def test_a_batch_equals_its_slices(backend, slices):
    fbp = FilteredBackprojection(scan(32), backend=backend)
    sinogram = draw(slices, 1, 72, 46).float()
    single = torch.cat([fbp(one[None]) for one in sinogram])
    assert torch.allclose(fbp(sinogram), single, rtol=0, atol=1e-5 * single.abs().max().item())


# Windows


def test_softer_windows_pass_less_noise():
    noise = [noise_std(window=window) for window in ("ram-lak", "shepp-logan", "cosine", "hann")]
    assert noise == sorted(noise, reverse=True) and noise[3] < 0.7 * noise[0]


def test_a_lower_cutoff_passes_less_noise():
    noise = [noise_std(cutoff=cutoff) for cutoff in (1.0, 0.8, 0.5)]
    assert noise == sorted(noise, reverse=True)


@pytest.mark.parametrize("window", RAMP_WINDOWS)
@pytest.mark.parametrize("cutoff", [1.0, 0.5])
def test_every_window_keeps_the_mean(window, cutoff):
    geometry = scan(128)
    image = FilteredBackprojection(geometry, window, cutoff=cutoff)(ellipse_sinogram(geometry, DISC).float())
    x, y = grid(geometry)
    inside = torch.from_numpy(np.hypot(x, y) < 0.45 * half_width(geometry))
    assert attenuation_to_hu(image)[0, 0][inside].mean().item() == pytest.approx(0, abs=1)


@pytest.mark.parametrize("detector", ["flat", "equiangular"])
def test_the_two_ends_of_a_view_do_not_touch_in_the_filter(detector):
    geometry = scan(128, detector=detector, num_cells=128)
    wide = np.array([(0.0, 0.0, 0.98, 0.98, 0, 1.0)])
    image_hu = attenuation_to_hu(FilteredBackprojection(geometry)(ellipse_sinogram(geometry, wide).float()))[0, 0]
    assert image_hu[field_of_view(geometry, 0.8)].mean().item() == pytest.approx(0, abs=1)


def test_nothing_passes_above_the_cutoff():
    geometry = scan(64, num_cells=92)
    # Alternating cells, faded in and out: all at the highest frequency that cells can show.
    wave = torch.hann_window(92, dtype=torch.float64) * (-1.0) ** torch.arange(92)
    sinogram = wave.expand(1, 1, geometry.num_views, 92)
    whole, cut = (FilteredBackprojection(geometry, cutoff=cutoff)(sinogram) for cutoff in (1.0, 0.8))
    assert rms(cut) < 1e-3 * rms(whole)


@pytest.mark.parametrize("detector", ["flat", "equiangular"])
@pytest.mark.parametrize("cutoff", [1.0, 0.77, 0.4])
@pytest.mark.parametrize(
    ("window", "formula"),
    [
        ("ram-lak", lambda f: 1.0),
        ("shepp-logan", lambda f: math.sin(math.pi * f / 2) / (math.pi * f / 2)),
        ("cosine", lambda f: math.cos(math.pi * f / 2)),
        ("hann", lambda f: math.cos(math.pi * f / 2) ** 2),
    ],
)
def test_the_filter_is_the_ramp_times_the_window_up_to_the_cutoff(window, formula, cutoff, detector):
    """A ramp of half the spatial frequency over the cells' pitch at the centre; equiangular cells bend it a little."""
    geometry = scan(128, detector=detector)
    response = ramp_response(geometry, window, cutoff)
    pitch = geometry.cell_pitch * geometry.source_to_center / geometry.source_to_detector
    for k in range(8, len(response)):
        of_nyquist = k / (len(response) - 1)
        expected = of_nyquist / 2 / pitch * formula(of_nyquist / cutoff) if of_nyquist <= cutoff else 0.0
        assert response[k] == pytest.approx(expected, abs=2e-3 / pitch)
        assert expected or response[k] == 0


@pytest.mark.parametrize("window", RAMP_WINDOWS)
def test_a_cutoff_at_nyquist_changes_nothing(window):
    geometry = scan(32)
    sinogram = draw(1, 1, *geometry.sinogram_shape)
    plain, cut = (FilteredBackprojection(geometry, window, **options)(sinogram) for options in ({}, {"cutoff": 1}))
    assert torch.equal(plain, cut)


# Redundancy


@pytest.mark.parametrize("sense", [1, -1])
@pytest.mark.parametrize("views", [72, 90, 110])
def test_a_ray_and_its_counterpart_share_one_weight(sense, views):
    """Cells are as far apart as views (3 degrees), so that counterparts are views and cells of the scan too."""
    step = math.radians(3)
    detector = {"detector": "equiangular", "num_cells": 8, "cell_pitch": 1085.6 * step}
    geometry = scan(32, **detector, num_views=views, arc=sense * views * step)
    weights = redundancy_weights(geometry)
    views_of, cells = np.indices(weights.shape)
    # Fan angle g in steps; the counterpart (-g) stands half a turn - 2 g further on, or as far back.
    doubled = sense * (2 * cells - 7)
    total = weights.copy()
    for half_turn in (60, -60):
        other = views_of + half_turn - doubled
        there = (other >= 0) & (other < views)
        total[there] += weights[other[there], 7 - cells[there]]
    assert np.abs(total - 1).max() < 1e-9
    assert weights.min() >= 0 and weights.max() <= 1


def test_steps_of_the_views_sum_to_the_arc():
    jittered = (FULL_SCAN + JITTER * 2 * math.pi / 576)[::-1]
    assert view_steps(scan(256, angles=jittered)).sum() == pytest.approx(2 * math.pi)
    assert view_steps(scan(256, arc=-4.3)).sum() == pytest.approx(4.3)


@pytest.mark.parametrize("listed", [False, True])
def test_an_arc_too_short_is_refused_with_both_angles(listed):
    geometry = scan(256, arc=math.radians(200))
    if listed:
        geometry = scan(256, angles=tuple(geometry.view_angles))
    needed = 180 + math.degrees(FAN)
    message = f"the arc of 200.00 degrees is below 180 degrees + fan angle = {needed:.2f} degrees"
    with pytest.raises(ValueError, match=re.escape(message)):
        FilteredBackprojection(geometry)


# Gradient


@pytest.mark.parametrize("changes", [{}, {"detector": "equiangular", "num_views": 13}, {"arc": 5.0}], ids=str)
def test_the_gradient_passes_gradcheck(backend, changes):
    geometry = scan(6, **{"num_views": 12, "num_cells": 9} | changes)
    fbp = FilteredBackprojection(geometry, "hann", backend)
    sinogram = draw(2, 1, *geometry.sinogram_shape).requires_grad_()
    assert torch.autograd.gradcheck(fbp, sinogram, atol=1e-9, rtol=1e-6)


def test_directional_derivatives_equal_finite_differences(geometry, backend):
    fbp = FilteredBackprojection(geometry, backend=backend)

    def loss(sinogram: Tensor) -> Tensor:
        return torch.sin(100 * fbp(sinogram)).sum()

    sinogram = draw(1, 1, *geometry.sinogram_shape).requires_grad_()
    direction, step = draw(1, 1, *geometry.sinogram_shape, seed=1), 1e-5
    loss(sinogram).backward()
    difference = (loss(sinogram + step * direction) - loss(sinogram - step * direction)) / (2 * step)
    assert (sinogram.grad * direction).sum().item() == pytest.approx(difference.item(), rel=1e-6)


def test_the_matrix_of_the_gradient_is_the_transpose(backend):
    geometry = scan(5, num_views=8, num_cells=7, image_shape=(4, 5), detector_offset=0.25)
    fbp = FilteredBackprojection(geometry, "shepp-logan", backend)
    matrix = fbp(torch.eye(56, dtype=torch.float64).view(56, 1, 8, 7)).view(56, 20)
    sinogram = torch.zeros(20, 1, 8, 7, dtype=torch.float64, requires_grad=True)
    fbp(sinogram).backward(torch.eye(20, dtype=torch.float64).view(20, 1, 4, 5))
    assert (sinogram.grad.view(20, 56) - matrix.T).abs().max() < 1e-12 * matrix.abs().max()


def test_second_derivatives_are_right(backend):
    fbp = FilteredBackprojection(scan(4, num_views=8, num_cells=6), backend=backend)
    assert torch.autograd.gradgradcheck(lambda y: (100 * fbp(y)) ** 2, draw(1, 1, 8, 6).requires_grad_())


# Kinds of input


def test_half_precision_is_computed_in_single(backend):
    fbp = FilteredBackprojection(scan(32), backend=backend)
    sinogram = draw(1, 1, 72, 46).half().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        image = fbp(sinogram)
    assert image.dtype == torch.float32 and torch.equal(image, fbp(sinogram.float()))
    image.sum().backward()
    assert sinogram.grad.dtype == torch.float16 and sinogram.grad.isfinite().all()


def test_memory_order_does_not_matter(backend):
    fbp = FilteredBackprojection(scan(32), backend=backend)
    sinogram = draw(1, 1, 72, 46)
    strided = sinogram.transpose(2, 3).contiguous().transpose(2, 3)
    assert not strided.is_contiguous() and torch.equal(fbp(strided), fbp(sinogram))


def test_it_adds_nothing_to_a_state_dict():
    assert not FilteredBackprojection(scan(32)).state_dict()


@pytest.mark.parametrize(
    ("sinogram", "message"),
    [
        (torch.zeros(1, 1, 46, 72), r"sinogram must be a tensor of shape \(B, 1, 72, 46\), got \(1, 1, 46, 72\)"),
        (torch.zeros(72, 46), r"got \(72, 46\)"),
        (torch.full((1, 1, 72, 46), math.nan), "sinogram has NaN or infinite values"),
        (torch.full((1, 1, 72, 46), -math.inf), "sinogram has NaN or infinite values"),
    ],
)
def test_a_sinogram_that_does_not_fit_is_refused(sinogram, message):
    with pytest.raises(ValueError, match=message):
        FilteredBackprojection(scan(32))(sinogram)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "hamming"}, "window must be one of .*'ram-lak'.* got 'hamming'"),
        ({"backend": "leaf"}, "backend must be one of .* got 'leaf'"),
        ({"cutoff": 0.0}, r"cutoff must be in \(0, 1\], got 0.0"),
        ({"cutoff": 1.5}, r"cutoff must be in \(0, 1\], got 1.5"),
        ({"cutoff": math.nan}, r"cutoff must be in \(0, 1\], got nan"),
        ({"cutoff": "0.8"}, r"cutoff must be in \(0, 1\], got '0.8'"),
    ],
)
def test_an_unknown_option_is_refused_with_those_there(options, message):
    with pytest.raises(ValueError, match=message):
        FilteredBackprojection(scan(32), **options)
