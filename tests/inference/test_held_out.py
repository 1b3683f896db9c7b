"""A scan's own photons judge how its images are mixed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bundle.inference import Candidates, HeldOutFusion
from bundle.inference.held_out import TERMS, _terms
from bundle.physics import FanBeamProjector, hu_to_attenuation, simulate_low_dose

from .parts import SCANNER, Smooth, restorer

PHOTONS = 2e5
GRID = SCANNER.with_grid((64, 64), 350 / 64)


class Black(nn.Module):
    """A refiner that takes away the whole patient."""

    def forward(self, value: Tensor, noise: Tensor) -> Tensor:
        return torch.full_like(value, -800.0)


def images(seed: int = 0) -> Candidates:
    """Soft tissue with texture; smoother from raw to refined."""
    generator = torch.Generator().manual_seed(seed)
    low_dose, fused, refined = (scale * torch.randn(2, 1, 64, 64, generator=generator) for scale in (40, 15, 5))
    return Candidates(low_dose, fused, refined)


def scan(batch: int = 1, seed: int = 0) -> torch.Tensor:
    x, y = (torch.from_numpy(c) for c in GRID.pixel_coordinates())
    disc = ((x[None] ** 2 + y[:, None] ** 2 < 140**2).float() * 1000 - 1000).expand(batch, 1, -1, -1).contiguous()
    clean = FanBeamProjector(GRID)(hu_to_attenuation(disc))
    return simulate_low_dose(clean, PHOTONS, generator=torch.Generator().manual_seed(seed))


def test_weights_that_made_the_image_are_found_in_its_noise():
    part = images()
    true = torch.tensor([[0.5, 1.0, -0.4, 0.2, 0.3, 0.1, 0.6, 0.2, 0.0], [0.0, 0.2, 1.2, 0.9, 0.0, 0.4, 0.0, 0.1, 0.9]])
    noise = 10 * torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(9))
    seen = HeldOutFusion().forward(part, true) + noise
    found = HeldOutFusion().weights(part, seen)
    mixed = HeldOutFusion().forward(part, found) - HeldOutFusion().forward(part, true)
    assert mixed.std() < 0.15 * noise.std()


def test_the_terms_sum_to_what_parts_the_images():
    part = images()
    terms = dict(zip(TERMS, _terms(part).unbind(1)))
    removed = sum(terms[name] for name in TERMS if not name.startswith("raw"))
    torch.testing.assert_close(removed, (part.fused - part.refined)[:, 0], rtol=1e-4, atol=1e-3)
    raw = sum(terms[name] for name in TERMS if name.startswith("raw"))
    torch.testing.assert_close(raw, (part.low_dose - part.fused)[:, 0])


def test_raw_data_never_count_negatively():
    part = images()
    against = part.refined - (part.low_dose - part.fused)
    weights = HeldOutFusion().weights(part, against)
    assert (weights[:, [name.startswith("raw") for name in TERMS]] == 0).all()


def test_a_refiner_that_is_right_is_left_alone():
    part = images()
    weights = HeldOutFusion().weights(part, part.refined)
    torch.testing.assert_close(weights, torch.zeros_like(weights), atol=1e-6, rtol=0)


def test_terms_that_are_not_there_get_no_weight():
    part = images()
    same = Candidates(part.refined, part.refined, part.refined)
    torch.testing.assert_close(HeldOutFusion()(same, HeldOutFusion().weights(same, part.low_dose)), part.refined)


def test_an_image_without_a_body_is_left_alone():
    air = Candidates(*(image - 1000 for image in images()))
    assert not HeldOutFusion().weights(air, air.low_dose).any()


def test_a_refiner_that_spoils_the_image_is_found_out():
    """The held-out photons know that the patient is there."""
    network = restorer(refiner=Black(), held_out_fusion=HeldOutFusion(), geometry=GRID)
    sinogram = scan()
    spoilt, saved = network.restore(sinogram), network.restore(sinogram, None, PHOTONS)
    truth = network.restore(scan(seed=1)).fbp
    assert (spoilt.restored - truth).square().mean() > 20 * (saved.restored - truth).square().mean()


def test_without_photons_nothing_is_held_out():
    with_fusion = restorer(held_out_fusion=HeldOutFusion(), geometry=GRID)
    sinogram = scan()
    assert torch.equal(with_fusion(sinogram), restorer(geometry=GRID)(sinogram))
    assert not torch.equal(with_fusion(sinogram, None, PHOTONS), restorer(geometry=GRID)(sinogram, None, PHOTONS))


def test_a_slice_is_mixed_alike_in_every_batch():
    network = restorer(refiner=Smooth(), held_out_fusion=HeldOutFusion(), geometry=GRID)
    sinogram = torch.cat([scan(seed=0), scan(seed=1)])
    torch.testing.assert_close(
        network(sinogram, None, PHOTONS)[1:], network(sinogram[1:], None, PHOTONS), atol=0.1, rtol=1e-3
    )


@pytest.mark.parametrize("fraction", [0.0, 1.0, 1.5])
def test_a_share_outside_zero_and_one_is_refused(fraction):
    with pytest.raises(ValueError, match="fraction"):
        HeldOutFusion(fraction)
