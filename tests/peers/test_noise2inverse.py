"""Views are split so that input and target share none, and every view counts at test time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bundle.peers import (
    FbpPeer,
    ImageDenoiser,
    Noise2InversePeer,
    RandSplitPaird,
    ReconstructSplitsd,
    SplitAverageInferer,
    leave_one_out,
    split_views,
)
from bundle.physics import FanBeamGeometry

from .conftest import GEOMETRY


@given(views=st.integers(8, 60), splits=st.integers(2, 4))
def test_splits_are_disjoint_and_hold_all_views(views, splits):
    geometry = FanBeamGeometry(**{**GEOMETRY.__dict__, "num_views": views})
    number = torch.arange(views, dtype=torch.float32)[None, None, :, None].expand(1, 1, views, geometry.num_cells)
    parts = split_views(number, geometry, splits)
    seen = torch.cat([part[0, 0, :, 0] for part, _ in parts])
    assert sorted(seen.tolist()) == number[0, 0, :, 0].tolist()
    for part, scan in parts:
        assert tuple(part.shape[2:]) == scan.sinogram_shape
        assert scan.view_angles.tolist() == geometry.view_angles[part[0, 0, :, 0].long()].tolist()


@pytest.mark.parametrize("splits", [1, 97])
def test_a_part_needs_two_views(splits):
    with pytest.raises(ValueError, match="splits must be from 2 to half the 192 views"):
        split_views(torch.zeros(1, 1, 192, 112), GEOMETRY, splits)


def test_input_and_target_share_no_split():
    images = torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(0))
    for split in range(4):
        changed = images.clone()
        changed[split] += 1
        same = (leave_one_out(changed) - leave_one_out(images)).abs().amax(dim=(1, 2)) < 1e-6
        assert same.tolist() == [index == split for index in range(4)]


@pytest.mark.parametrize("strategy", ["X:1", "1:X"])
def test_a_pair_is_one_split_against_the_mean_of_the_others(strategy):
    images = torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(0))
    transform = RandSplitPaird(strategy=strategy)
    transform.set_random_state(0)
    drawn = set()
    for _ in range(40):
        item = transform({"image": images})
        single, others = (item["label"], item["image"]) if strategy == "X:1" else (item["image"], item["label"])
        split = next(k for k in range(4) if torch.equal(images[k], single[0]))
        assert torch.allclose(others[0], (images.sum(0) - images[split]) / 3, atol=1e-6)
        drawn.add(split)
    assert drawn == {0, 1, 2, 3}


@pytest.mark.parametrize("make", [RandSplitPaird, SplitAverageInferer])
def test_an_unknown_strategy_is_refused(make):
    with pytest.raises(ValueError, match="strategy must be one of"):
        make(strategy="2:2")


def test_the_splits_of_a_slice_average_to_its_fbp(phantom):
    scan = phantom.noisy(0.25)
    item = {"sinogram": scan.sinogram[0], "geometry": scan.geometry.to_json()}
    item = ReconstructSplitsd(splits=4)(item)
    assert item["image"].shape == (4, 64, 64)
    assert torch.allclose(item["fbp"], FbpPeer()(scan)[0], atol=0.1)


@pytest.mark.parametrize("strategy", ["X:1", "1:X"])
def test_a_network_that_changes_nothing_gives_the_fbp(phantom, strategy):
    scan = phantom.noisy(0.25)
    peer = Noise2InversePeer(nn.Identity(), 4, strategy)
    assert torch.allclose(peer(scan), FbpPeer()(scan), atol=0.1)


def test_the_network_sees_all_but_one_split_at_a_time(phantom):
    seen = []
    parts = torch.randn(1, 4, 8, 8)
    SplitAverageInferer("X:1")(parts, lambda image: seen.append(image) or image)
    assert torch.equal(torch.cat(seen, dim=1), leave_one_out(parts))


def test_the_image_network_works_in_its_own_unit():
    image = torch.randn(1, 1, 8, 8) * 100
    halved = ImageDenoiser(nn.Conv2d(1, 1, 1, bias=False), scale_hu=250.0)
    nn.init.constant_(halved.network.weight, -0.5)
    assert torch.allclose(halved(image), image / 2)
    with pytest.raises(ValueError, match="scale_hu must be positive"):
        ImageDenoiser(nn.Identity(), scale_hu=0)
    with pytest.raises(ValueError, match=r"image must be \(B, 1, H, W\)"):
        halved(image[0])
