"""A small scanner and a small phantom as NIfTI."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from bundle.io import find_scans, write_sinogram
from bundle.physics import FanBeamGeometry
from bundle.transforms import LoadScand, SimulateScand

NUM_SLICES = 5


@pytest.fixture
def geometry():
    return FanBeamGeometry(
        source_to_center=746.02,
        source_to_detector=1361.2,
        num_views=90,
        num_cells=96,
        cell_pitch=7.0,
        pixel_size=1.0,
        image_shape=(32, 32),
    )


@pytest.fixture
def phantom():
    """HU ``(S, H, W)``: a soft disc that grows from slice to slice, on a grid that the scanner was not made for."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    return np.stack([np.where(x**2 + y**2 < 0.4 + 0.05 * s, 40, -1000) for s in range(NUM_SLICES)]).astype(np.int16)


@pytest.fixture
def folder(tmp_path, phantom):
    for name in ("one", "two"):
        affine = np.diag([-3.0, -3.0, 2.0, 1.0])
        nib.save(nib.Nifti1Image(phantom.transpose(2, 1, 0), affine), tmp_path / f"{name}.nii.gz")
    return tmp_path


@pytest.fixture
def scans(folder):
    return find_scans(folder)


@pytest.fixture
def simulate(geometry):
    def make(**options):
        return SimulateScand(geometry, **({"photons": 1e5, "electronic_variance": 10.0, "dose": 0.25} | options))

    return make


@pytest.fixture
def stack(scans):
    return LoadScand()(scans[0])


@pytest.fixture
def measured(tmp_path, geometry):
    """A folder with one measured sinogram of three slices."""
    sinogram = torch.rand(3, *geometry.sinogram_shape, generator=torch.Generator().manual_seed(0))
    write_sinogram(tmp_path / "measured" / "scan.npz", sinogram, geometry)
    return tmp_path / "measured", sinogram
