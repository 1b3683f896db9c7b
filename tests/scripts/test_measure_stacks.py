"""Slices are restored alone and with those beside them, of the same image, and kept."""

from __future__ import annotations

import argparse

import nibabel
import numpy as np
import pytest

from bundle.evaluation import RowStore

SLICES = 7


@pytest.fixture
def measure_stacks():
    import measure_stacks

    return measure_stacks


@pytest.fixture
def args(tmp_path):
    """One patient with seven slices: a disc of water with a rod that goes through all of them."""
    y, x = np.mgrid[-63.5:64, -63.5:64]
    disc = np.where(np.hypot(x, y) < 44, 0.0, -1000.0) + np.where(np.hypot(x - 16, y) < 8, 300.0, 0.0)
    volume = np.repeat(disc[:, :, None], SLICES, axis=2).astype(np.float32)
    folder = tmp_path / "data"
    folder.mkdir()
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([2.734375, 2.734375, 1.0, 1.0])), folder / "ada.nii.gz")
    return argparse.Namespace(
        dataset_dir=folder, exclude=[], adjacent=["ada"], slices=2, doses=[0.25], weights=None, fresh=False
    )


@pytest.fixture
def small(measure_stacks, smoke_geometry, monkeypatch):
    """evaluate.json with the scanner of the smoke test and the shipped weights."""
    import measuring

    def load_config(args):
        args.weights = args.weights or measuring.ROOT / "models" / "model.pt"
        config = measuring.load_config(args)
        # Held-out fusion weighs a body of some thousand pixels only.
        config["geometry"] = {**smoke_geometry, "pixel_size": 2.734375, "image_shape": [128, 128]}
        return config

    monkeypatch.setattr(measure_stacks, "load_config", load_config)
    return load_config


def test_every_slice_is_measured_in_both_forms_and_once(measure_stacks, args, small, tmp_path, monkeypatch):
    store = RowStore(tmp_path / "stacks.jsonl")
    rows, settings = measure_stacks.measure(args, store)
    assert [(row["form"], row["dose"]) for row in rows] == [("alone", 0.25), ("neighbours", 0.25)] * 2
    alone, neighbours = (measure_stacks.of(rows, form, 0.25) for form in ("alone", "neighbours"))
    # Nothing differs from slice to slice but the noise, so the others' photons can only help.
    assert all(b["rmse_hu"] < a["rmse_hu"] for a, b in zip(alone, neighbours))
    text = measure_stacks.page(rows, args.doses, settings)
    assert "ada: 2" in text and "2/2" in text

    monkeypatch.setattr(measure_stacks, "restore_both", None)
    assert measure_stacks.measure(args, store)[0] == rows


def test_a_slice_is_the_same_scan_whichever_others_are_scanned(measure_stacks, args, small):
    config = small(args)
    config["slices"] = None
    (stack,) = measure_stacks.load_stacks(args, config)
    together = [case.scan.sinogram for case in stack.scanned(0.25)]
    (alone,) = stack.scanned(0.25, (4,))
    assert alone.key["slice"] == 4
    assert (alone.scan.sinogram == together[4]).all()
    assert not (together[3] == together[4]).any()


def test_bad_input_is_named(measure_stacks, args, small, tmp_path):
    store = RowStore(tmp_path / "stacks.jsonl")
    args.slices = SLICES
    with pytest.raises(ValueError, match="ada.*slice 0 lacks a neighbour, the image has 7 slices"):
        measure_stacks.measure(args, store)
    args.adjacent = ["eve", "bob"]
    with pytest.raises(ValueError, match=r"--adjacent eve bob: no patient of .*data is called so"):
        measure_stacks.measure(args, store)
