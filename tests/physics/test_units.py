"""HU and attenuation."""

from __future__ import annotations

import pytest
import torch

from bundle.physics import MU_WATER, attenuation_to_hu, hu_to_attenuation


def test_water_is_zero_and_air_minus_1000():
    assert attenuation_to_hu(torch.tensor([MU_WATER, 0.0])).tolist() == [0, -1000]
    assert hu_to_attenuation(torch.tensor([0.0, -1000.0])).tolist() == pytest.approx([MU_WATER, 0])


@pytest.mark.parametrize("mu_water", [MU_WATER, 0.02])
def test_there_and_back_is_the_same_image(mu_water):
    image_hu = torch.linspace(-1000, 3000, 41)
    assert torch.allclose(attenuation_to_hu(hu_to_attenuation(image_hu, mu_water), mu_water), image_hu, atol=1e-3)


def test_below_air_there_is_no_matter():
    assert hu_to_attenuation(torch.tensor([-1024.0, -3000.0])).tolist() == [0, 0]


@pytest.mark.parametrize("mu_water", [0.0, -0.02, float("nan")])
@pytest.mark.parametrize("convert", [hu_to_attenuation, attenuation_to_hu])
def test_water_must_attenuate(convert, mu_water):
    with pytest.raises(ValueError, match="mu_water must be positive .* got"):
        convert(torch.zeros(1), mu_water)
