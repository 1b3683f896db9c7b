"""Promises of the sinogram denoiser."""

from __future__ import annotations

import pytest
import torch

from bundle.projection import SinogramDenoiser


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


def test_starved_rays_stay_finite():
    assert torch.isfinite(awake()(torch.full((1, 1, 16, 16), 200.0))).all()


def test_wrong_shapes_and_sizes_are_named():
    with pytest.raises(ValueError, match=r"\(B, 1, V, D\)"):
        SinogramDenoiser(features=4)(torch.zeros(1, 2, 8, 8))
    with pytest.raises(ValueError, match="levels"):
        SinogramDenoiser(levels=0)
    with pytest.raises(ValueError, match="features"):
        SinogramDenoiser(features=1)
