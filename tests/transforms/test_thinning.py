"""Photons of a scan parted for training."""

from __future__ import annotations

import pytest
import torch

from bundle.io import write_sinogram
from bundle.physics import (
    line_integral_variance,
    simulate_low_dose,
    thin_line_integrals,
)
from bundle.transforms import (
    RandThinCountsd,
    ThinCountsd,
    training_slices,
)


def test_thinned_parts_share_no_noise_and_have_the_noise_of_their_doses():
    """Binomial parts of Poisson counts are independent, each with the variance of its own share of the photons."""
    generator = torch.Generator().manual_seed(3)
    clean = torch.full((1, 300, 400), 2.0)
    noisy = simulate_low_dose(clean, 1e5, dose=0.25, generator=generator)
    first, second = thin_line_integrals(noisy, 1e5, 0.4, dose=0.25, generator=generator)
    for part, dose in ((first, 0.1), (second, 0.15)):
        expected = line_integral_variance(clean, 1e5, dose=dose).mean()
        assert part.var().item() == pytest.approx(expected.item(), rel=0.02)
        assert part.mean().item() == pytest.approx(2.0, abs=0.001)
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(correlation.item()) < 0.015  # five standard errors


def test_a_thinning_belongs_to_slice_and_repeat():
    item = {"sinogram": torch.full((1, 8, 9), 2.0), "name": "a", "slice": 1}
    thin = ThinCountsd(photons=1e4, dose=0.25)
    again, other = thin(dict(item))["input_sinogram"], thin({**item, "repeat": 1})["input_sinogram"]
    assert torch.equal(thin(item)["input_sinogram"], again)
    assert not torch.equal(other, again)
    assert set(item) == {"sinogram", "name", "slice"}


def test_random_thinning_states_the_noise_it_leaves():
    clean = torch.full((1, 200, 200), 4.5)
    generator = torch.Generator().manual_seed(0)
    noisy = simulate_low_dose(clean, 1e5, dose=0.25, electronic_variance=30.0, generator=generator)
    thin = RandThinCountsd(photons=1e5, dose=0.25, least=0.2, prob=1.0, electronic_variance=30.0).set_random_state(7)
    for _ in range(3):
        item = thin({"sinogram": noisy})
        photons, variance = float(item["incident_photons"]), float(item["electronic_variance"])
        assert 5000 <= photons < 25000 and variance / 30 == pytest.approx(photons / 25000)
        expected = line_integral_variance(clean, photons, electronic_variance=variance).mean().item()
        assert item["sinogram"].var().item() == pytest.approx(expected, rel=0.03)
    never = RandThinCountsd(photons=1e5, dose=0.25, prob=0.0)
    assert torch.equal(never({"sinogram": noisy})["sinogram"], noisy)
    assert never({"sinogram": noisy})["incident_photons"] == 25000
    own = never({"sinogram": noisy, "incident_photons": 7e3, "electronic_variance": 2.0})
    assert own["incident_photons"] == 7e3 and own["electronic_variance"] == 2


@pytest.mark.parametrize("fractions", [(0.0, 0.5), (0.6, 0.4), (0.5, 1.0), (0.5,)])
def test_thinning_refuses_fractions_that_leave_nothing(fractions):
    with pytest.raises(ValueError, match="fractions"):
        ThinCountsd(photons=1e4, dose=0.25, fractions=fractions)


def test_the_two_parts_of_a_scan_know_their_photons():
    noisy = 0.5 * torch.rand(1, 8, 8)
    item = ThinCountsd(photons=1e4, dose=0.25, fractions=(0.3, 0.3))({"sinogram": noisy, "name": "one", "slice": 0})
    assert item["input_photons"] == pytest.approx(750)
    assert item["input_photons"] + item["target_photons"] == pytest.approx(2500)


def test_a_measured_scan_brings_its_own_photons(geometry, tmp_path):
    noisy = 0.5 * torch.rand(geometry.sinogram_shape)
    path = write_sinogram(tmp_path / "scan.npz", noisy, geometry, photons=4000.0, electronic_variance=3.0)
    (item,) = training_slices([{"path": str(path), "kind": "sinogram", "name": "scan", "patient": "one"}])
    assert (item["incident_photons"], item["electronic_variance"]) == (4000.0, 3.0)
    parts = ThinCountsd(photons=1e4, dose=0.25, fractions=(0.3, 0.3), electronic_variance=99.0)(item)
    assert parts["input_photons"] == pytest.approx(1200)
    again = ThinCountsd(photons=4000.0, dose=1.0, fractions=(0.3, 0.3), electronic_variance=3.0)(item)
    assert torch.equal(parts["input_sinogram"], again["input_sinogram"])
    bare = write_sinogram(tmp_path / "bare.npz", noisy, geometry)
    (item,) = training_slices([{"path": str(bare), "kind": "sinogram", "name": "bare", "patient": "one"}])
    assert "incident_photons" not in item and "electronic_variance" not in item
