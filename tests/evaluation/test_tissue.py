"""Tissues of a phantom whose parts are known."""

from __future__ import annotations

import pytest
import torch

from bundle.evaluation import TISSUES, contrast_to_noise, score_slices, tissue_masks, tissue_statistics

from .phantoms import noise

PARTS = {"air": -1000.0, "lung": -800.0, "soft_tissue": 40.0, "bone": 800.0}


def thorax(size: int = 128) -> torch.Tensor:
    """Soft tissue in air, with two lungs and a bone, ``(1, H, W)``."""
    axis = torch.linspace(-1, 1, size)
    y, x = axis[:, None], axis[None]
    image = torch.where((x / 0.9) ** 2 + (y / 0.75) ** 2 < 1, PARTS["soft_tissue"], PARTS["air"])
    for side in (-1, 1):
        image = torch.where(((x - 0.45 * side) / 0.28) ** 2 + (y / 0.45) ** 2 < 1, PARTS["lung"], image)
    return torch.where(x**2 + (y - 0.45) ** 2 < 0.15**2, PARTS["bone"], image)[None]


def test_each_mask_holds_its_own_tissue_alone():
    image = thorax()
    for name, mask in tissue_masks(image).items():
        assert mask.sum() > 100, name
        assert image[mask].unique().tolist() == [PARTS[name]]


def test_air_inside_the_body_is_no_air():
    image = thorax()
    axis = torch.linspace(-1, 1, 128)
    trachea = axis[:, None] ** 2 + axis**2 < 0.15**2
    with_trachea = torch.where(trachea, -1000.0, image)
    assert not tissue_masks(with_trachea)["air"][0][trachea].any()


def test_noise_of_the_reference_chooses_no_pixels():
    image = thorax()
    clean, noisy = (tissue_masks(v) for v in (image, image + noise(30.0, image)))
    for name in TISSUES:
        assert (clean[name] ^ noisy[name]).sum() < 0.02 * clean[name].sum(), name


def test_a_shift_in_one_tissue_is_the_bias_of_that_tissue():
    reference = thorax()
    image = torch.where(reference == PARTS["lung"], reference + 7, reference)
    statistics = tissue_statistics(image, reference)[0]
    biases = {name: one.bias for name, one in statistics.items()}
    assert biases == pytest.approx({"air": 0, "lung": 7, "soft_tissue": 0, "bone": 0}, abs=1e-6)


def test_the_std_is_that_of_the_noise_and_n_counts_the_pixels():
    reference = thorax()
    statistics = tissue_statistics(reference + noise(20.0, reference), reference)[0]
    for name, mask in tissue_masks(reference).items():
        assert statistics[name].n == int(mask.sum())
        assert statistics[name].std == pytest.approx(20, rel=5 / statistics[name].n ** 0.5)


def test_a_tissue_of_few_pixels_has_no_bias_but_an_n():
    bare = torch.where(thorax() == PARTS["bone"], PARTS["soft_tissue"], thorax())
    bone = tissue_statistics(bare, bare)[0]["bone"]
    assert (bone.bias, bone.std, bone.n) == (None, None, 0)


def test_scores_of_a_slice_hold_every_tissue():
    (row,) = score_slices(thorax() - 3, thorax())
    for name in TISSUES:
        assert row[f"hu_bias_{name}"] == pytest.approx(-3, abs=1e-4)
        assert row[f"pixels_{name}"] > 0 and row[f"hu_std_{name}"] == pytest.approx(0, abs=1e-3)
    assert row["hu_bias"] == row["hu_bias_soft_tissue"]


def test_contrast_to_noise_is_the_contrast_by_the_std_of_the_background():
    detail, background = torch.zeros(64, 64, dtype=torch.bool), torch.zeros(64, 64, dtype=torch.bool)
    detail[:20], background[30:] = True, True
    image = noise(10.0, torch.zeros(64, 64)) + 25.0 * detail
    found = contrast_to_noise(image, detail, background)
    assert found.cnr == pytest.approx(2.5, rel=0.05) and (found.n, found.n_background) == (20 * 64, 34 * 64)
    assert contrast_to_noise(-image, detail, background).cnr == pytest.approx(-found.cnr)


def test_a_background_without_noise_has_no_ratio():
    detail = torch.eye(8, dtype=torch.bool)
    assert contrast_to_noise(detail.float(), detail, ~detail).cnr is None


@pytest.mark.parametrize(
    ("signal", "background", "match"),
    [
        (torch.ones(8, 8, dtype=torch.bool), torch.ones(8, 8, dtype=torch.bool), "overlap"),
        (torch.zeros(8, 8, dtype=torch.bool), torch.ones(8, 8, dtype=torch.bool), "signal_mask must have 1"),
        (torch.ones(8, 8), torch.ones(8, 8, dtype=torch.bool), "signal_mask must be boolean"),
    ],
)
def test_masks_that_cannot_be_are_named(signal, background, match):
    with pytest.raises(ValueError, match=match):
        contrast_to_noise(torch.zeros(8, 8), signal, background)


def test_images_that_differ_in_shape_are_named():
    with pytest.raises(ValueError, match=r"\(1, 128, 128\) and \(1, 64, 64\)"):
        tissue_statistics(thorax(), thorax(64))
