"""A network that learns from the sinogram itself: seeded, and of use."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bundle.peers import FbpPeer, ZeroShotPeer, diagonal_pair


def test_a_pair_holds_every_sample_once():
    image = torch.randn(2, 1, 6, 8)
    first, second = diagonal_pair(image)
    assert torch.allclose((first + second) / 2, F.avg_pool2d(image, 2))
    for half, other in ((first, second), (second, first)):
        assert half.shape == other.shape == (2, 1, 3, 4)
    only = torch.zeros(1, 1, 2, 2)
    only[..., 0, 0] = only[..., 1, 1] = 1
    assert [half.item() for half in diagonal_pair(only)] == [0, 1]


def test_the_same_seed_gives_the_same_result(phantom):
    scan = phantom.noisy(0.1)
    results = [ZeroShotPeer(steps=3, crop=32, features=8, seed=seed)(scan) for seed in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_random_numbers_of_others_are_left_alone(phantom):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    ZeroShotPeer(steps=1, crop=32, features=8)(phantom.noisy(0.1))
    assert torch.equal(torch.rand(3), expected)


def test_a_noisy_sinogram_comes_nearer_to_the_clean_one(phantom):
    scan = phantom.noisy(0.05)
    peer = ZeroShotPeer(steps=100, crop=32, features=16)
    before = (scan.sinogram - phantom.clean.sinogram).square().mean()
    after = (peer.denoise(scan.sinogram) - phantom.clean.sinogram).square().mean()
    assert after < 0.8 * before


def test_standardised_learning_does_not_depend_on_the_number_of_photons(phantom):
    """Noise of another size is the same to the network: the detail is scaled as the noise is."""
    scan = phantom.noisy(0.05)
    peer = ZeroShotPeer(steps=5, crop=32, features=8)
    flat = torch.ones_like(scan.sinogram)
    noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    little, much = (peer.denoise(flat + level * noise) - flat for level in (1e-4, 1e-3))
    assert torch.allclose(10 * little, much, atol=2e-4)


def test_as_published_the_network_sees_line_integrals(phantom):
    scan = phantom.noisy(0.05)
    plain, standardised = (ZeroShotPeer(steps=2, crop=32, features=8, standardise=s)(scan) for s in (False, True))
    assert not torch.equal(plain, standardised)


def test_slices_are_denoised_each_for_itself(phantom):
    peer = ZeroShotPeer(steps=2, crop=32, features=8)
    one, other = phantom.noisy(0.1, 0), phantom.noisy(0.1, 1)
    both = type(one)(sinogram=torch.cat([one.sinogram, other.sinogram]), geometry=one.geometry)
    assert torch.allclose(peer(both), torch.cat([peer(one), peer(other)]), atol=1e-2)


def test_a_small_sinogram_is_its_own_crop(phantom):
    image = ZeroShotPeer(steps=1, crop=4096, features=8)(phantom.noisy(0.1))
    assert image.shape == FbpPeer()(phantom.clean).shape


@pytest.mark.parametrize(
    ("argument", "says"), [({"steps": 0}, "steps"), ({"crop": 7}, "crop must be even"), ({"features": 0}, "features")]
)
def test_what_can_not_be_is_refused_by_name(argument, says):
    with pytest.raises(ValueError, match=says):
        ZeroShotPeer(**argument)
