"""A measured scan whose file does not say its photons gets them from its own noise."""

from __future__ import annotations

import logging

import pytest
import torch

from bundle.physics import FanBeamGeometry, insert_phantom, simulate_low_dose
from bundle.transforms import EstimatePhotonsd

PHOTONS = 20_000.0


@pytest.fixture(scope="module")
def clean():
    """Line integrals ``(1, 1, V, D)`` of a water disc with inserts."""
    geometry = FanBeamGeometry(
        source_to_center=746.02,
        source_to_detector=1361.2,
        num_views=576,
        num_cells=224,
        cell_pitch=1.85,
        pixel_size=0.7,
        image_shape=(256, 256),
    )
    return insert_phantom().line_integrals(geometry, mu_water=0.0192).float()


def scanned(clean, count=1):
    generator = torch.Generator().manual_seed(0)
    stack = clean.reshape(1, 1, *clean.shape[-2:]).expand(1, count, -1, -1)
    return simulate_low_dose(stack, PHOTONS, electronic_variance=0.0, generator=generator)


def test_the_photons_are_those_that_made_the_noise(clean):
    item = {"sinogram": scanned(clean, 11), "name": "ada"}
    before = dict(item)
    found = EstimatePhotonsd()(item)
    assert found["incident_photons"] == pytest.approx(PHOTONS, rel=0.05)
    assert found["electronic_variance"] == 0.0
    assert found["photons_estimated"] is True
    assert item.keys() == before.keys() and found["sinogram"] is item["sinogram"]


def test_what_a_file_says_is_kept(clean):
    item = {"sinogram": scanned(clean), "incident_photons": 7.0}
    assert EstimatePhotonsd()(item) == item
    found = EstimatePhotonsd()({"sinogram": scanned(clean), "electronic_variance": 30.0})
    assert found["electronic_variance"] == 30.0
    assert found["photons_estimated"] is True


def test_a_scan_whose_noise_can_not_be_measured_stays_as_it_is_and_says_why(clean, caplog):
    item = {"sinogram": clean, "name": "ada"}
    with caplog.at_level(logging.WARNING):
        assert EstimatePhotonsd()(item) == item
    assert "ada: the number of photons is neither said nor to be measured (" in caplog.text


def test_an_item_without_a_sinogram_is_refused():
    with pytest.raises(ValueError, match=r"an item must hold a 'sinogram' .* got \['name'\]"):
        EstimatePhotonsd()({"name": "ada"})
