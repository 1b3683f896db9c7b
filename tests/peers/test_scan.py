"""A scan holds what a method may know, or is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from monai.data import MetaTensor

from bundle.peers import Scan

from .conftest import GEOMETRY


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sinogram": torch.zeros(1, 1, 192, 111)}, r"\(192, 112\), got shape \(1, 1, 192, 111\)"),
        ({"sinogram": torch.zeros(1, 192, 112)}, "got shape"),
        ({"sinogram": torch.zeros(0, 1, 192, 112)}, "got shape"),
        ({"sinogram": torch.zeros(1, 1, 192, 112, dtype=torch.float64)}, "float32"),
        ({"sinogram": torch.full((1, 1, 192, 112), torch.nan)}, "NaN"),
        ({"incident_photons": 0.0}, "incident_photons must be positive, got 0"),
        ({"electronic_variance": -1.0}, "electronic_variance must be zero or more"),
        ({"mu_water": float("inf")}, "mu_water"),
    ],
)
def test_what_can_not_be_is_refused_by_name(phantom, change, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(phantom.clean, **change)


def test_metadata_stays_outside():
    scan = Scan(sinogram=MetaTensor(torch.zeros(1, 1, *GEOMETRY.sinogram_shape)), geometry=GEOMETRY)
    assert type(scan.sinogram) is torch.Tensor
