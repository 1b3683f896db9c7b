"""Metrics against known errors and against scikit-image."""

from __future__ import annotations

import json

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import visual_information_fidelity

from bundle.evaluation import WINDOWS, hu_bias, mean_and_std, noise_level, score_slices, score_stages, vif

from .phantoms import body, noise


def test_a_shift_of_5_hu_is_an_error_and_a_bias_of_5_hu():
    for row in score_slices(body() + 5, body()):
        assert row["rmse_hu"] == pytest.approx(5, rel=1e-5)
        assert row["hu_bias"] == pytest.approx(5, rel=1e-4)


def test_white_noise_is_an_error_of_its_std_without_a_bias():
    reference = body(slices=1, size=128)
    (row,) = score_slices(reference + noise(20.0, reference), reference)
    assert row["rmse_hu"] == pytest.approx(20, rel=0.02)
    assert abs(row["hu_bias"]) < 4 * 20 / row["hu_bias_pixels"] ** 0.5


@pytest.mark.parametrize("name", WINDOWS)
def test_psnr_and_ssim_agree_with_scikit_image(name):
    low, high = WINDOWS[name]
    reference = body(slices=1)
    image = reference + noise(25.0, reference)
    (row,) = score_slices(image, reference, {name: (low, high)})
    one, other = (v[0].clamp(low, high).double().numpy() for v in (reference, image))
    assert row[f"psnr_{name}"] == pytest.approx(peak_signal_noise_ratio(one, other, data_range=high - low), abs=1e-3)
    _, similarity = structural_similarity(
        one, other, data_range=high - low, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    # MONAI averages where the whole window fits.
    assert row[f"ssim_{name}"] == pytest.approx(similarity[5:-5, 5:-5].mean(), abs=1e-4)


def test_an_error_outside_the_window_is_not_seen_in_it():
    reference = body(slices=1)
    image = torch.where(reference < -900, reference + 50, reference)
    (row,) = score_slices(image, reference, {"abdomen": (-150, 250)})
    assert row["ssim_abdomen"] == pytest.approx(1, abs=1e-6)
    assert row["psnr_abdomen"] is None and row["rmse_hu"] > 10


def test_the_bias_looks_at_soft_tissue_away_from_its_edges():
    reference = body(slices=1)
    near_air = torch.nn.functional.max_pool2d((reference == -1000).float()[None], 5, stride=1, padding=2)[0] > 0
    image = torch.where(near_air, reference + 500, reference)
    assert hu_bias(image, reference)[0][0] == pytest.approx(0, abs=1e-4)


def test_too_little_soft_tissue_gives_no_bias():
    air = torch.full((1, 32, 32), -1000.0)
    assert hu_bias(air, air) == [(None, 0)]


def test_the_noise_level_is_linear_in_the_noise_and_looks_at_the_body():
    quiet, loud = body(), body()
    loud = torch.where(loud > -900, 40 + 3 * (loud - 40), loud)
    assert noise_level(loud) == pytest.approx([3 * n for n in noise_level(quiet)], rel=0.05)


def test_the_fidelity_is_1_for_the_reference_and_falls_with_noise():
    reference = body()
    window = WINDOWS["full"]
    quiet, loud = (vif(reference + noise(std, reference), reference, window)[0] for std in (5.0, 20.0))
    assert vif(reference, reference, window) == pytest.approx([1, 1], abs=1e-4)
    assert 0 < loud < quiet < 1


def test_the_fidelity_is_that_of_torchmetrics_in_the_window():
    reference = body(slices=1)
    image = reference + noise(10.0, reference)
    one, other = ((v.clamp(-150, 250) + 150)[None].double() for v in (image, reference))
    expected = float(visual_information_fidelity(one, other, sigma_n_sq=2.0))
    assert vif(image, reference, (-150, 250)) == pytest.approx([expected], rel=1e-3)


def test_slices_score_their_fidelity_in_the_widest_window_alone():
    (row,) = score_slices(body(slices=1), body(slices=1))
    assert [name for name in row if name.startswith("vif")] == ["vif_full"]


def test_small_slices_have_no_fidelity():
    assert vif(body(size=32), body(size=32), (-150, 250)) == [None, None]


def test_a_measured_scan_has_a_noise_level_and_no_error():
    assert set(score_slices(body(), None)[0]) == {"noise_hu"}


def test_stages_are_scored_by_slice_with_mean_and_std():
    reference = body()
    image = reference + torch.tensor([2.0, 4.0])[:, None, None]
    scores = score_stages({"fbp": image[None]}, reference[None])["fbp"]
    assert scores["n"] == 2
    assert [row["rmse_hu"] for row in scores["slices"]] == pytest.approx([2, 4], rel=1e-4)
    assert (scores["mean"]["rmse_hu"], scores["std"]["rmse_hu"]) == pytest.approx((3, 1), rel=1e-4)


def test_scores_are_json_even_for_equal_images():
    assert json.loads(json.dumps(score_stages({"fbp": body()}, body()), allow_nan=False))["fbp"]["n"] == 2


def test_means_pass_over_what_is_missing():
    assert mean_and_std([{"a": 1.0, "b": None}, {"a": 3.0}]) == {
        "mean": {"a": 2.0, "b": None},
        "std": {"a": 1.0, "b": None},
    }


@pytest.mark.parametrize(
    ("image", "windows", "match"),
    [
        (torch.zeros(3, 64, 64), WINDOWS, r"\(3, 64, 64\) and \(2, 64, 64\)"),
        (torch.zeros(64, 64), WINDOWS, r"image must be .*got \(64, 64\)"),
        (body(), {"bone": (300, 300)}, "window 'bone'"),
        (body(), {}, "windows"),
    ],
)
def test_input_that_cannot_be_is_named(image, windows, match):
    with pytest.raises(ValueError, match=match):
        score_slices(image, body(), windows)


def test_slices_below_the_reach_of_ssim_are_named():
    with pytest.raises(ValueError, match="11 x 11"):
        score_slices(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8))
