"""The observer on tasks whose answer is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm

from bundle.evaluation import auc_difference, dense_dog_channels, hotelling_auc, laguerre_gauss_channels

SIZE, WIDTH = 17, 2.0


def blob(index: float) -> torch.Tensor:
    """A Gaussian whose detectability index in white noise of std 1 is `index`."""
    axis = torch.arange(SIZE) - (SIZE - 1) / 2
    shape = torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * WIDTH**2))
    return index * shape / shape.norm()


def matched() -> dict:
    """Channels of which the first is the blob itself."""
    return {
        "channels": laguerre_gauss_channels(SIZE, SIZE, math.sqrt(2 * math.pi) * WIDTH, 4),
        "channel_name": "Laguerre-Gauss",
    }


def regions(count: int, index: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((2, count, SIZE, SIZE), generator=generator)
    return noise[0] + blob(index), noise[1]


@pytest.mark.parametrize("index", [0.7, 1.5, 2.5])
def test_a_known_signal_in_white_noise_has_the_analytic_area(index):
    found = hotelling_auc(*regions(2000, index), **matched())
    truth = norm.cdf(index / math.sqrt(2))
    assert found.low < truth < found.high and found.high - found.low < 0.05
    assert found.auc == pytest.approx(truth, abs=0.015)
    assert found.snr == pytest.approx(index, abs=0.1)
    assert found.holdout_low - 0.01 < truth < found.holdout_high + 0.01


def test_the_interval_holds_the_truth_as_often_as_it_says():
    truth = norm.cdf(1.2 / math.sqrt(2))
    found = [hotelling_auc(*regions(40, 1.2, seed), **matched(), confidence=0.8) for seed in range(60)]
    inside = sum(one.low <= truth <= one.high for one in found)
    # Binomial, 60 at .8: mean 48, standard deviation 3.1.
    assert 38 <= inside <= 57
    assert sum(one.auc > truth for one in found) == pytest.approx(30, abs=12)


def test_without_a_signal_the_area_is_one_half():
    found = hotelling_auc(*regions(400, 0.0, seed=1), **matched())
    assert found.low == 0.5 and found.high < 0.6
    assert found.holdout_low < 0.5 < found.holdout_high


def test_dense_channels_see_nearly_what_the_ideal_observer_sees():
    found = hotelling_auc(*regions(1500, 1.5))
    assert found.auc == pytest.approx(norm.cdf(1.5 / math.sqrt(2)), abs=0.02)
    assert found.channels.startswith("10 of dense")


def test_the_observer_knows_the_noise_not_only_the_signal():
    # Common offset of each region: a fixed template would be lost in it, Hotelling's takes it out.
    signal, background = regions(600, 2.0)
    offsets = 5 * torch.randn((2, 600, 1, 1), generator=torch.Generator().manual_seed(1))
    found = hotelling_auc(signal + offsets[0], background + offsets[1])
    fixed = [(v * blob(1.0)).sum((1, 2)) for v in (signal + offsets[0], background + offsets[1])]
    simple = float((fixed[0][:, None] > fixed[1]).float().mean())
    assert found.auc > simple + 0.15


def test_scale_and_offset_of_the_image_change_nothing():
    signal, background = regions(100, 1.0)
    plain, changed = (hotelling_auc(a, b, **matched()) for a, b in ((signal, background), (3 * signal, 3 * background)))
    assert changed.auc == pytest.approx(plain.auc, abs=1e-6)


def test_two_methods_on_the_same_noise_are_compared_by_pairs():
    signal, background = regions(300, 1.5)
    first = hotelling_auc(signal, background, **matched())
    same = auc_difference(first, first)
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    worse = signal - 0.5 * blob(1.5)
    found = auc_difference(first, hotelling_auc(worse, background, **matched()))
    assert 0 < found.low < found.difference < found.high
    # The noise that both share cancels.
    assert found.high - found.low < first.holdout_high - first.holdout_low


def test_channels_have_norm_one_and_lie_in_the_middle():
    for channels in (dense_dog_channels(16, 17), laguerre_gauss_channels(16, 17, 6.0)):
        torch.testing.assert_close(channels.square().sum((1, 2)), torch.ones(len(channels), dtype=torch.float64))
        torch.testing.assert_close(channels, channels.flip(1, 2))


def test_laguerre_gauss_channels_are_orthogonal():
    channels = laguerre_gauss_channels(64, 64, 12.0).flatten(1)
    torch.testing.assert_close(channels @ channels.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"background": torch.zeros(40, 9, 9)}, "one size"),
        ({"background": torch.zeros(8, SIZE, SIZE)}, "too few for 10 channels"),
        ({"confidence": 1.0}, "confidence"),
        ({"channels": torch.ones(2, 9, 9), "channel_name": "mine"}, "channels must be"),
        ({"channels": torch.ones(2, SIZE, SIZE)}, "channel_name"),
        ({"signal": torch.full((40, SIZE, SIZE), torch.nan)}, "NaN"),
    ],
)
def test_input_that_cannot_be_is_named(changes, match):
    signal, background = regions(40, 1.0)
    with pytest.raises(ValueError, match=match):
        hotelling_auc(**({"signal": signal, "background": background} | changes))


def test_methods_on_other_regions_are_not_compared():
    with pytest.raises(ValueError, match="40 and 60"):
        auc_difference(*(hotelling_auc(*regions(count, 1.0), **matched()) for count in (40, 60)))
