"""Pairs of images for stages 2 and 3, from noisy line integrals and their denoised form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bundle.physics import (
    FanBeamGeometry,
    FilteredBackprojection,
    attenuation_to_hu,
    log_bias,
)
from bundle.transforms import (
    RandMixd,
    ReconstructPaird,
    RemovedNoised,
    ThinCountsd,
    training_slices,
)


class Unchanged(nn.Module):
    """A denoiser that changes nothing."""

    def forward(self, sinogram, incident_photons=None, electronic_variance=None):
        return sinogram


def test_input_items_are_not_changed(stack, simulate):
    before = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in stack.items()}
    noisy = simulate()(stack)
    kept = noisy["sinogram"].clone()
    ReconstructPaird(Unchanged())(noisy)
    assert stack.keys() == before.keys() and "fbp" not in noisy
    assert all(torch.equal(stack[key], before[key]) for key in ("image_hu", "slice"))
    assert torch.equal(noisy["sinogram"], kept)


class Smooth(nn.Module):
    """Stands for a denoiser: has a weight, behaves otherwise in training, and tells how it was called."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.calls = []

    def forward(self, sinogram, **noise):
        self.calls.append((tuple(sinogram.shape), self.training, torch.is_grad_enabled()))
        return self.scale * sinogram


def test_pair_is_the_fbp_of_the_sinogram_and_of_its_denoised_form(stack, simulate):
    denoiser = Smooth().train()
    item = ReconstructPaird(denoiser, slices_per_batch=2)(simulate()(stack))
    geometry = FanBeamGeometry.from_json(item["geometry"])
    expected = FilteredBackprojection(geometry)(item["sinogram"][0][:, None])[:, 0]
    assert torch.allclose(item["fbp"][0], attenuation_to_hu(expected), atol=0.02)
    assert torch.allclose(item["prior"][0], attenuation_to_hu(expected / 2), atol=0.02)
    assert denoiser.calls == [((2, 1, 90, 96), False, False)] * 2 + [((1, 1, 90, 96), False, False)]
    assert not item["prior"].requires_grad


def test_pair_of_a_single_slice_has_the_shape_of_a_slice(scans, simulate):
    item = ReconstructPaird(Unchanged(), window="hann")(simulate()(training_slices(scans)[0]))
    assert item["fbp"].shape == item["prior"].shape == item["reference"].shape == (1, 64, 64)
    assert torch.equal(item["fbp"], item["prior"])


def test_sinogram_that_does_not_fit_its_geometry_is_refused(geometry):
    item = {"sinogram": torch.zeros(1, 90, 95), "geometry": geometry.to_json()}
    with pytest.raises(ValueError, match=r"\(90, 96\), got shape \(1, 90, 95\)"):
        ReconstructPaird(Unchanged())(item)


def test_a_mix_lies_between_the_noisy_image_and_its_prior():
    fbp, prior = torch.full((1, 4, 4), 10.0), torch.zeros(1, 4, 4)
    mix = RandMixd(prob_prior=0.3).set_random_state(0)
    mixed = [mix({"fbp": fbp, "input_prior": prior, "prior": prior}) for _ in range(200)]
    values = torch.tensor([item["fbp"].max() for item in mixed])
    assert ((values >= 0) & (values <= 10)).all()
    assert 0.2 < (values == 0).float().mean() < 0.4
    assert "input_prior" not in mixed[0] and fbp.min() == 10


def test_known_photons_take_the_bias_of_the_logarithm_out_of_image_and_prior(geometry):
    noisy = 3 + 0.1 * torch.rand(1, *geometry.sinogram_shape)
    item = {"sinogram": noisy, "geometry": geometry.to_json(), "incident_photons": 400.0}
    raw = ReconstructPaird(Unchanged())(item)
    corrected = ReconstructPaird(Unchanged(), electronic_variance=10.0)(item)
    bias = log_bias(noisy, 400.0, electronic_variance=10.0)
    expected = FilteredBackprojection(geometry)((noisy - bias)[None])[0]
    torch.testing.assert_close(corrected["prior"], attenuation_to_hu(expected), rtol=1e-4, atol=0.01)
    torch.testing.assert_close(corrected["fbp"], corrected["prior"])
    assert not torch.equal(raw["fbp"], corrected["fbp"])
    del item["incident_photons"]
    torch.testing.assert_close(ReconstructPaird(Unchanged(), electronic_variance=10.0)(item)["fbp"], raw["fbp"])


def test_removed_noise_is_what_the_image_has_and_its_prior_has_not():
    prior = torch.randn(1, 2, 16, 16)
    item = RemovedNoised()({"fbp": prior - 2, "prior": prior})
    torch.testing.assert_close(item["noise"], torch.full_like(prior, -2.0))


def test_the_denoiser_is_told_the_noise_of_each_part(geometry):
    told = []

    class Listening(nn.Module):
        def forward(self, sinogram, **noise):
            told.append(noise)
            return sinogram

    noisy = 3 + 0.1 * torch.rand(1, *geometry.sinogram_shape)
    item = {"sinogram": noisy, "geometry": geometry.to_json(), "name": "a", "slice": 0}
    ReconstructPaird(Listening())(item)
    assert told == [{}]
    parts = ThinCountsd(photons=1e4, dose=0.25, fractions=(0.4, 0.4), electronic_variance=10.0)(item)
    ReconstructPaird(
        Listening(),
        input_key="input_sinogram",
        target_key="target_sinogram",
        input_prior_key="input_prior",
        electronic_variance=10.0,
    )(parts)
    assert [(n["incident_photons"], n["electronic_variance"]) for n in told[1:]] == [(1000, 4), (1500, 6)]


@pytest.mark.parametrize("arguments", [{"electronic_variance": -1.0}, {"input_prior_key": "input_prior"}])
def test_a_pair_that_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ReconstructPaird(Unchanged(), **arguments)
