"""Only who says so learns from the reference."""

from __future__ import annotations

import pytest
import torch

from bundle.peers import SupervisedPaird


def pair(item):
    return {**item, "fbp": item["sinogram"] + 1, "prior": item["sinogram"] + 2}


def test_the_reference_takes_the_place_of_the_target_and_nothing_else_changes():
    sinogram, reference = torch.zeros(1, 4, 4), torch.ones(1, 4, 4)
    item = SupervisedPaird(pair)({"sinogram": sinogram, "reference": reference})
    assert item["prior"] is reference
    assert "reference" not in item
    assert torch.equal(item["fbp"], sinogram + 1)


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"sinogram": torch.zeros(1, 4, 4)}, "needs 'reference'"),
        ({"sinogram": torch.zeros(1, 4, 4), "reference": torch.zeros(1, 4, 5)}, "must have the shape of prior"),
    ],
)
def test_an_item_without_a_fitting_reference_is_refused(item, says):
    with pytest.raises(ValueError, match=says):
        SupervisedPaird(pair)(item)
