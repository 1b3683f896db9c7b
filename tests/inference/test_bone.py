"""Bone comes back as the raw data have it, without their noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bundle.inference.bone import bone_contours, bone_level
from bundle.inference.smoothing import gauss, slope

NOISE = 30.0


def disc(radius: float = 20, height: float = 600.0) -> Tensor:
    """A disc of bone in soft tissue."""
    x, y = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    return torch.where((x - 64) ** 2 + (y - 64) ** 2 < radius**2, height, 0.0).view(1, 1, 128, 128)


def ring(inner: float, outer: float) -> Tensor:
    return (disc(outer) - disc(inner)) > 0


def noise(seed: int, scale: float = NOISE) -> Tensor:
    return scale * torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(seed))


# Along contours ------------------------------------------------------------------------------------------------------


def test_what_is_missing_along_a_contour_comes_back_and_the_noise_does_not():
    """A blurred edge lacks the same all along it."""
    sharp, blurred = gauss(disc(), 0.7), gauss(disc(), 1.6)
    missing, at_edge = sharp - blurred, ring(17, 23)
    found = [bone_contours(missing + noise(seed), blurred, noise(seed + 50)) for seed in range(6)]
    left = torch.cat(found) - missing
    before = missing[at_edge].square().mean().sqrt()
    # Most of the blur goes, in the mean over noise, and each scan has a fraction of the noise.
    assert left.mean(0, keepdim=True)[at_edge].square().mean().sqrt() < 0.25 * before
    assert (left - left.mean(0))[:, :, at_edge[0, 0]].std() < 0.3 * NOISE


def test_the_mean_is_the_one_that_is_written_down():
    """By brute force, at single pixels: without noise all of the mean is given back, but for how near bone is."""
    generator = torch.Generator().manual_seed(0)
    refined = gauss(disc(12), 1.0) + 10 * torch.randn(1, 1, 128, 128, generator=generator)
    missing = torch.randn(1, 1, 128, 128, generator=generator)
    found = bone_contours(missing, refined, torch.zeros_like(missing))
    guide, slopes = gauss(refined, 1.0)[0, 0].double(), slope(refined)[0, 0].double()
    for row, column in [(64, 64), (64, 76), (55, 72), (75, 60)]:
        height = max(20, 0.35 * float(slopes[row, column]))
        total = weights = 0.0
        for i in range(row - 16, row + 17):
            for j in range(column - 16, column + 17):
                distance = (i - row) ** 2 + (j - column) ** 2
                if distance <= 16**2:
                    apart = float(guide[i, j] - guide[row, column])
                    weight = math.exp(-(apart**2) / (2 * height**2) - distance / (2 * 8**2))
                    total, weights = total + weight * float(missing[0, 0, i, j]), weights + weight
        assert found[0, 0, row, column].item() == pytest.approx(total / weights, abs=1e-5)


def test_away_from_bone_nothing_is_changed():
    found = bone_contours(noise(0), disc(), noise(1))
    assert (found[disc(28) == 0] == 0).all()
    assert (found[disc(20) > 0] != 0).all()
    # Soft tissue has contours, too.
    assert bone_contours(noise(0), disc(height=100.0), noise(1)).abs().max() < 0.5


def test_little_comes_back_where_the_noise_hides_it():
    """Half where the mean of the noise is as large as what may be missing: more of it at a steep edge."""
    missing, guide = noise(0), gauss(disc(), 1.0)
    whole = bone_contours(missing, guide, torch.zeros_like(missing))
    expected = 20**2 + (0.4 * slope(guide)) ** 2
    at_bone = disc(23) > 0
    assert expected[disc(14) > 0].max() < 401 and expected[at_bone].max() > 1e3
    # A noise without any detail is its own mean.
    for scale in (0.0, 20.0, 60.0, 2000.0):
        found = bone_contours(missing, guide, torch.full_like(missing, scale))
        share = expected / (expected + scale**2)
        torch.testing.assert_close(found[at_bone], (share * whole)[at_bone], atol=0.01, rtol=0.01)


def test_what_is_nearly_bone_gets_half():
    missing, nothing = noise(0), torch.zeros(1, 1, 128, 128)
    middle = disc(10) > 0
    whole, half = (bone_contours(missing, disc(40, height), nothing)[middle] for height in (500.0, 200.0))
    torch.testing.assert_close(half, whole / 2)


def test_every_slice_is_by_itself():
    missing, refined, seen = (torch.cat([part, part.flip(2)]) for part in (noise(0), disc() + noise(1, 5.0), noise(2)))
    missing[1], refined[1] = missing[1] / 2, disc(9)[0]
    together = bone_contours(missing, refined, seen)
    for index in range(2):
        alone = bone_contours(*(image[index : index + 1] for image in (missing, refined, seen)))
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=0)


def test_bone_at_the_rim_of_the_image_goes_on_beyond_it():
    """Cut through the middle, seen from the middle of what is left: as in the whole."""
    missing, refined = noise(0), gauss(disc(), 1.0)
    cut = bone_contours(missing[..., 64:], refined[..., 64:], torch.zeros_like(missing)[..., 64:])
    assert torch.isfinite(cut).all() and (cut[0, 0, 60:70, 0] != 0).all()
    whole = bone_contours(missing, refined, torch.zeros_like(missing))
    torch.testing.assert_close(cut[..., 17:], whole[..., 81:], atol=1e-4, rtol=0)


def test_without_bone_there_is_nothing_to_do():
    assert not bone_contours(noise(0), torch.full((1, 1, 128, 128), -800.0), noise(1)).any()
    assert not bone_level(noise(0), torch.full((1, 1, 128, 128), -800.0)).any()


# Inside --------------------------------------------------------------------------------------------------------------


def test_the_level_inside_is_that_of_the_raw_data():
    """In the mean over noise; all that is not near bone stays as it was."""
    truth, away = disc(), gauss(disc(28), 1.0) == 0
    lost = 0.9 * gauss(truth, 0.7)
    changes = torch.cat([bone_level(truth + noise(seed, 50.0) - lost, lost) for seed in range(8)])
    inside = disc(14) > 0
    assert (lost - truth)[inside].mean() < -59
    assert (changes.mean(0, keepdim=True) + lost - truth)[inside].mean().abs() < 2
    assert not changes[:, away[0]].any()


def test_small_bone_gets_its_level_whole_and_a_few_pixels_none():
    """The mean of a few pixels would be noise."""
    changes = {radius: bone_level(60 * (disc(radius) > 0), disc(radius) * 0.9) for radius in (7, 4)}
    # The rim of two pixels is left out, and more where smoothing before the threshold makes the disc smaller.
    assert changes[7][disc(4.3) > 0].mean().item() == pytest.approx(60, abs=3)
    assert changes[4].abs().max() < 6
