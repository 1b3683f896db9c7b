"""Laws of the image loss."""

from __future__ import annotations

import pytest
import torch

from bundle.autoencoder import StructureLoss


def test_equal_images_cost_nothing():
    image = torch.randn(2, 1, 8, 9)
    assert StructureLoss()(image, image.clone()) == 0


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_a_ramp_costs_its_mean_and_its_slopes(weight):
    """d = 3 row + 5 column, in HU, on n x n: mean|d| = (3 + 5)(n - 1) / 2, slopes 3 and 5."""
    n = 9
    rows, columns = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    ramp = (3.0 * rows + 5.0 * columns)[None, None]
    loss = StructureLoss(gradient_weight=weight, scale_hu=10.0)(ramp + 40, torch.full_like(ramp, 40))
    assert loss.item() == pytest.approx((8 * (n - 1) / 2 + weight * 8) / 10, rel=1e-6)


def test_a_constant_shift_costs_its_size_alone():
    image = torch.randn(1, 1, 8, 8)
    assert StructureLoss(scale_hu=100.0)(image + 25, image).item() == pytest.approx(0.25, rel=1e-5)


def test_the_loss_is_symmetric():
    a, b = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(StructureLoss()(a, b), StructureLoss()(b, a))


def test_images_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="target must have the shape"):
        StructureLoss()(torch.zeros(1, 1, 8, 8), torch.zeros(1, 8, 8))


@pytest.mark.parametrize("arguments", [{"gradient_weight": -1}, {"scale_hu": 0}])
def test_wrong_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        StructureLoss(**arguments)
