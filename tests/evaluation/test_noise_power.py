"""Noise of a known spectrum."""

from __future__ import annotations

import pytest
import torch

from bundle.evaluation import noise_power_spectrum, square_regions

PIXEL = 0.7


def white(count: int, std: float = 10.0, size: int = 32) -> torch.Tensor:
    return std * torch.randn((count, size, size), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("subtract", ["mean", "pairs", "nothing"])
def test_the_integral_of_the_power_is_the_variance(subtract):
    found = noise_power_spectrum(white(40, size=24), PIXEL, subtract)
    integral = float(found.power.sum()) / (24 * PIXEL) ** 2
    assert integral == pytest.approx(found.variance, rel=1e-9)
    assert found.variance == pytest.approx(100, rel=0.03)


def test_white_noise_has_its_variance_a_pixel_at_every_frequency():
    found = noise_power_spectrum(white(200), PIXEL)
    torch.testing.assert_close(found.radial, torch.full_like(found.radial, 100 * PIXEL**2), rtol=0.15, atol=0)
    assert found.frequency[-1] == pytest.approx(0.5 / PIXEL, rel=0.05)
    assert found.mean_frequency == pytest.approx(0.25 / PIXEL, rel=0.05)


@pytest.mark.parametrize("subtract", ["mean", "pairs"])
def test_what_all_realisations_show_is_no_noise(subtract):
    structure = 100 * torch.linspace(-1, 1, 32)[:, None].expand(32, 32)
    plain, on_structure = (noise_power_spectrum(v, PIXEL, subtract) for v in (white(20), white(20) + structure))
    torch.testing.assert_close(plain.radial, on_structure.radial, rtol=1e-3, atol=1e-3)


def test_a_wave_is_a_peak_at_its_frequency():
    phase = torch.rand((50, 1, 1), generator=torch.Generator().manual_seed(1)) * 6.2832
    wave = torch.cos(2 * torch.pi * 6 * torch.arange(32) / 32 + phase).expand(50, 32, 32)
    found = noise_power_spectrum(wave, PIXEL, "nothing")
    assert found.peak == pytest.approx(6 / (32 * PIXEL), rel=0.05)
    assert found.variance == pytest.approx(0.5, rel=1e-4)


def test_smoother_noise_of_the_same_variance_has_a_lower_mean_frequency():
    rough = white(20)
    soft = torch.nn.functional.avg_pool2d(rough[:, None], 3, stride=1, padding=1)[:, 0]
    found = [noise_power_spectrum(v, PIXEL) for v in (rough, soft * rough.std() / soft.std())]
    assert found[1].mean_frequency < 0.6 * found[0].mean_frequency and found[1].peak < found[0].frequency[8]


def test_regions_lie_in_the_mask_and_do_not_overlap():
    image = torch.arange(2 * 40 * 40).reshape(2, 40, 40)
    mask = torch.zeros(2, 40, 40, dtype=torch.bool)
    mask[0, :33, :17] = True
    regions = square_regions(image, 16, mask)
    assert regions.shape == (2, 16, 16) and regions.unique().numel() == regions.numel()
    assert mask.flatten()[regions.flatten()].all()
    assert len(square_regions(image, 16)) == 2 * 4


@pytest.mark.parametrize(
    ("images", "pixel_size", "subtract", "match"),
    [
        (torch.zeros(8, 8), PIXEL, "mean", "images must be regions"),
        (torch.zeros(1, 8, 8), PIXEL, "mean", "1 images are not enough"),
        (torch.zeros(3, 8, 8), PIXEL, "pairs", "not in pairs"),
        (torch.zeros(2, 8, 8), 0.0, "mean", "pixel_size"),
        (torch.zeros(2, 8, 8), PIXEL, "plane", "subtract must be one of"),
        (torch.full((2, 8, 8), torch.nan), PIXEL, "mean", "NaN"),
    ],
)
def test_input_that_cannot_be_is_named(images, pixel_size, subtract, match):
    with pytest.raises(ValueError, match=match):
        noise_power_spectrum(images, pixel_size, subtract)


def test_squares_larger_than_the_image_are_named():
    with pytest.raises(ValueError, match="16 x 16"):
        square_regions(torch.zeros(1, 8, 8), 16)
