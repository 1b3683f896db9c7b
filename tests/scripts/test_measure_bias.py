"""Bias over noise realisations, with an interval that covers it."""

from __future__ import annotations

import argparse

import nibabel
import numpy as np
import pytest
import torch

from bundle.evaluation import RowStore


@pytest.fixture
def measure_bias():
    import measure_bias

    return measure_bias


def test_the_interval_covers_the_true_mean_as_often_as_it_says(measure_bias):
    samples = 3 + 2 * torch.randn(4000, 5, generator=torch.Generator().manual_seed(0))
    found = [measure_bias.interval(sample) for sample in samples.tolist()]
    covered = sum(abs(mean - 3) < half for mean, half in found) / len(found)
    assert covered == pytest.approx(0.95, abs=0.015)
    with pytest.raises(ValueError, match="two noise realisations or more, got 1"):
        measure_bias.interval([1.0])


def test_every_noise_is_measured_once_and_the_page_says_how_many(measure_bias, smoke_geometry, monkeypatch, tmp_path):
    import measuring

    y, x = np.mgrid[-31.5:32, -31.5:32]
    disc = np.where(np.hypot(x, y) < 22, 0.0, -1000.0).astype(np.float32)
    folder = tmp_path / "data"
    folder.mkdir()
    nibabel.save(nibabel.Nifti1Image(disc[..., None], np.diag([5.46875, 5.46875, 1.0, 1.0])), folder / "ada.nii.gz")

    def load_config(args):
        config = measuring.load_config(args)
        config["geometry"] = smoke_geometry
        return config

    monkeypatch.setattr(measure_bias, "load_config", load_config)
    args = argparse.Namespace(
        dataset_dir=folder,
        exclude=[],
        slices=1,
        doses=[0.25],
        seeds=3,
        methods=["fbp_ram-lak"],
        weights=measuring.ROOT / "models" / "model.pt",
        fresh=False,
    )
    store = RowStore(tmp_path / "bias.jsonl")
    rows, _ = measure_bias.measure(args, store)
    biases = [row["hu_bias_soft_tissue"] for row in rows]
    assert len(set(biases)) == 3
    text = measure_bias.page(rows, args.doses)
    mean, half = measure_bias.interval(biases)
    assert "Mean over 3 noise realisations" in text and f"| {mean:.2f} +- {half:.2f} |" in text
    assert text.count(f"| {mean:.2f} +- {half:.2f} |") == 3, "the slice, all slices, all patients"
    again, _ = measure_bias.measure(args, store)
    assert again == rows and len(store) == 3


def test_every_pixel_counts_alike_in_the_mean_of_all_slices(measure_bias):
    rows = [
        {"method": "restored", "noise": noise, "hu_bias_bone": bias + noise, "pixels_bone": pixels}
        for noise in (0, 1)
        for bias, pixels in ((-3.0, 100), (1.0, 300))
    ]
    assert measure_bias.pooled(rows, "bone", "restored") == [0.0, 1.0]
