"""A scan's own photons judge how its images are mixed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bundle.inference import (
    Candidates,
    HeldOutFusion,
    StackInferer,
    collaborative_wiener,
    guided_nonlocal_means,
    local_wiener,
)
from bundle.inference.smoothing import gauss
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
    scales = (40, 10, 15, 5, 40)
    return Candidates(*(scale * torch.randn(2, 1, 64, 64, generator=generator) for scale in scales))


def scan(batch: int = 1, seed: int = 0) -> torch.Tensor:
    x, y = (torch.from_numpy(c) for c in GRID.pixel_coordinates())
    disc = ((x[None] ** 2 + y[:, None] ** 2 < 140**2).float() * 1000 - 1000).expand(batch, 1, -1, -1).contiguous()
    clean = FanBeamProjector(GRID)(hu_to_attenuation(disc))
    return simulate_low_dose(clean, PHOTONS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("strengths", [(), (0.3,), (0.15, 0.5, 1.5)])
def test_weights_that_made_the_image_are_found_in_its_noise(strengths):
    fusion, part = HeldOutFusion(strengths=strengths, least_detail=(0, 0)), images()
    true = torch.rand(2, len(fusion.terms), generator=torch.Generator().manual_seed(1))
    noise = 10 * torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(9))
    terms = fusion._terms(part)

    def mixed(weights: Tensor) -> Tensor:
        return (weights[:, :, None, None] * terms).sum(1, keepdim=True)

    found = fusion.weights(part, part.refined + mixed(true) + noise)
    # The squared error of a least squares fit of K weights to M pixels is K / M of the noise's.
    share = (len(fusion.terms) + 4) / 64**2
    assert mixed(found - true).square().mean() < 2 * share * noise.square().mean()


def test_the_terms_sum_to_what_parts_the_images():
    fusion, part = HeldOutFusion(strengths=[0.3], wiener_strengths=[2.0]), images()
    terms = dict(zip(fusion.terms, fusion._terms(part).unbind(1)))

    def total(*parts: str) -> Tensor:
        return sum(term for name, term in terms.items() if name.part.startswith(parts))

    torch.testing.assert_close(total("coarse", "fine"), (part.fused - part.refined)[:, 0], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(total("raw"), (part.low_dose - part.fused)[:, 0])
    noise = gauss((part.low_dose - part.prior) ** 2, 6.0).sqrt()
    (mean,) = guided_nonlocal_means(part.low_dose, part.refined / noise, [0.3])
    torch.testing.assert_close(total("alike"), (mean - part.refined)[:, 0], rtol=1e-3, atol=1e-2)
    (filtered,) = local_wiener(part.low_dose - part.refined, part.refined, part.low_dose - part.prior, [2.0])
    torch.testing.assert_close(total("wiener"), filtered[:, 0], rtol=1e-3, atol=1e-2)
    grouped = collaborative_wiener(part.low_dose, part.refined, part.noise, 1.0)
    torch.testing.assert_close(total("group"), (grouped - part.refined)[:, 0], rtol=1e-3, atol=1e-2)


def stripes(*seeds: int) -> tuple[Tensor, list[Tensor]]:
    """Stripes fainter than the noise, and noisy images of them; no pixel shows them, all pixels together do."""
    truth = torch.where(torch.arange(96) % 6 < 3, 20.0, 0.0).view(1, 1, -1, 1).expand(1, 1, 96, 96)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return truth, [truth + 30 * torch.randn(1, 1, 96, 96, generator=generator) for generator in generators]


def test_what_repeats_in_the_patient_comes_back_where_the_networks_half_lost_it():
    truth, (raw, judge) = stripes(0, 1)
    lost = 10 + 0.5 * (truth - 10)
    part = Candidates(raw, lost, lost, lost, (raw - judge) / 2**0.5)
    error = {}
    for strengths, grouped in [((), ()), ((0.05,), ()), ((), (1.0,))]:
        fusion = HeldOutFusion(strengths=strengths, wiener_strengths=(), group_strengths=grouped)
        error[strengths, grouped] = (fusion(part, fusion.weights(part, judge)) - truth).square().mean()
    assert error[(0.05,), ()] < 0.75 * error[(), ()]
    assert error[(), (1.0,)] < 0.6 * error[(), ()]


def test_a_texture_that_the_refiner_lost_comes_back_where_noise_has_another_direction():
    """Noise along the columns alone; a texture along the rows, of which the refined image shows a fifth."""
    x = torch.arange(128) * (2 * torch.pi / 6)
    truth = (20 * torch.cos(x))[:, None].expand(128, 128).reshape(1, 1, 128, 128)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    noise, judging = (
        (30 * torch.randn(1, 1, 1, 128, generator=generator)).expand_as(truth) for generator in generators
    )
    raw, judge, refined = truth + noise, truth + judging, 0.2 * truth
    # Stage 1 took away noise, and noise alone, but not all of it.
    prior = truth + 0.5 * noise
    part = Candidates(raw, prior, prior, refined, noise)
    error = {}
    for strengths in [(), (1.0,)]:
        fusion = HeldOutFusion(strengths=(), wiener_strengths=strengths, group_strengths=())
        error[strengths] = (fusion(part, fusion.weights(part, judge)) - truth).square().mean()
    assert error[1.0,] < 0.6 * error[()]


def test_slices_that_show_the_same_help_each_other():
    torch.manual_seed(0)
    truth, (raw, above, below, judge) = stripes(0, 1, 2, 3)
    # No two slices are alike to the bit; a slice would search itself alone.
    refined = [10 + 0.5 * (truth - 10) + torch.randn(truth.shape) for _ in range(3)]
    part, *around = (
        Candidates(image, lost, lost, lost, image - truth) for image, lost in zip((raw, above, below), refined)
    )
    for filters in ({"strengths": [0.05], "group_strengths": ()}, {"strengths": (), "group_strengths": [1.0]}):
        fusion = HeldOutFusion(**filters)
        alone = fusion(part, fusion.weights(part, judge))
        helped = fusion(part, fusion.weights(part, judge, around), around)
        assert (helped - truth).square().mean() < 0.85 * (alone - truth).square().mean(), filters


def test_the_air_has_weights_of_its_own():
    """Texture that the refiner lost in the patient comes back, and the air stays without noise."""
    x, y = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    patient = ((x - 64) ** 2 + (y - 64) ** 2 < 40**2).view(1, 1, 128, 128)
    refined = gauss(torch.where(patient, 0.0, -1000.0), 1.5)
    generator = torch.Generator().manual_seed(0)
    texture, noise, judging = (20 * torch.randn(1, 1, 128, 128, generator=generator) for _ in range(3))
    truth = refined + texture * patient
    raw, air = truth + noise, gauss(refined, 6.0) < -990
    part = Candidates(raw, raw, raw, refined, noise)
    fusion = HeldOutFusion(strengths=(), wiener_strengths=(), group_strengths=())
    restored = fusion(part, fusion.weights(part, truth + judging))
    error = (restored - truth).square()
    assert error[air].mean().sqrt() < 2
    # Half of the texture and half of the noise: what is best for two of the same power.
    assert error[patient].mean().sqrt() == pytest.approx(20 / 2**0.5, rel=0.15)


def test_the_error_of_the_backprojection_is_taken_out_where_the_object_is_asked_for():
    """What the photons show is blurred; nothing but blurring the result once more says so."""
    x, y = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    disc = ((x - 64) ** 2 + (y - 64) ** 2 < 40**2).view(1, 1, 128, 128)
    squares = ((x // 16 + y // 16) % 2).view(1, 1, 128, 128) * 100
    truth = gauss(torch.where(disc, squares, -1000.0), 1.0)
    shown = gauss(truth, 1.5)
    noises = [10 * torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    whole, part = (Candidates(shown + n, shown, shown, shown, n) for n in noises[:2])
    judge = shown + noises[2]
    fusion = HeldOutFusion(strengths=(), wiener_strengths=(), group_strengths=())

    def error(image: Tensor) -> Tensor:
        return (image - truth).square().mean().sqrt()

    seen = fusion(whole, fusion.weights(part, judge))
    restored = fusion.of_object(whole, part, judge, lambda image: gauss(image, 1.5))
    # One step leaves the square of the blur's deficit.
    assert error(restored) < 0.7 * error(seen)
    torch.testing.assert_close(fusion.of_object(whole, part, judge, lambda image: image), seen, rtol=1e-4, atol=0.01)


def test_the_level_is_that_of_the_fused_image():
    """Whatever is brought back, and however wrong the level of the refined image is."""
    fusion, part = HeldOutFusion(), images()
    wrong = part._replace(low_dose=part.low_dose + 20, refined=part.refined - 30)
    restored = fusion(wrong, torch.ones(2, len(fusion.terms)))
    assert (restored - part.fused).std() > 10
    torch.testing.assert_close(restored.mean((2, 3)), part.fused.mean((2, 3)), atol=1, rtol=0)


def bone(radius: float = 20) -> Tensor:
    """A disc of bone in soft tissue."""
    x, y = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    return torch.where((x - 64) ** 2 + (y - 64) ** 2 < radius**2, 600.0, 0.0).view(1, 1, 128, 128)


def blurred_bone(truth: Tensor, seed: int = 0) -> Candidates:
    """The networks blur it and lower it by a tenth; the raw data are noise around it."""
    noise = 50 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed))
    lost = 0.9 * gauss(truth, 0.7)
    return Candidates(truth + noise, lost, lost, lost, noise)


def test_the_level_of_bone_is_that_of_the_raw_data():
    """In the mean over noise it is the truth's; all that is not near bone stays as it was."""
    truth, fusion = bone(), HeldOutFusion(strengths=(), wiener_strengths=(), group_strengths=())
    inside, away = bone(14) > 0, gauss(bone(28), 1.0) == 0
    nothing = torch.zeros(1, len(fusion.terms))
    errors, before = [], []
    for seed in range(8):
        part = blurred_bone(truth, seed)
        restored = fusion(part, nothing)
        errors.append((restored - truth)[inside].mean())
        before.append((part.refined - truth)[inside].mean())
        torch.testing.assert_close(restored[away], part.refined[away], atol=1e-3, rtol=0)
    assert torch.stack(before).mean() < -59
    assert torch.stack(errors).mean().abs() < 2


def test_bone_is_as_sharp_as_the_raw_data():
    """Whatever the networks blurred, with no weight on anything."""
    truth, fusion = bone(), HeldOutFusion(strengths=(), wiener_strengths=(), group_strengths=())
    rim, shown = (bone(24) - bone(16)) > 0, gauss(truth, 0.7)
    blurred = gauss(truth, 1.6)
    errors = []
    for seed in range(6):
        noise = 30 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed))
        part = Candidates(shown + noise, blurred, blurred, blurred, noise)
        errors.append(fusion(part, torch.zeros(1, len(fusion.terms))) - shown)
    blur = (blurred - shown)[rim].square().mean().sqrt()
    assert torch.stack(errors).mean(0)[rim].square().mean().sqrt() < 0.4 * blur


def test_the_level_of_bone_is_the_objects_where_the_object_is_asked_for():
    """The raw data show all a tenth too low, and so would they show the result."""
    truth = bone()
    whole, part = (blurred_bone(0.9 * truth, seed)._replace(fused=0.9 * truth, refined=0.9 * truth) for seed in (0, 1))
    fusion = HeldOutFusion(strengths=(), wiener_strengths=(), group_strengths=())
    restored = fusion.of_object(whole, part, blurred_bone(0.9 * truth, 2).low_dose, lambda image: 0.9 * image)
    # One step leaves a tenth of the tenth; noise of 50 HU in a thousand pixels.
    assert (restored - 0.99 * truth)[bone(14) > 0].mean().abs() < 5


def test_noise_of_the_parts_is_that_of_the_whole():
    """Shares f and 1 - f of the photons make noise of variance v / f and v / (1 - f); nothing of the patient stays."""
    fusion = HeldOutFusion(fraction=0.8)
    generator = torch.Generator().manual_seed(0)
    patient = 1000 * torch.randn(1, 1, 256, 256, generator=generator)
    kept, judge = (patient + 30 / share**0.5 * torch.randn(1, 1, 256, 256, generator=generator) for share in (0.8, 0.2))
    whole, part = fusion.noise(kept, judge)
    assert whole.std().item() == pytest.approx(30, rel=0.01)
    assert part.std().item() == pytest.approx(30 / 0.8**0.5, rel=0.01)


def test_a_scan_brings_the_noise_of_its_photons():
    network = restorer(refiner=Smooth(), held_out_fusion=HeldOutFusion(), geometry=GRID)
    scans = torch.cat([scan(seed=seed) for seed in range(8)])
    prepared = network.prepare(scans, None, PHOTONS)
    for candidates in (prepared.whole, prepared.part):
        true = candidates.low_dose - candidates.low_dose.mean(0)
        assert candidates.noise.std().item() == pytest.approx(true.std().item() * (8 / 7) ** 0.5, rel=0.05)


def least_weights(fusion: HeldOutFusion) -> Tensor:
    """The least that each weight may be, as the class says it."""
    least = []
    for part, place in fusion.terms:
        free = place == "steep" and part != "raw"
        stays = dict(zip(("coarse", "fine"), fusion.least_detail)) if place == "flat" else {}
        least.append(-torch.inf if free else stays.get(part, 0.0))
    return torch.tensor(least)


def test_no_detail_is_taken_away_twice():
    """Where the truth lies beyond the refined image, seen from the others, the refined image it is, but at edges."""
    part = Candidates(*(image / 10 for image in images()))
    fusion = HeldOutFusion(strengths=(), group_strengths=(), least_detail=(0, 0))
    weights = fusion.weights(part, part.refined - (part.low_dose - part.refined))
    bounded = weights[:, least_weights(fusion) == 0]
    torch.testing.assert_close(bounded, torch.zeros_like(bounded), atol=0.05, rtol=0)


@pytest.mark.parametrize("least_detail", [(0.0, 0.0), (0.8, 0.2)])
def test_weights_are_the_best_of_those_that_are_allowed(least_detail):
    fusion, part = HeldOutFusion(least_detail=least_detail), images()
    judge = part.low_dose + 20 * torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(5))
    found, least = fusion.weights(part, judge), least_weights(fusion)
    assert (found >= least - 1e-6).all() and (found > least + 0.05).any() and (found < least + 1e-6).any()

    def error(weights: Tensor) -> Tensor:
        return (fusion(part, weights) - judge).square().mean((1, 2, 3))

    for index in range(len(fusion.terms)):
        for step in (0.05, -0.05):
            changed = found.clone()
            changed[:, index] = torch.maximum(changed[:, index] + step, least[index])
            # A little room: for the ridge, and for the judge's constants, that no image has.
            assert (error(changed) >= error(found) * (1 - 1e-3)).all(), fusion.terms[index]


def test_blur_of_the_fused_image_is_taken_away_at_steep_edges():
    """The truth is as much sharper than the refined image as that is than the fused one."""
    sharp = torch.where(torch.arange(96) % 32 < 16, 150.0, -250.0).view(1, 1, -1, 1).expand(1, 1, 96, 96)
    refined = gauss(sharp, 1.0)
    fused = refined - (gauss(sharp, 0.7) - refined)
    generator = torch.Generator().manual_seed(0)
    noise = 10 * torch.randn(1, 1, 96, 96, generator=generator)
    part = Candidates(gauss(sharp, 0.7) + noise, fused, fused, refined, noise)
    judge = gauss(sharp, 0.7) + 10 * torch.randn(1, 1, 96, 96, generator=generator)
    fusion = HeldOutFusion(strengths=())
    weights = fusion.weights(part, judge)
    restored = fusion(part, weights)
    error, before = ((image - gauss(sharp, 0.7)).square().mean() for image in (restored, refined))
    assert error < 0.5 * before
    assert weights[0, fusion.terms.index(("fine", "steep"))] < -0.3


def test_a_refiner_that_is_right_is_left_alone_but_for_the_least_detail():
    part = images()
    weights = HeldOutFusion(least_detail=(0, 0)).weights(part, part.refined)
    torch.testing.assert_close(weights, torch.zeros_like(weights), atol=1e-6, rtol=0)
    # All that the squares can do is to leave it at that.
    fusion = HeldOutFusion(least_detail=(0.7, 0.3))
    weights = fusion.weights(part, part.refined)
    kept = weights[:, least_weights(fusion) > 0]
    torch.testing.assert_close(kept, torch.tensor([0.7, 0.3]).expand_as(kept))


def test_what_is_faint_stays_where_nothing_speaks_for_it():
    """Two faint spots in a flat patient; what the held-out photons see of them drowns in noise."""
    x = torch.arange(96.0) - 48
    spots = sum(8 * torch.exp(-((x - c) ** 2 + x[:, None] ** 2) / (2 * 3**2)) for c in (-24, 24)).view(1, 1, 96, 96)
    generator = torch.Generator().manual_seed(0)
    noise, judge = (sigma * torch.randn(1, 1, 96, 96, generator=generator) for sigma in (20, 60))
    part = Candidates(spots + noise, spots, spots, torch.zeros_like(spots), noise)

    def kept(least_detail: tuple[float, float]) -> float:
        fusion = HeldOutFusion(strengths=(), wiener_strengths=(), group_strengths=(), least_detail=least_detail)
        restored = fusion(part, fusion.weights(part, judge - spots))
        return float((restored * spots).sum() / spots.square().sum())

    assert kept((0, 0)) < 0.3 and kept((0.8, 0.2)) > 0.75


def test_an_image_without_a_body_is_left_alone_but_for_the_least_detail():
    air = Candidates(*(image - 1000 for image in images()[:4]), images().noise)
    assert not HeldOutFusion(least_detail=(0, 0)).weights(air, air.low_dose).any()
    fusion = HeldOutFusion(least_detail=(0.8, 0.2))
    weights = fusion.weights(air, air.low_dose)
    assert torch.equal(weights, least_weights(fusion).clamp_min(0).expand_as(weights))


def test_terms_that_are_not_there_get_no_weight():
    part = images()
    same = Candidates(part.refined, part.refined, part.refined, part.refined, part.noise)
    fusion = HeldOutFusion(strengths=(), wiener_strengths=(), group_strengths=())
    torch.testing.assert_close(fusion(same, fusion.weights(same, part.low_dose)), part.refined)


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


@pytest.mark.parametrize("slices_per_batch", [1, 2, 3])
def test_a_stack_in_chunks_is_the_stack_at_once(slices_per_batch):
    network = restorer(refiner=Smooth(), held_out_fusion=HeldOutFusion(), geometry=GRID)
    sinograms = torch.cat([scan(seed=seed) for seed in range(3)])
    for neighbours in (False, True):
        inferer = StackInferer(slices_per_batch, progress=False, neighbours=neighbours)
        chunks = inferer(sinograms.transpose(0, 1)[None], network, incident_photons=PHOTONS)
        whole = network.restore(sinograms, None, PHOTONS, adjacent=neighbours).restored
        torch.testing.assert_close(chunks[0, -1], whole[:, 0], atol=0.1, rtol=1e-3)


def test_a_lone_slice_is_not_its_own_neighbour():
    network, sinogram = restorer(refiner=Smooth(), held_out_fusion=HeldOutFusion(), geometry=GRID), scan()
    alone = network(sinogram, None, PHOTONS)
    assert torch.equal(network.restore(sinogram, None, PHOTONS, adjacent=True).restored, alone)
    stack = StackInferer(1, progress=False, neighbours=True)(sinogram[None], network, incident_photons=PHOTONS)
    assert torch.equal(stack[0, -1], alone[:, 0])


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("name", ["strengths", "wiener_strengths", "group_strengths"])
def test_a_strength_that_is_none_is_refused(name, strength):
    with pytest.raises(ValueError, match=f"^{name} must be positive"):
        HeldOutFusion(**{name: [strength]})


@pytest.mark.parametrize("fraction", [0.0, 1.0, 1.5])
def test_a_share_outside_zero_and_one_is_refused(fraction):
    with pytest.raises(ValueError, match="fraction"):
        HeldOutFusion(fraction)


@pytest.mark.parametrize("least_detail", [0.3, (0.3,), (0.8, 0.2, 0.1), (-0.1, 0.2), (0.8, 1.1), (float("nan"), 0.2)])
def test_a_least_detail_that_is_no_share_is_refused(least_detail):
    with pytest.raises(ValueError, match="least_detail"):
        HeldOutFusion(least_detail=least_detail)
