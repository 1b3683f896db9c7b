"""Noise goes out of each window by its own spectrum; what the pilot shows stays as it is in the image."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bundle.inference import local_wiener


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wave(down: float, across: float, size: int = 96) -> Tensor:
    """Cosine of so many periods in 16 pixels, ``(1, 1, size, size)``."""
    x = torch.arange(size) * (2 * math.pi / 16)
    return torch.cos(down * x[:, None] + across * x).view(1, 1, size, size)


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (2, 1, 37, 51), (1, 1, 5, 90)])
@pytest.mark.parametrize(("size", "step"), [(32, 8), (16, 8), (8, 1)])
def test_noise_that_counts_for_nothing_leaves_the_image(shape, size, step):
    image = random(*shape)
    (same,) = local_wiener(image, random(*shape, seed=1), random(*shape, seed=2), [0.0], size, step)
    torch.testing.assert_close(same, image, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strength", [0.5, 1.0, 4.0])
def test_a_wave_passes_by_its_power_and_that_of_the_noise_at_its_frequency(strength):
    """g = P / (P + s N), where both are cosines of the same frequency, so of the same ratio in every window."""
    signal = 30 * wave(2, 1, 256)
    (filtered,) = local_wiener(signal, signal, signal / 3, [strength])
    gain = 1 / (1 + strength / 9)
    # Far from the rim, where a window or its neighbours see no wave.
    inside = (..., slice(96, -96), slice(96, -96))
    torch.testing.assert_close(filtered[inside], gain * signal[inside], rtol=0.01, atol=0.05)


def test_noise_of_one_direction_goes_and_a_signal_of_the_other_stays():
    signal, streaks = 20 * wave(3, 0), 20 * wave(0, 3)
    (filtered,) = local_wiener(signal + streaks, signal, streaks, [1.0])
    inside = (..., slice(32, -32), slice(32, -32))
    assert (filtered - signal)[inside].abs().max() < 0.2


def test_a_place_has_its_own_noise():
    """Noise in the left half alone: what looks like it passes on the right."""
    pattern = 20 * wave(3, 2, 256)
    noise = torch.where(torch.arange(256) < 128, pattern, torch.zeros(()))
    (filtered,) = local_wiener(pattern, torch.zeros_like(pattern), noise, [1.0], width=0.5)
    assert filtered[..., :64].abs().max() < 0.01
    # Gain is one only as far as the pilot's floor is above no noise at all.
    torch.testing.assert_close(filtered[..., 208:], pattern[..., 208:], rtol=0.01, atol=0.05)


def test_the_mean_of_a_window_is_that_of_the_image():
    """The pilot may be wrong by a constant; its offset from 0 HU is far above the noise."""
    noise = 30 * random(1, 1, 96, 96)
    (filtered,) = local_wiener(noise + 100, torch.full_like(noise, 60.0), noise, [1.0])
    assert filtered.mean().item() == pytest.approx(100, abs=1.5)
    assert filtered.std() < 0.3 * noise.std()


def test_the_filter_is_linear_in_the_image_and_keeps_its_inputs():
    first, second, pilot, noise = (random(2, 1, 40, 40, seed=seed) for seed in range(4))
    before = [image.clone() for image in (first, pilot, noise)]

    def filtered(image: Tensor) -> Tensor:
        return local_wiener(image, pilot, noise, [1.0])[0]

    torch.testing.assert_close(
        filtered(2 * first - second), 2 * filtered(first) - filtered(second), rtol=1e-4, atol=1e-4
    )
    assert all(torch.equal(*pair) for pair in zip((first, pilot, noise), before))


def test_every_image_of_a_batch_is_filtered_alone():
    image, pilot, noise = (random(3, 1, 40, 40, seed=seed) for seed in range(3))
    (batch,) = local_wiener(image, pilot, noise, [1.0])
    (alone,) = local_wiener(image[1:2], pilot[1:2], noise[1:2], [1.0])
    torch.testing.assert_close(batch[1:2], alone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pilot": torch.zeros(1, 1, 8, 9)}, "image, pilot and noise must all be"),
        ({"noise": torch.zeros(1, 8, 8)}, "image, pilot and noise must all be"),
        ({"strengths": [1.0, -1.0]}, "strengths must be 0 or more"),
        ({"strengths": [float("nan")]}, "strengths must be 0 or more"),
        ({"size": 12}, "size must be a multiple of twice step"),
        ({"step": 0}, "size must be a multiple of twice step"),
        ({"width": 0.0}, "width must be positive"),
    ],
)
def test_what_cannot_be_is_named(change, message):
    zero = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match=message):
        local_wiener(**{"image": zero, "pilot": zero, "noise": zero, "strengths": [1.0], **change})
