"""Scripts import each other by name, as they do when they are run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from bundle.peers import Scan
from bundle.physics import FanBeamGeometry

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = str(ROOT / "scripts")


@pytest.fixture(autouse=True)
def script_path(monkeypatch):
    monkeypatch.setattr(sys, "path", [SCRIPTS, *sys.path])


@pytest.fixture
def smoke_geometry() -> dict:
    """The small scanner of the smoke test, as its config says it."""
    geometry = json.loads((ROOT / "configs" / "smoke.json").read_text(encoding="utf-8"))["geometry"]
    return {key: value for key, value in geometry.items() if key != "_desc_"}


@pytest.fixture
def scan(smoke_geometry) -> Scan:
    """One slice of noise."""
    geometry = FanBeamGeometry(**{key: value for key, value in smoke_geometry.items() if key != "_target_"})
    sinogram = 0.01 * torch.randn(1, 1, *geometry.sinogram_shape, generator=torch.Generator().manual_seed(0))
    return Scan(sinogram=1 + sinogram, geometry=geometry, incident_photons=1e4)
