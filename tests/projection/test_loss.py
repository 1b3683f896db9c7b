"""Eq. 9, its relatives, and what its weights may know."""

from __future__ import annotations

import math

import pytest
import torch

from bundle.physics import line_integral_variance
from bundle.projection import SimilarityLoss
from bundle.projection.loss import ramp_power

SHAPE = (2, 1, 6, 8)


def draw(seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A prediction and its target, random line integrals up to 4."""
    generator = torch.Generator().manual_seed(seed)
    prediction, *rest = 4 * torch.rand(5, *SHAPE, generator=generator)
    return prediction, dict(zip(("input", "target", "denoised_input", "denoised_target"), rest, strict=True))


def weights(loss: SimilarityLoss, prediction: torch.Tensor, target: dict) -> torch.Tensor:
    """Weight of every squared residual, from the gradient: d(w (f - t)^2) / df = 2 w (f - t)."""
    prediction = prediction.clone().requires_grad_()
    loss(prediction, target).backward()
    return prediction.grad / (2 * (prediction.detach() - target["target"])) * prediction.numel()


def test_without_a_mask_it_is_neighbor2neighbor():
    prediction, t = draw()
    residual = prediction - t["target"]
    regulariser = residual - (t["denoised_input"] - t["denoised_target"])
    expected = (residual**2).mean() + 0.7 * (regulariser**2).mean()
    loss = SimilarityLoss(alpha=0.7, tau=None, photons=None, standardise=False)
    torch.testing.assert_close(loss(prediction, t), expected)


def test_it_is_equation_9_written_out():
    prediction, t = draw()
    total = torch.zeros(())
    for f, a, b, c, d in zip(prediction.flatten(), *(t[k].flatten() for k in t), strict=True):
        e1, e2 = min(abs(a - b) / 2.5, 1), min(abs(c - d) / 2.5, 1)
        total += ((f - b) * (1 - e1)) ** 2 + 0.7 * ((f - b) * (1 - e1) - (c - d) * (1 - e2)) ** 2
    loss = SimilarityLoss(alpha=0.7, tau=2.5, photons=None, standardise=False)
    torch.testing.assert_close(loss(prediction, t), total / prediction.numel())


def test_a_generous_tau_is_no_mask():
    prediction, t = draw()
    masked, bare = (SimilarityLoss(tau=tau, photons=None, standardise=False) for tau in (1e7, None))
    torch.testing.assert_close(masked(prediction, t), bare(prediction, t))


def test_pairs_further_apart_than_tau_are_left_out():
    prediction, t = draw()
    t["target"] = t["input"] + 1.0
    t["denoised_target"] = t["denoised_input"] - 1.0
    assert SimilarityLoss(tau=0.99, photons=None, standardise=False)(prediction, t) == 0


def test_tau_counts_standard_deviations_of_the_difference():
    """Two samples tau sigmas apart are left out, and those a little closer are not; sigma by first-order statistics."""
    prediction, t = draw()
    sigma = line_integral_variance(prediction, 1e5, dose=0.5, electronic_variance=10).sqrt()
    loss = SimilarityLoss(alpha=0, tau=20, photons=1e5, dose=0.5, electronic_variance=10, standardise=False)
    values = []
    for factor in (1.001, 0.9):
        t["target"] = t["input"] + factor * 20 * math.sqrt(2) * sigma
        values.append(loss(prediction, t))
    assert values[0] == 0 < values[1]


def test_standardised_residuals_count_in_units_of_the_noise():
    prediction, t = draw()
    t["target"] = prediction - 3 * line_integral_variance(prediction, 1e5, dose=0.25, electronic_variance=10).sqrt()
    loss = SimilarityLoss(alpha=0, tau=None, photons=1e5, dose=0.25, electronic_variance=10)
    torch.testing.assert_close(loss(prediction, t), torch.tensor(9.0))


def test_noise_weights_know_nothing_of_the_target():
    prediction, t = draw()
    other = {**t, "target": t["target"] + torch.randn(SHAPE)}
    loss = SimilarityLoss(alpha=0, tau=None)
    torch.testing.assert_close(weights(loss, prediction, t), weights(loss, prediction, other), rtol=1e-3, atol=0)


def test_the_default_mask_hardly_knows_the_noise_of_the_target():
    """Between equal neighbours, the noise moves the weight of a pair by a tenth at most on average."""
    sinogram = torch.full((1, 1, 100, 100), 3.0)
    sigma = line_integral_variance(sinogram, 1.5e5, dose=0.25, electronic_variance=10).sqrt()
    t = {k: sinogram + sigma * torch.randn(sinogram.shape) for k in ("input", "target")}
    t |= {"denoised_input": sinogram, "denoised_target": sinogram}
    ratio = weights(SimilarityLoss(alpha=0), sinogram, t) / weights(SimilarityLoss(alpha=0, tau=None), sinogram, t)
    assert 0.9 < ratio.mean() < 1


def test_the_gradient_flows_through_the_prediction_only():
    """The noise level is a constant to autograd: the gradient is that of a plain weighted square."""
    prediction, t = draw()
    loss = SimilarityLoss(alpha=0, tau=None)
    expected = loss.noise_level(prediction) ** -2
    torch.testing.assert_close(weights(loss, prediction, t), expected, rtol=1e-4, atol=0)


def test_starved_rays_stay_finite():
    prediction, t = draw()
    assert torch.isfinite(SimilarityLoss()(prediction + 200, t))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"alpha": -1}, "alpha"),
        ({"tau": 0}, "tau"),
        ({"dose": 0}, "dose"),
        ({"photons": -5}, "photons"),
        ({"electronic_variance": -1}, "electronic_variance"),
        ({"photons": None}, "standardise needs a noise model"),
    ],
)
def test_impossible_settings_are_named(settings, name):
    with pytest.raises(ValueError, match=name):
        SimilarityLoss(**settings)


def test_a_missing_or_misshapen_target_is_named():
    prediction, t = draw()
    with pytest.raises(ValueError, match="'target'"):
        SimilarityLoss()(prediction, {**t, "target": t["target"][:1]})
    del t["denoised_input"]
    with pytest.raises(ValueError, match="'denoised_input'"):
        SimilarityLoss()(prediction, t)


def test_behind_the_ramp_a_wave_counts_by_its_frequency():
    cells = 512
    cell = torch.arange(cells, dtype=torch.float64)
    # Whole waves under a window that ends at zero: nothing is cut off.
    window = torch.hann_window(cells, periodic=False, dtype=torch.float64)
    for frequency in (0.1, 0.2, 0.4):
        wave = (window * torch.cos(2 * math.pi * frequency * cell)).expand(1, 1, 3, -1)
        # The ramp, 1 on average up to the Nyquist frequency of 1/2, is 4 f.
        assert ramp_power(wave).item() == pytest.approx(4 * frequency * wave.square().mean().item(), rel=2e-3)


def test_behind_the_ramp_white_noise_keeps_its_power():
    noise = torch.randn(1, 1, 400, 128, generator=torch.Generator().manual_seed(0))
    assert ramp_power(noise).item() == pytest.approx(1, rel=0.02)


def test_the_ramp_term_is_added_with_its_weight():
    prediction, t = draw()
    plain, weighed = (SimilarityLoss(alpha=0, tau=None, ramp_weight=weight) for weight in (0.0, 0.7))
    sigma = plain.noise_level(prediction)
    expected = plain(prediction, t) + 0.7 * ramp_power((prediction - t["target"]) / sigma)
    torch.testing.assert_close(weighed(prediction, t), expected)
