"""The photon number and the electronic variance come back out of the noise alone."""

from __future__ import annotations

import math

import pytest
import torch

from bundle.physics import NoiseModel, estimate_noise_model, line_integral_variance, simulate_low_dose

from .phantoms import SMOOTH, ellipse_sinogram, gaussian_sinogram, scan

PHOTONS, ELECTRONIC = 1.5e5, 10.0
# Line integrals from 0 to 6.4, with the edges of a skull: 576 views.
HEAD = ellipse_sinogram(scan(256))[0, 0]
# Every blob three times as dense: 0 to 7.2, without an edge.
BLOBS = gaussian_sinogram(scan(128), SMOOTH * (1, 1, 1, 3))[0, 0]


def noisy(clean, dose=1.0, photons=PHOTONS, electronic=ELECTRONIC, repeats=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clean = clean.float().expand(repeats, -1, -1)
    return simulate_low_dose(clean, photons, dose=dose, electronic_variance=electronic, generator=generator)


@pytest.mark.parametrize("dose", [1.0, 0.25, 0.1, 0.05])
def test_photons_come_back_within_eight_percent_at_every_dose(dose):
    model = estimate_noise_model(noisy(BLOBS, dose))
    assert model.incident_photons == pytest.approx(PHOTONS * dose, rel=0.08)
    assert abs(model.incident_photons - PHOTONS * dose) < 3.5 * model.incident_photons_error


@pytest.mark.parametrize("dose", [0.25, 0.1, 0.05])
def test_electronic_variance_comes_back_within_three_standard_errors(dose):
    model = estimate_noise_model(noisy(BLOBS, dose, repeats=4))
    assert abs(model.electronic_variance - ELECTRONIC) < 3 * model.electronic_variance_error
    assert model.electronic_variance_error < ELECTRONIC


def test_an_electronic_variance_that_could_be_none_counts_as_none():
    assert estimate_noise_model(noisy(BLOBS, 1.0, electronic=0.0)).significant_electronic_variance == 0
    strong = estimate_noise_model(noisy(BLOBS, 0.1, electronic=400.0, repeats=4))
    assert strong.significant_electronic_variance == strong.electronic_variance
    assert NoiseModel(incident_photons=1e4, electronic_variance=3.0).significant_electronic_variance == 3.0


def test_the_edges_of_a_skull_do_not_pass_for_noise():
    model = estimate_noise_model(noisy(HEAD, 0.25, repeats=1))
    assert model.incident_photons == pytest.approx(PHOTONS * 0.25, rel=0.08)


def test_strong_electronic_noise_is_told_from_few_photons():
    model = estimate_noise_model(noisy(BLOBS, 0.1, electronic=400.0, repeats=4))
    assert model.incident_photons == pytest.approx(PHOTONS * 0.1, rel=0.1)
    assert model.electronic_variance == pytest.approx(400.0, rel=0.2)


def test_more_rays_leave_less_error():
    few, many = (estimate_noise_model(noisy(BLOBS, 0.1, repeats=count)) for count in (1, 5))
    assert many.rays >= 5 * few.rays
    assert many.incident_photons_error < few.incident_photons_error / 2


def test_scans_of_other_shapes_count_together():
    stack = noisy(BLOBS, 0.1, repeats=3)
    together, apart = estimate_noise_model(stack), estimate_noise_model([stack[:2], stack[2]])
    assert apart == together
    assert estimate_noise_model([stack[0], stack[1:, :, :100]]).rays < together.rays


def test_known_electronic_noise_needs_no_range_of_line_integrals():
    flat = noisy(torch.full((200, 100), 4.0), 0.1)
    with pytest.raises(ValueError, match="cannot tell photons from electronic noise"):
        estimate_noise_model(flat)
    model = estimate_noise_model(flat, electronic_variance=ELECTRONIC)
    assert model.incident_photons == pytest.approx(PHOTONS * 0.1, rel=0.05)
    assert (model.electronic_variance, model.electronic_variance_error) == (ELECTRONIC, 0.0)


def test_air_that_was_cut_at_zero_is_left_out():
    cut = noisy(BLOBS, 0.1, repeats=4).clamp_min(0)
    assert estimate_noise_model(cut).incident_photons == pytest.approx(PHOTONS * 0.1, rel=0.1)


def test_errors_of_single_cells_do_not_pass_for_noise():
    rings = 0.05 * torch.randn(BLOBS.shape[1], generator=torch.Generator().manual_seed(1))
    model = estimate_noise_model(noisy(BLOBS, 0.1, repeats=4) + rings)
    assert model.incident_photons == pytest.approx(PHOTONS * 0.1, rel=0.08)


@pytest.mark.parametrize("clean", [HEAD, BLOBS, torch.zeros(100, 50), torch.full((100, 50), 2.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sinogram_without_noise_is_refused(clean, dtype):
    with pytest.raises(ValueError, match="noise"):
        estimate_noise_model(clean.to(dtype))


@pytest.mark.parametrize(
    ("line_integrals", "message"),
    [
        (torch.zeros(100), r"must be \(..., views, cells\)"),
        (torch.zeros(4, 100), "6 views and 3 cells or more"),
        (torch.zeros(0, 100, 100), "6 views"),
        ([], "at least one sinogram"),
        (torch.full((100, 100), math.nan), "NaN"),
        (torch.randn(8, 8), "too small a scan"),
    ],
)
def test_what_is_no_sinogram_is_refused(line_integrals, message):
    with pytest.raises(ValueError, match=message):
        estimate_noise_model(line_integrals)


def test_negative_electronic_variance_is_refused():
    with pytest.raises(ValueError, match="electronic_variance must be zero or more"):
        estimate_noise_model(noisy(BLOBS), electronic_variance=-1.0)


def test_a_model_gives_the_variance_that_simulation_has():
    model = NoiseModel(incident_photons=PHOTONS * 0.25, electronic_variance=ELECTRONIC)
    p = torch.tensor([0.0, 2.0, 5.0])
    expected = line_integral_variance(p, PHOTONS, dose=0.25, electronic_variance=ELECTRONIC)
    torch.testing.assert_close(model.variance(p), expected)


@pytest.mark.parametrize("values", [(0.0, 1.0), (-1.0, 0.0), (math.inf, 0.0), (1.0, -1.0), (1.0, math.nan)])
def test_a_model_that_cannot_be_is_refused(values):
    with pytest.raises(ValueError, match="must be"):
        NoiseModel(incident_photons=values[0], electronic_variance=values[1])
