"""A soft disc with two inserts, scanned: the geometry is small, the line integrals are those of a body."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from bundle.peers import FbpPeer, Scan
from bundle.physics import FanBeamGeometry, FanBeamProjector, hu_to_attenuation, simulate_low_dose

GEOMETRY = FanBeamGeometry(
    source_to_center=746.02,
    source_to_detector=1361.2,
    num_views=192,
    num_cells=112,
    cell_pitch=11.1,
    pixel_size=350 / 64,
    image_shape=(64, 64),
)


@pytest.fixture(scope="session")
def phantom() -> SimpleNamespace:
    """``clean`` scan, ``reference`` image (1, 1, H, W) in HU, and ``noisy(dose, seed)`` scans of it."""
    axis = torch.linspace(-1, 1, 64)
    x, y = axis[None], axis[:, None]
    image = torch.full((64, 64), -1000.0)
    image[x**2 + y**2 < 0.5] = 40.0
    image[(x - 0.3) ** 2 + y**2 < 0.03] = 300.0
    image[(x + 0.3) ** 2 + (y - 0.1) ** 2 < 0.04] = -100.0
    line_integrals = FanBeamProjector(GEOMETRY)(hu_to_attenuation(image)[None, None])
    clean = Scan(sinogram=line_integrals, geometry=GEOMETRY)

    def noisy(dose: float, seed: int = 0) -> Scan:
        generator = torch.Generator().manual_seed(seed)
        # A coarse cell gathers the photons of many: with as many each, its image would hold no noise.
        sinogram = simulate_low_dose(line_integrals, 2e4, dose=dose, generator=generator)
        return dataclasses.replace(clean, sinogram=sinogram, incident_photons=2e4 * dose)

    return SimpleNamespace(clean=clean, reference=FbpPeer()(clean), noisy=noisy)
