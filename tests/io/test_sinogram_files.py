"""Measured sinograms in and out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bundle.io import read_scan_noise, read_sinogram, write_sinogram


@pytest.fixture
def sinogram(geometry):
    return torch.rand(2, *geometry.sinogram_shape, generator=torch.Generator().manual_seed(0))


def test_written_sinogram_reads_back_the_same(sinogram, geometry, tmp_path):
    path = write_sinogram(tmp_path / "scan.npz", sinogram, geometry)
    again, scan = read_sinogram(path)
    assert torch.equal(again, sinogram) and scan == geometry


def test_single_sinogram_becomes_a_stack_of_one(sinogram, geometry, tmp_path):
    np.savez(tmp_path / "scan.npz", sinogram=sinogram[0].double().numpy(), geometry=geometry.to_json())
    again, _ = read_sinogram(tmp_path / "scan.npz")
    assert again.dtype == torch.float32 and torch.equal(again, sinogram[:1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sinogram": None}, "field sinogram is missing"),
        ({"geometry": None}, "field geometry is missing"),
        ({"sinogram": np.zeros((12, 15))}, r"sinogram has shape \(12, 15\), its geometry expects \(12, 16\)"),
        ({"sinogram": np.zeros((1, 1, 12, 16))}, r"sinogram has shape \(1, 1, 12, 16\)"),
        ({"sinogram": np.full((12, 16), np.nan)}, "sinogram has NaN or infinite"),
        ({"sinogram": np.full((12, 16), np.inf)}, "sinogram has NaN or infinite"),
        ({"sinogram": np.full((12, 16), "a")}, "sinogram: expected numbers"),
        ({"geometry": "a flat one"}, "field geometry"),
        ({"geometry": json.dumps({"num_views": 12})}, "field geometry.*lacks"),
        ({"geometry": np.zeros(3)}, "field geometry"),
        ({"photons": 0.0}, "field photons: expected incident photons a ray, above 0, got 0.0"),
        ({"photons": np.nan}, "field photons.*nan"),
        ({"photons": np.ones(12)}, r"field photons: expected one number, got shape \(12,\)"),
        ({"photons": "many"}, "field photons: expected one number"),
        ({"electronic_variance": -1}, "field electronic_variance.*got -1.0"),
    ],
)
def test_field_that_cannot_be_used_is_named(change, message, geometry, tmp_path):
    fields = {"sinogram": np.zeros((12, 16)), "geometry": geometry.to_json()} | change
    np.savez(tmp_path / "scan.npz", **{name: value for name, value in fields.items() if value is not None})
    with pytest.raises(ValueError, match=f"scan.npz.*{message}"):
        read_sinogram(tmp_path / "scan.npz")


def test_what_is_known_of_the_noise_reads_back_the_same(sinogram, geometry, tmp_path):
    path = write_sinogram(tmp_path / "scan.npz", sinogram, geometry, photons=37500.0, electronic_variance=0.0)
    assert read_scan_noise(path) == (37500.0, 0.0)
    assert torch.equal(read_sinogram(path)[0], sinogram)


def test_noise_that_nobody_knows_is_none(sinogram, geometry, tmp_path):
    assert read_scan_noise(write_sinogram(tmp_path / "scan.npz", sinogram, geometry)) == (None, None)


def test_whole_photon_numbers_of_other_writers_are_read(geometry, tmp_path):
    np.savez(tmp_path / "scan.npz", sinogram=np.zeros((12, 16)), geometry=geometry.to_json(), photons=np.array([90000]))
    assert read_scan_noise(tmp_path / "scan.npz").photons == 90000.0


def test_pickles_are_never_run(geometry, tmp_path):
    np.savez(tmp_path / "scan.npz", sinogram=np.array([object()], dtype=object), geometry=geometry.to_json())
    with pytest.raises(ValueError, match="scan.npz"):
        read_sinogram(tmp_path / "scan.npz")


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_truncated_file_is_refused_by_name(part, sinogram, geometry, tmp_path):
    path = write_sinogram(tmp_path / "scan.npz", sinogram, geometry)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(ValueError, match="scan.npz"):
        read_sinogram(path)


def test_array_that_is_no_archive_and_missing_file_are_refused(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with pytest.raises(ValueError, match="array.npz"):
        read_sinogram(tmp_path / "array.npz")
    with pytest.raises(ValueError, match="nowhere.npz"):
        read_sinogram(tmp_path / "nowhere.npz")


def test_writing_never_harms_what_is_there(sinogram, geometry, tmp_path, monkeypatch):
    path = write_sinogram(tmp_path / "scan.npz", sinogram, geometry)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="scan.npz: exists"):
        write_sinogram(path, sinogram, geometry)

    def disk_full(file, **fields):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", disk_full)
    with pytest.raises(OSError, match="disk full"):
        write_sinogram(path, sinogram, geometry, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["scan.npz"] and path.read_bytes() == before


def test_write_refuses_what_does_not_fit(sinogram, geometry, tmp_path):
    with pytest.raises(ValueError, match="geometry expects"):
        write_sinogram(tmp_path / "scan.npz", sinogram[..., 1:], geometry)
    with pytest.raises(ValueError, match="NaN"):
        write_sinogram(tmp_path / "scan.npz", sinogram / 0, geometry)
    with pytest.raises(ValueError, match="photons: expected"):
        write_sinogram(tmp_path / "scan.npz", sinogram, geometry, photons=-1.0)
    with pytest.raises(ValueError, match="electronic_variance: expected"):
        write_sinogram(tmp_path / "scan.npz", sinogram, geometry, electronic_variance=float("nan"))
    with pytest.raises(ValueError, match=".npz"):
        write_sinogram(tmp_path / "scan.mat", sinogram, geometry)
    assert not list(tmp_path.iterdir())
