"""What holds for FBP and the filters on its image."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

from bundle.peers import Bm3dPeer, FbpPeer, NlmPeer, TunedPeer, TvPeer


@pytest.fixture(params=["nlm", "tv", "bm3d"])
def filter_peer(request):
    if request.param == "bm3d":
        pytest.importorskip("bm3d", reason="its licence is non-commercial: it is not installed with the rest")
    return {"nlm": NlmPeer, "tv": TvPeer, "bm3d": Bm3dPeer}[request.param]


@pytest.fixture(scope="module")
def patch() -> torch.Tensor:
    """A noise-free step and a ramp, HU."""
    image = torch.zeros(1, 1, 48, 48)
    image[..., 24:] = 200.0
    return image + torch.linspace(0, 20, 48)[:, None]


def noise(std: float) -> torch.Tensor:
    return std * torch.randn(1, 1, 48, 48, generator=torch.Generator().manual_seed(3))


def rmse(image: torch.Tensor, truth: torch.Tensor) -> float:
    return (image - truth).square().mean().sqrt().item()


def test_the_mean_of_even_and_odd_views_is_the_fbp_of_all(phantom):
    scan = phantom.noisy(0.5)
    halves, _ = FbpPeer("hann").with_noise(scan)
    assert torch.allclose(halves, FbpPeer("hann")(scan), atol=0.1)


@pytest.mark.parametrize("dose", [0.05, 0.5])
@pytest.mark.parametrize("window", ["ram-lak", "hann"])
def test_the_noise_of_a_scan_is_measured_without_its_clean_image(phantom, dose, window):
    peer = FbpPeer(window)
    image, measured = peer.with_noise(phantom.noisy(dose))
    body = phantom.reference > -500
    true = (image - peer(phantom.clean))[body].std()
    assert measured.item() == pytest.approx(true.item(), rel=0.2)


def test_a_noise_free_scan_has_hardly_any_noise(phantom):
    _, clean = FbpPeer().with_noise(phantom.clean)
    _, noisy = FbpPeer().with_noise(phantom.noisy(0.05))
    assert clean.item() < noisy.item() / 5


def test_an_empty_scanner_has_noise_too(phantom):
    empty = dataclasses.replace(phantom.clean, sinogram=1e-3 * torch.randn_like(phantom.clean.sinogram))
    _, measured = FbpPeer().with_noise(empty)
    assert measured.item() > 0


def test_a_lower_cutoff_leaves_less_noise(phantom):
    scan = phantom.noisy(0.1)
    levels = [FbpPeer("hann", cutoff).with_noise(scan)[1].item() for cutoff in (1.0, 0.7, 0.4)]
    assert levels == sorted(levels, reverse=True)


def test_a_constant_image_stays(filter_peer):
    image = torch.full((1, 1, 32, 32), 37.0)
    assert torch.allclose(filter_peer(1.0).filtered(image, [25.0]), image, atol=0.2)


def test_strength_zero_is_the_fbp(filter_peer, phantom):
    scan = phantom.noisy(0.1)
    assert torch.equal(filter_peer(0.0, "hann")(scan), FbpPeer("hann").with_noise(scan)[0])


def test_a_noise_free_image_stays(filter_peer, patch):
    assert torch.equal(filter_peer(1.0).filtered(patch, [0.0]), patch)


def test_noise_becomes_less(filter_peer, patch):
    noisy = patch + noise(20.0)
    assert rmse(filter_peer(1.0).filtered(noisy, [20.0]), patch) < 0.6 * rmse(noisy, patch)


def test_strength_goes_with_the_noise(filter_peer, patch):
    """Twice the image with twice the noise is twice the result: one strength serves every noise."""
    noisy = patch + noise(20.0)
    once, twice = filter_peer(0.8).filtered(noisy, [20.0]), filter_peer(0.8).filtered(2 * noisy, [40.0])
    assert torch.allclose(2 * once, twice, atol=0.5)


def test_slices_are_filtered_each_by_its_own_noise(filter_peer, patch):
    noisy = patch + noise(20.0)
    both = filter_peer(0.8).filtered(torch.cat([noisy, noisy]), [20.0, 5.0])
    # BM3D adds up in threads: not the same to the last digit.
    assert torch.allclose(both[:1], filter_peer(0.8).filtered(noisy, [20.0]), atol=0.1)
    assert torch.allclose(both[1:], filter_peer(0.8).filtered(noisy, [5.0]), atol=0.1)


def test_a_negative_strength_is_refused(filter_peer):
    with pytest.raises(ValueError, match="strength must be zero or more, got -1"):
        filter_peer(-1)


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    with pytest.raises(ModuleNotFoundError, match="requirements-bm3d.txt"):
        Bm3dPeer(1.0)


def test_the_peer_tuned_at_the_nearest_noise_is_taken(phantom):
    quiet, loud = (FbpPeer("hann").with_noise(phantom.noisy(dose))[1].item() for dose in (1.0, 0.05))
    peer = TunedPeer({quiet: FbpPeer("ram-lak"), loud: FbpPeer("hann", 0.5)})
    for dose, expected in ((1.0, FbpPeer("ram-lak")), (0.9, FbpPeer("ram-lak")), (0.06, FbpPeer("hann", 0.5))):
        scan = phantom.noisy(dose)
        assert torch.equal(peer(scan), expected(scan))
    assert torch.isfinite(peer(phantom.clean)).all()
