"""Laws of the pixel-wise self-correcting fusion."""

from __future__ import annotations

import pytest
import torch

from bundle.inference import FUSION_MODES, SelfCorrectingFusion


def noisy(std: float, seed: int = 0, size: int = 48, batch: int = 1) -> torch.Tensor:
    """Water with white noise, HU."""
    return std * torch.randn((batch, 1, size, size), generator=torch.Generator().manual_seed(seed))


def calibrated(noise: float = 20.0, gradient: float = 1.0, **kwargs) -> SelfCorrectingFusion:
    fusion = SelfCorrectingFusion(**kwargs)
    fusion.noise_25.fill_(noise)
    fusion.gradient_25.fill_(gradient)
    return fusion


def checkerboard(amplitude: float, size: int = 48) -> torch.Tensor:
    """Its 7x7 mean is +-amplitude/49 and its local std is nearly the same everywhere: known noise."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return amplitude * (1.0 - 2.0 * ((rows + columns) % 2))[None, None]


@pytest.mark.parametrize("std", [5.0, 20.0, 60.0])
def test_local_noise_follows_the_noise_linearly(std):
    reference = SelfCorrectingFusion().local_noise(noisy(1.0)).median()
    assert SelfCorrectingFusion().local_noise(noisy(std)).median() == pytest.approx(std * reference, rel=1e-4)


def test_local_noise_of_a_checkerboard_is_its_amplitude():
    inner = SelfCorrectingFusion().local_noise(checkerboard(30.0))[..., 8:-8, 8:-8]
    # Deviation +-30 of a 7x7 window with 25 and 24 of each sign, less the window's own mean of +-30/49.
    torch.testing.assert_close(inner, torch.full_like(inner, 30.0), rtol=0.025, atol=0)


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, 0.8), (1 / 2**0.5, 2 / 3), (1.0, 0.5), (2.5**0.5, 1 / 3.5)])
def test_flat_areas_follow_the_noise_confidence(ratio, expected):
    """C_n = 1 / (1 + (N / N_25)^2): .5 at the reference dose, 2/3 at twice, 2/7 at 2/5 of it."""
    image = checkerboard(20.0)
    noise = SelfCorrectingFusion().local_noise(image)[0, 0, 24, 24].item()
    weight = calibrated(noise / ratio).weight(image, torch.zeros_like(image))
    assert weight[0, 0, 24, 24].item() == pytest.approx(expected, rel=2e-3)


def test_edges_of_the_prior_raise_the_weight_of_the_low_dose_image():
    prior = torch.zeros(1, 1, 48, 48)
    prior[..., 24:] = 200.0
    low_dose = noisy(20.0)
    flat = calibrated().weight(low_dose, torch.zeros_like(prior))
    edged = calibrated().weight(low_dose, prior)
    assert (edged >= flat).all()
    confidence = flat[..., 24]
    torch.testing.assert_close(edged[..., 24], confidence + (1 - confidence) * confidence, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(edged[..., :16], flat[..., :16])


def test_gradients_within_twice_the_noise_of_the_prior_are_no_edges():
    ramp = torch.arange(48.0).expand(1, 1, 48, 48)  # 1 HU a pixel
    low_dose = noisy(20.0)
    flat = calibrated(gradient=0.5).weight(low_dose, torch.zeros_like(ramp))
    torch.testing.assert_close(calibrated(gradient=0.51).weight(low_dose, ramp), flat)


@pytest.mark.parametrize("mode", FUSION_MODES)
def test_equal_images_fuse_to_themselves(mode):
    image = noisy(50.0)
    torch.testing.assert_close(calibrated(mode=mode)(image, image), image)


@pytest.mark.parametrize("mode", FUSION_MODES)
@pytest.mark.parametrize("std", [0.0, 1.0, 500.0])
def test_the_weight_stays_within_0_and_1(mode, std):
    weight = calibrated(mode=mode).weight(noisy(std), noisy(100.0, seed=1))
    assert torch.isfinite(weight).all()
    assert weight.min() >= 0 and weight.max() <= 1


@pytest.mark.parametrize("mode", FUSION_MODES)
def test_every_image_of_a_batch_is_treated_alone(mode):
    low_dose = torch.cat([noisy(5.0), noisy(80.0, seed=1)])
    prior = torch.cat([noisy(2.0, seed=2), noisy(30.0, seed=3)])
    fusion = calibrated(mode=mode)
    alone = torch.cat([fusion(low_dose[i : i + 1], prior[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(fusion(low_dose, prior), alone, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("mode", ["adaptive", "noise_match"])
def test_more_noise_moves_the_mixture_to_the_prior(mode):
    fusion = calibrated(mode=mode)
    weights = [fusion.weight(noisy(std), torch.zeros(1, 1, 48, 48)).mean().item() for std in (10.0, 20.0, 40.0, 80.0)]
    assert weights == sorted(weights, reverse=True) and weights[0] > weights[-1] + 0.3


def test_the_weight_moves_with_the_image():
    low_dose, prior = noisy(30.0, size=64), noisy(30.0, seed=1, size=64)
    fusion = calibrated()
    shifted = [torch.roll(image, (5, 3), (-2, -1)) for image in (low_dose, prior)]
    moved = torch.roll(fusion.weight(low_dose, prior), (5, 3), (-2, -1))
    torch.testing.assert_close(
        fusion.weight(*shifted)[..., 20:-20, 20:-20], moved[..., 20:-20, 20:-20], atol=0.02, rtol=0
    )


def test_fixed_weighs_every_pixel_alike():
    fused = SelfCorrectingFusion(mode="fixed", fixed_lambda=0.25)(
        torch.full((1, 1, 8, 8), 8.0), torch.zeros(1, 1, 8, 8)
    )
    assert (fused == 2.0).all()


def test_noise_match_caps_at_the_reference_dose():
    fusion, prior = calibrated(mode="noise_match"), torch.zeros(1, 1, 48, 48)
    assert (fusion.weight(checkerboard(10.0), prior) == 1).all()
    assert fusion.weight(checkerboard(80.0), prior)[0, 0, 24, 24].item() == pytest.approx(0.25, rel=0.03)


@pytest.mark.parametrize(("std", "low_dose_favoured"), [(5.0, True), (80.0, False)])
def test_updown_favours_one_image_in_every_pixel(std, low_dose_favoured):
    weight = calibrated(mode="updown").weight(noisy(std), noisy(2.0, seed=1))
    assert ((weight >= 0.5) == low_dose_favoured).all()


def test_calibration_measures_the_body_alone():
    image = noisy(25.0, size=96)
    image[..., :48] = -1000.0  # noise-free air
    fusion = SelfCorrectingFusion().calibrate(image, image)
    inner = fusion.local_noise(image)[..., 60:]
    assert fusion.noise_25.item() == pytest.approx(inner.median().item(), rel=0.05)


def test_calibrated_on_its_own_dose_the_weight_is_a_half():
    images = [noisy(25.0, seed=seed, size=64) for seed in range(3)]
    fusion = SelfCorrectingFusion().calibrate(images, [torch.zeros_like(image) for image in images])
    assert fusion.weight(images[0], torch.zeros_like(images[0])).median().item() == pytest.approx(0.5, abs=0.03)


def test_calibration_travels_with_the_weights():
    source, target = calibrated(noise=12.0, gradient=3.0), SelfCorrectingFusion()
    target.load_state_dict(source.state_dict())
    assert (target.noise_25.item(), target.gradient_25.item()) == (12.0, 3.0)


def test_without_edges_the_noise_beside_an_edge_is_that_of_the_flat_area():
    step = torch.zeros(1, 1, 64, 64)
    step[..., 32:] = 1000.0
    low_dose = step + noisy(20.0, size=64)
    flat = SelfCorrectingFusion().local_noise(noisy(20.0, size=64)).median().item()
    plain = calibrated().local_noise(low_dose, step)[..., 30:34]
    masked = calibrated(exclude_edges=True).local_noise(low_dose, step)[..., 30:34]
    assert plain.min() > 5 * flat
    assert masked.max() < 2.5 * flat


def test_without_edges_the_low_dose_image_wins_at_an_edge():
    step = torch.zeros(1, 1, 64, 64)
    step[..., 32:] = 1000.0
    low_dose = step + noisy(20.0, size=64)
    fusion = SelfCorrectingFusion(exclude_edges=True).calibrate(low_dose, step)
    weight = fusion.weight(low_dose, step)
    assert weight[..., 31:33].median() > weight[..., :20].median() + 0.1


@pytest.mark.parametrize("mode", ["adaptive", "updown", "noise_match"])
def test_an_uncalibrated_fusion_says_so(mode):
    with pytest.raises(ValueError, match="noise_25.*not calibrated"):
        SelfCorrectingFusion(mode=mode)(noisy(1.0), noisy(1.0))


def test_gradients_reach_both_images():
    low_dose, prior = noisy(20.0).requires_grad_(), noisy(5.0, seed=1).requires_grad_()
    calibrated()(low_dose, prior).sum().backward()
    torch.testing.assert_close(low_dose.grad + prior.grad, torch.ones_like(prior))


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [({"mode": "best"}, "mode"), ({"fixed_lambda": 1.5}, "fixed_lambda"), ({"window_size": 6}, "window_size")],
)
def test_arguments_that_cannot_be_are_named(kwargs, match):
    with pytest.raises(ValueError, match=match):
        SelfCorrectingFusion(**kwargs)


def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match=r"\(1, 1, 48, 48\) and \(1, 1, 32, 32\)"):
        calibrated()(noisy(1.0), noisy(1.0, size=32))


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (([], []), "got 0"),
        (([noisy(1.0)], []), "as many priors"),
        ((torch.full((1, 1, 16, 16), -1000.0), torch.zeros(1, 1, 16, 16)), "no body"),
        ((torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)), "a noise in HU, got one of 0"),
    ],
)
def test_calibration_needs_noisy_bodies(images, match):
    with pytest.raises(ValueError, match=match):
        SelfCorrectingFusion().calibrate(*images)


@pytest.mark.parametrize("prior_error", [5.0, 10.0, 20.0])
def test_the_noise_scale_is_learned_without_a_clean_image(prior_error):
    """The best weight of an image with noise N against a prior with an independent error P is 1 / (1 + (N / P)^2)."""
    low_dose, prior = noisy(20.0, seed=1, size=96), noisy(prior_error, seed=2, size=96)
    fusion = SelfCorrectingFusion().calibrate(low_dose, prior, noisy(40.0, seed=3, size=96))
    # One step of the candidates is a factor of 2^(1/4); chance may cost one more.
    assert fusion.noise_scale.item() == pytest.approx(20.0 / prior_error, rel=0.42)


def test_the_noise_scale_shifts_trust_to_the_prior():
    low_dose = noisy(20.0)
    fusion = calibrated()
    paper = fusion.weight(low_dose, torch.zeros_like(low_dose))
    fusion.noise_scale.fill_(3.0)
    assert (fusion.weight(low_dose, torch.zeros_like(low_dose)) < paper).all()


def test_calibration_without_an_independent_image_keeps_the_noise_scale():
    assert SelfCorrectingFusion().calibrate(noisy(20.0), noisy(5.0, seed=1)).noise_scale == 1


def test_the_noise_scale_of_a_detailed_image_follows_that_image():
    """A detailed image with half the prior's error is to be trusted although the low-dose image is noisy."""
    low_dose, prior, independent = noisy(20.0, seed=1), noisy(20.0, seed=2), noisy(40.0, seed=3)
    trusted = SelfCorrectingFusion().calibrate(low_dose, prior, independent, detailed_hu=noisy(1.0, seed=4))
    distrusted = SelfCorrectingFusion().calibrate(low_dose, prior, independent, detailed_hu=noisy(90.0, seed=4))
    assert trusted.noise_scale < 0.6 < 4 < distrusted.noise_scale
    detailed = noisy(1.0, seed=4)
    weight = trusted.weight(low_dose, prior)
    torch.testing.assert_close(trusted(low_dose, prior, detailed), weight * detailed + (1 - weight) * prior)


def test_calibration_needs_as_many_independent_images():
    with pytest.raises(ValueError, match="independent_hu must have 1"):
        SelfCorrectingFusion().calibrate(noisy(20.0), noisy(5.0), [noisy(9.0), noisy(9.0)])
