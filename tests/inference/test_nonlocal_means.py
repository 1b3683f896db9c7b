"""Non-local means against their definition."""

from __future__ import annotations

import math

import pytest
import torch

from bundle.inference import guided_nonlocal_means

STRENGTHS = (0.5, 2.0)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(slices, guides, strength, patch_size, radius):
    """Pixel by pixel; slice 0 is the one that is asked for."""
    height, width = slices[0].shape
    half = patch_size // 2
    result = torch.zeros_like(slices[0])
    for y in range(height):
        for x in range(width):
            sum_ = total = 0.0
            for image, guide in zip(slices, guides):
                for v in range(max(0, y - radius), min(height, y + radius + 1)):
                    for u in range(max(0, x - radius), min(width, x + radius + 1)):
                        squares = []
                        for p in range(-half, half + 1):
                            for q in range(-half, half + 1):
                                inside = 0 <= y + p < height and 0 <= v + p < height
                                if inside and 0 <= x + q < width and 0 <= u + q < width:
                                    squares.append(float(guides[0][y + p, x + q] - guide[v + p, u + q]) ** 2)
                        weight = math.exp(-sum(squares) / len(squares) / strength**2)
                        sum_, total = sum_ + weight * float(image[v, u]), total + weight
            result[y, x] = sum_ / total
    return result


@pytest.mark.parametrize(
    ("patch_size", "radius", "neighbours"), [(1, 1, 0), (3, 2, 0), (5, 3, 0), (3, 2, 2), (3, 9, 1)]
)
def test_means_are_those_of_the_definition(patch_size, radius, neighbours):
    images, guides = random(1 + neighbours, 7, 9), random(1 + neighbours, 7, 9, seed=1)
    around = [(images[k][None, None], guides[k][None, None]) for k in range(1, 1 + neighbours)]
    found = guided_nonlocal_means(
        images[0][None, None], guides[0][None, None], STRENGTHS, patch_size, radius, around=around
    )
    for strength, mean in zip(STRENGTHS, found):
        torch.testing.assert_close(mean[0, 0], by_definition(images, guides, strength, patch_size, radius))


def test_a_flat_guide_makes_the_plain_mean_whose_noise_is_known():
    noise = random(1, 1, 96, 96)
    (mean,) = guided_nonlocal_means(noise, torch.zeros_like(noise), [1.0], radius=3)
    inside = mean[..., 3:-3, 3:-3]
    torch.testing.assert_close(inside, torch.nn.functional.avg_pool2d(noise, 7, 1))
    assert inside.std().item() == pytest.approx(1 / 7, rel=0.1)


def test_pixels_that_the_guide_tells_apart_are_not_mixed():
    image = random(1, 1, 16, 16)
    guide = torch.zeros_like(image)
    guide[..., 8:] = 1e3
    (mean,) = guided_nonlocal_means(image, guide, [1.0], patch_size=1, radius=20)
    torch.testing.assert_close(mean[..., :8], image[..., :8].mean().expand(1, 1, 16, 8))
    torch.testing.assert_close(mean[..., 8:], image[..., 8:].mean().expand(1, 1, 16, 8))


def test_means_are_linear_in_the_image_and_keep_its_inputs():
    first, second, guide = random(2, 1, 12, 12), random(2, 1, 12, 12, seed=1), random(2, 1, 12, 12, seed=2)
    before = first.clone(), guide.clone()

    def mean(image):
        return guided_nonlocal_means(image, guide, [1.0])[0]

    torch.testing.assert_close(mean(2 * first - second + 5), 2 * mean(first) - mean(second) + 5)
    assert torch.equal(first, before[0]) and torch.equal(guide, before[1])


def test_every_image_of_a_batch_is_treated_alone():
    images, guides = random(3, 1, 12, 12), random(3, 1, 12, 12, seed=1)
    (batch,) = guided_nonlocal_means(images, guides, [1.0])
    (alone,) = guided_nonlocal_means(images[1:2], guides[1:2], [1.0])
    torch.testing.assert_close(batch[1:2], alone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guide": torch.zeros(1, 1, 8, 9)}, "image and guide must both be"),
        ({"image": torch.zeros(1, 2, 8, 8), "guide": torch.zeros(1, 2, 8, 8)}, "image and guide must both be"),
        ({"around": [(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 7, 8))]}, "guide of around"),
        ({"strengths": [1.0, 0.0]}, "strengths must be positive"),
        ({"patch_size": 4}, "patch_size must be odd"),
        ({"radius": 0}, "radius must be 1"),
    ],
)
def test_what_cannot_be_is_named(change, message):
    arguments = {"image": torch.zeros(1, 1, 8, 8), "guide": torch.zeros(1, 1, 8, 8), "strengths": [1.0], **change}
    with pytest.raises(ValueError, match=message):
        guided_nonlocal_means(**arguments)
