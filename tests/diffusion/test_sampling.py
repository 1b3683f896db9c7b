"""Laws of the five-step schedule."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from bundle.diffusion import PosteriorMeanScheduler


def test_the_schedule_is_the_one_of_the_method():
    scheduler = PosteriorMeanScheduler()
    torch.testing.assert_close(
        scheduler.betas, torch.tensor([0.1000, 0.2361, 0.4298, 0.6811, 0.9900]), atol=6e-5, rtol=0
    )
    torch.testing.assert_close(
        scheduler.alphas_cumprod, torch.tensor([0.9000, 0.6875, 0.3920, 0.1250, 0.0013]), atol=6e-5, rtol=0
    )
    assert scheduler.timesteps.tolist() == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_one_step_is_the_mean_of_what_ddpm_draws(prediction_type):
    """MONAI's own step, averaged over its noise."""
    torch.manual_seed(0)
    ours = PosteriorMeanScheduler(prediction_type=prediction_type)
    theirs = DDPMScheduler(
        5, "scaled_linear_beta", clip_sample=False, prediction_type=prediction_type, beta_start=0.1, beta_end=0.99
    )
    z, output = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2)
    mean, original = ours.step(output, 2, z)
    drawn, their_original = theirs.step(output.expand(20000, 1, 2, 2), 2, z.expand(20000, 1, 2, 2))
    torch.testing.assert_close(original, their_original[:1])
    torch.testing.assert_close(mean, drawn.mean(0, keepdim=True), atol=0.02, rtol=0)


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_a_perfect_denoiser_leads_back_to_the_clean_latent(prediction_type):
    torch.manual_seed(0)
    scheduler = PosteriorMeanScheduler(prediction_type=prediction_type)
    clean, noise = torch.randn(2, 3, 4, 4).clamp(-4, 4), torch.randn(2, 3, 4, 4)
    z = scheduler.add_noise(clean, noise, torch.tensor([4, 4]))
    for t in scheduler.timesteps:
        alpha_bar = scheduler.alphas_cumprod[t]
        still_there = (z - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
        z, original = scheduler.step(scheduler.prediction_target(clean, still_there), t, z)
        torch.testing.assert_close(original, clean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(z, clean, atol=1e-4, rtol=1e-4)


def test_a_step_draws_no_random_number():
    scheduler, z = PosteriorMeanScheduler(), torch.randn(1, 2, 4, 4)
    state = torch.get_rng_state()
    first, second = scheduler.step(z, 3, z)[0], scheduler.step(z, 3, z)[0]
    assert torch.equal(first, second) and torch.equal(state, torch.get_rng_state())


def test_noise_predictions_are_clamped_and_clean_ones_are_not():
    z = torch.full((1, 1, 2, 2), 3.0)
    assert PosteriorMeanScheduler(prediction_type="epsilon").step(-z, 4, z)[1].max() == 5
    assert PosteriorMeanScheduler().step(10 * z, 4, z)[1].max() == 30


def test_the_schedule_is_no_part_of_the_weights_and_moves_with_the_module():
    scheduler = PosteriorMeanScheduler()
    assert not scheduler.state_dict()
    assert scheduler.to("meta").betas.device.type == "meta"


@pytest.mark.parametrize(
    "arguments",
    [{"num_train_timesteps": 0}, {"beta_start": 0.0}, {"beta_end": 1.0}, {"prediction_type": "v"}, {"latent_limit": 0}],
)
def test_wrong_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        PosteriorMeanScheduler(**arguments)
