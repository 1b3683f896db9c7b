"""Residuals of noise, of blur, and HU that drift."""

from __future__ import annotations

import pytest
import torch

from bundle.evaluation import hu_drift, residual_anatomy

from .phantoms import blurred, noise, organs


def anatomy(fbp, restored, structure=None):
    return residual_anatomy(fbp, restored, structure)[0]


def test_a_residual_of_noise_alone_holds_no_edges():
    truth = organs()
    found = anatomy(truth + noise(20.0, truth), truth)
    assert abs(found.share) < 4 * found.chance and abs(found.share) < 0.02
    assert found.n > 500


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.8])
def test_noise_that_the_restored_image_kept_is_no_anatomy(kept):
    truth = organs()
    fbp = truth + noise(20.0, truth)
    found = anatomy(fbp, truth + kept * (fbp - truth))
    assert abs(found.share) < 0.02


def test_blur_takes_edges_away_in_proportion():
    truth = organs()
    fbp = truth + noise(20.0, truth)
    shares = [anatomy(fbp, blurred(truth, share), truth).share for share in (0.0, 0.3, 0.6)]
    assert shares[1] - shares[0] == pytest.approx((shares[2] - shares[0]) / 2, rel=0.05)
    found = anatomy(fbp, blurred(truth, 0.6))
    assert found.share > max(0.05, 5 * found.chance) and found.correlation > 0.1


def test_sharpened_edges_have_a_negative_share():
    truth = organs()
    assert anatomy(truth + noise(10.0, truth), 2 * truth - blurred(truth, 1.0)).share < -0.05


def test_without_edges_there_is_no_share():
    plain = torch.full((1, 64, 64), 40.0) + noise(5.0, torch.zeros(1, 64, 64))
    found = anatomy(plain + noise(20.0, plain), plain)
    assert (found.share, found.chance, found.correlation) == (None, None, None) and found.n < 100


def test_a_shift_of_the_restored_image_is_a_drift_of_its_tissue():
    truth = organs()
    fbp = truth + noise(20.0, truth)
    soft = hu_drift(fbp, torch.where(truth > -500, truth + 6, truth))[0]
    assert soft["soft_tissue"].shift == pytest.approx(6, abs=4 * soft["soft_tissue"].error)
    assert soft["air"].shift == pytest.approx(0, abs=4 * soft["air"].error)


def test_the_error_of_a_shift_is_that_of_white_noise():
    truth = organs()
    found = hu_drift(truth + noise(20.0, truth), truth)[0]["soft_tissue"]
    assert found.error == pytest.approx(20 / found.n**0.5, rel=0.5)


def test_lost_contrast_is_seen_in_the_histogram_and_not_in_the_shift():
    rows = torch.arange(128).view(1, -1, 1)
    stripes = torch.where((rows // 32) % 2 == 0, 20.0, 60.0).expand(1, 128, 128)
    found = hu_drift(stripes, torch.full_like(stripes, 40.0))[0]["soft_tissue"]
    assert found.shift == pytest.approx(0, abs=2) and found.histogram > 10


def test_the_histogram_moves_at_least_by_the_shift():
    truth = organs()
    for one in hu_drift(truth, truth - 12)[0].values():
        if one.shift is not None:
            assert one.shift == pytest.approx(-12, abs=1e-3) and one.histogram == pytest.approx(12, abs=1e-3)


def test_a_tissue_that_is_not_there_does_not_drift():
    truth = organs()
    lung = hu_drift(truth, truth)[0]["lung"]
    assert (lung.shift, lung.error, lung.histogram) == (None, None, None)


@pytest.mark.parametrize("function", [hu_drift, residual_anatomy])
def test_images_that_differ_in_shape_are_named(function):
    with pytest.raises(ValueError, match=r"\(1, 32, 32\) and \(1, 64, 64\)"):
        function(torch.zeros(1, 32, 32), torch.zeros(1, 64, 64))
