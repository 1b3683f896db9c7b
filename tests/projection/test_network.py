"""Promises of the sinogram denoiser."""

from __future__ import annotations

import pytest
import torch

from bundle.projection import SinogramDenoiser
from bundle.projection.network import TYPICAL_PHOTONS


def awake(**settings: int) -> SinogramDenoiser:
    """A small denoiser whose last layer is not zero."""
    torch.manual_seed(0)
    denoiser = SinogramDenoiser(**{"features": 4, **settings})
    torch.nn.init.normal_(denoiser.last.weight, std=0.1)
    return denoiser


def test_an_untrained_denoiser_is_the_identity():
    sinogram = 6 * torch.rand(2, 1, 20, 24)
    assert torch.equal(SinogramDenoiser(features=4)(sinogram), sinogram)


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (17, 23), (40, 33)])
@pytest.mark.parametrize("levels", [1, 3])
def test_any_number_of_views_and_cells_is_kept(shape, levels):
    sinogram = 6 * torch.rand(1, 1, *shape)
    denoised = awake(levels=levels)(sinogram)
    assert denoised.shape == sinogram.shape
    assert not torch.equal(denoised, sinogram)


def test_the_gradient_reaches_every_parameter():
    denoiser = awake()
    denoiser(torch.rand(1, 1, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in denoiser.parameters())


def test_items_of_a_batch_do_not_touch_each_other():
    denoiser, sinogram = awake().double(), 6 * torch.rand(3, 1, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(denoiser(sinogram)[1:2], denoiser(sinogram[1:2]))


def test_every_dose_is_alike_in_units_of_its_noise():
    """A change of the sinogram by its noise's size changes the answer by as much, whatever the photons are."""
    denoiser, detail = awake().double(), torch.randn(1, 1, 32, 32, dtype=torch.float64)
    removed = {}
    for photons in (1e5, 1e7, 1e9):
        # Thin rays, so that the noise leaves the line integrals as they are.
        sigma = photons**-0.5
        sinogram = sigma * detail
        removed[photons] = (denoiser(sinogram, incident_photons=photons) - sinogram) / sigma
    torch.testing.assert_close(removed[1e9], removed[1e7], atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(removed[1e7], removed[1e5], atol=1e-2, rtol=1e-2)


def test_photons_of_each_item_count_for_it_alone():
    denoiser, sinogram = awake(), 6 * torch.rand(2, 1, 16, 16)
    photons, variance = (torch.tensor(values).reshape(-1, 1, 1, 1) for values in ([1e3, 1e5], [5.0, 0.0]))
    both = denoiser(sinogram, photons, variance)
    torch.testing.assert_close(both[:1], denoiser(sinogram[:1], 1e3, 5.0))
    torch.testing.assert_close(both[1:], denoiser(sinogram[1:], 1e5))
    assert not torch.allclose(both[1:], denoiser(sinogram[1:], 1e3))


def test_photons_that_nobody_knows_are_the_typical_ones():
    denoiser, sinogram = awake(), 6 * torch.rand(1, 1, 16, 16)
    assert torch.equal(denoiser(sinogram), denoiser(sinogram, TYPICAL_PHOTONS))
    blind = awake(noise_aware=False)
    assert torch.equal(blind(sinogram, 1e3, 5.0), denoiser(sinogram))
    with pytest.raises(ValueError, match="photons must be a positive number, got -1"):
        denoiser(sinogram, -1.0)


def test_starved_rays_stay_finite():
    assert torch.isfinite(awake()(torch.full((1, 1, 16, 16), 200.0))).all()


def test_wrong_shapes_and_sizes_are_named():
    with pytest.raises(ValueError, match=r"\(B, 1, V, D\)"):
        SinogramDenoiser(features=4)(torch.zeros(1, 2, 8, 8))
    with pytest.raises(ValueError, match="levels"):
        SinogramDenoiser(levels=0)
    with pytest.raises(ValueError, match="features"):
        SinogramDenoiser(features=1)
