"""The composite: sinogram in, HU image out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bundle.inference import HeldOutFusion, SelfCorrectingFusion
from bundle.physics import (
    FanBeamProjector,
    FilteredBackprojection,
    attenuation_to_hu,
    hu_to_attenuation,
    log_bias,
    simulate_low_dose,
)

from .parts import SCANNER, NoiseItself, Unchanged, restorer


def scan(geometry=SCANNER, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Line integrals of a water disc with noise."""
    x, y = (torch.from_numpy(c) for c in geometry.pixel_coordinates())
    disc = (x[None] ** 2 + y[:, None] ** 2 < 100**2).float()
    image = hu_to_attenuation(disc * 1000 - 1000).expand(batch, 1, -1, -1).contiguous()
    sinogram = FanBeamProjector(geometry)(image)
    return sinogram + 0.02 * torch.randn(sinogram.shape, generator=torch.Generator().manual_seed(seed))


def test_the_stages_are_what_they_say():
    network, sinogram = restorer(), scan()
    result = network.restore(sinogram)
    backproject = FilteredBackprojection(SCANNER)
    with torch.no_grad():
        torch.testing.assert_close(result.fbp, attenuation_to_hu(backproject(sinogram)))
        torch.testing.assert_close(result.prior, attenuation_to_hu(backproject(network.projection(sinogram))))
        torch.testing.assert_close(result.fused, network.fusion(result.fbp, result.prior))
        torch.testing.assert_close(result.restored, network.refiner(result.fused))
    assert set(result.seconds) == {"fbp", "prior", "fused", "restored"}
    assert all(seconds >= 0 for seconds in result.seconds.values())


def test_late_fusion_mixes_the_refined_image_with_the_low_dose_one():
    network = restorer(fusion_order="after")
    result = network.restore(scan())
    weight = network.fusion.weight(result.fbp, result.prior)
    with torch.no_grad():
        refined = network.refiner(result.fbp)
    torch.testing.assert_close(result.restored, weight * result.fbp + (1 - weight) * refined)


def test_output_fusion_weighs_the_fused_image_against_the_refined_one_by_the_noise_of_the_fbp():
    output_fusion = SelfCorrectingFusion()
    output_fusion.noise_25.fill_(5.0)
    output_fusion.gradient_25.fill_(1.0)
    network = restorer(output_fusion=output_fusion)
    result = network.restore(scan())
    with torch.no_grad():
        refined = network.refiner(result.fused)
    weight = output_fusion.weight(result.fbp, refined)
    torch.testing.assert_close(result.restored, weight * result.fused + (1 - weight) * refined)
    assert "output_fusion.noise_scale" in network.state_dict()


@pytest.mark.parametrize("photons", [None, 1e9])
def test_restored_to_the_object_is_nearer_to_it_than_the_backprojection_without_noise(photons):
    geometry = SCANNER.with_grid((96, 96), 350 / 96)
    x, y = (torch.from_numpy(c) for c in geometry.pixel_coordinates())
    # An edge that the cells can show: 14 mm each in the middle.
    disc = 1000 * torch.sigmoid((120 - torch.hypot(x[None], y[:, None])) / 8).float()[None, None] - 1000
    clean = FanBeamProjector(geometry)(hu_to_attenuation(disc))
    parts = {"projection": Unchanged(), "refiner": Unchanged(), "geometry": geometry}
    fusion = HeldOutFusion(strengths=(), wiener_strengths=(), group_strengths=())
    result, changed = (
        restorer(**parts, held_out_fusion=fusion, restore_to=aim).restore(clean, None, photons)
        for aim in ("backprojection", "object")
    )
    error = [(image - disc).square().mean().sqrt() for image in (result.restored, changed.restored)]
    assert error[1] < 0.8 * error[0]
    torch.testing.assert_close(changed.fused, result.fused)
    if photons is None:
        again = FilteredBackprojection(geometry)(FanBeamProjector(geometry)((result.restored / 1000 + 1) * 0.0192))
        torch.testing.assert_close(
            changed.restored, 2 * result.restored - attenuation_to_hu(again), rtol=1e-4, atol=0.05
        )


def test_what_lies_outside_the_field_of_view_is_no_part_of_the_objects_error(caplog):
    # Wider than the detector sees at the centre: its corners are noise.
    geometry = SCANNER.with_grid((96, 96), 1.5 * SCANNER.field_of_view_radius * 2 / 96)
    x, y = (torch.from_numpy(c) for c in geometry.pixel_coordinates())
    radius = torch.hypot(x[None], y[:, None])
    disc = 1000 * torch.sigmoid((120 - radius) / 8).float()[None, None] - 1000
    clean = FanBeamProjector(geometry)(hu_to_attenuation(disc))
    parts = {"projection": Unchanged(), "refiner": Unchanged(), "geometry": geometry}
    result, changed = (
        restorer(**parts, restore_to=aim).restore(clean).restored for aim in ("backprojection", "object")
    )
    outside = (radius >= geometry.field_of_view_radius)[None, None]
    torch.testing.assert_close(changed[outside], result[outside])
    inside = ~outside
    assert (changed - disc)[inside].square().mean() < 0.7 * (result - disc)[inside].square().mean()
    assert "truncated" not in caplog.text


def test_what_is_restored_to_has_a_name():
    with pytest.raises(ValueError, match="restore_to must be one of .*'objekt'"):
        restorer(restore_to="objekt")


def test_networks_that_change_nothing_leave_the_fbp():
    network = restorer(projection=Unchanged(), refiner=Unchanged())
    result = network.restore(scan())
    torch.testing.assert_close(result.restored, result.fbp)


def test_the_refiner_is_told_the_noise_that_stage_one_took_away():
    result = restorer(refiner=NoiseItself()).restore(scan())
    torch.testing.assert_close(result.restored, result.fbp - result.prior)


def test_the_refiner_may_not_change_the_broad_level():
    class Shifted(nn.Module):
        def forward(self, value, noise):
            return value + 30

    network = restorer(refiner=Shifted(), level_width=4.0)
    result = network.restore(scan())
    torch.testing.assert_close(result.restored, result.fused, rtol=1e-4, atol=0.01)
    free = restorer(refiner=Shifted()).restore(scan())
    torch.testing.assert_close(free.restored, free.fused + 30)
    with pytest.raises(ValueError, match="level_width"):
        restorer(level_width=-1.0)


def test_known_photons_take_the_bias_of_the_logarithm_out_of_both_images_but_not_out_of_the_fbp():
    network, sinogram = restorer(projection=Unchanged()), scan()
    known = network.restore(sinogram, None, 2000.0)
    torch.testing.assert_close(known.fbp, network.restore(sinogram).fbp)
    corrected = sinogram - log_bias(sinogram, 2000.0)
    torch.testing.assert_close(
        known.prior, attenuation_to_hu(FilteredBackprojection(SCANNER)(corrected)), rtol=1e-4, atol=0.01
    )
    torch.testing.assert_close(known.fused, known.prior)


def test_water_of_starved_rays_keeps_its_hu_where_photons_are_known():
    clean = scan() * 0
    x, y = (torch.from_numpy(c) for c in SCANNER.pixel_coordinates())
    disc = (x[None] ** 2 + y[:, None] ** 2 < 140**2).float()
    clean = FanBeamProjector(SCANNER)(hu_to_attenuation(disc * 1000 - 1000)[None, None].contiguous())
    truth = attenuation_to_hu(FilteredBackprojection(SCANNER)(clean))
    inside = (x[None] ** 2 + y[:, None] ** 2 < 90**2)[None, None]
    generator = torch.Generator().manual_seed(0)
    photons = 2000.0  # nine counts behind 28 cm of water
    scans = [simulate_low_dose(clean, photons, generator=generator) for _ in range(24)]
    # An ideal denoiser: the mean of many scans.
    mean = torch.stack(scans).mean(0)
    network = restorer(projection=Unchanged(), refiner=Unchanged())
    biased = (network.restore(mean).prior - truth)[inside].mean()
    corrected = (network.restore(mean, None, photons).prior - truth)[inside].mean()
    assert biased > 8
    assert abs(corrected) < biased / 8


def test_the_same_sinogram_gives_the_same_image():
    network, sinogram = restorer(), scan()
    assert torch.equal(network(sinogram), network(sinogram))


def test_a_slice_does_not_depend_on_its_batch():
    network, sinogram = restorer(), torch.cat([scan(seed=0), scan(seed=1)])
    torch.testing.assert_close(network(sinogram)[1:], network(sinogram[1:]), rtol=1e-4, atol=0.05)


@pytest.mark.parametrize("as_text", [False, True])
def test_a_scan_is_restored_in_its_own_geometry(as_text):
    other = SCANNER.with_grid((40, 24), 12.0)
    image = restorer()(scan(other), other.to_json() if as_text else other)
    assert image.shape == (1, 1, 40, 24)


def test_inference_keeps_no_gradient():
    assert not restorer()(scan().requires_grad_()).requires_grad


def test_the_state_dict_holds_weights_and_calibration_alone():
    network = restorer()
    before = set(network.state_dict())
    network(scan())
    assert set(network.state_dict()) == before
    calibration = {"fusion.noise_25", "fusion.gradient_25", "fusion.noise_scale"}
    assert before == {"projection.layer.weight", "refiner.layer.weight", *calibration}


def test_the_state_dict_is_the_same_for_every_scanner():
    other = restorer(geometry=SCANNER.with_grid((64, 64), 5.0))
    other.load_state_dict(restorer().state_dict(), strict=True)


def test_a_copy_restores_alike():
    network, sinogram = restorer(), scan()
    expected = network(sinogram)
    assert torch.equal(copy.deepcopy(network)(sinogram), expected)


def test_many_geometries_do_not_pile_up():
    network = restorer()
    for side in range(16, 24):
        geometry = SCANNER.with_grid((side, side), 15.0)
        network.restore(scan(geometry), geometry)
    assert len(network._operators) <= 4


@pytest.mark.parametrize(
    ("sinogram", "match"),
    [
        (torch.zeros(1, 1, 60, 47), r"\(B, 1, 60, 48\).*got \(1, 1, 60, 47\)"),
        (torch.zeros(60, 48), r"got \(60, 48\)"),
        (torch.zeros(1, 1, 60, 48, dtype=torch.float64), "float32, got torch.float64"),
        (torch.full((1, 1, 60, 48), float("nan")), "NaN or infinite values in 2880 of 2880"),
        (torch.full((1, 1, 60, 48), float("inf")), "NaN or infinite"),
        ([[0.0]], "got list"),
    ],
)
def test_a_sinogram_that_cannot_be_is_named(sinogram, match):
    with pytest.raises(ValueError, match=f"sinogram must be .*{match}"):
        restorer()(sinogram)


@pytest.mark.parametrize("geometry", ["{}", "no json", 3])
def test_a_geometry_that_is_none_is_named(geometry):
    with pytest.raises(ValueError, match="geometry"):
        restorer()(scan(), geometry)


@pytest.mark.parametrize(
    ("kwargs", "match"), [({"fusion_order": "never"}, "fusion_order"), ({"window": "box"}, "window")]
)
def test_arguments_that_cannot_be_are_named(kwargs, match):
    with pytest.raises(ValueError, match=match):
        restorer(**kwargs)


def test_an_uncalibrated_fusion_stops_the_restorer():
    with pytest.raises(ValueError, match="not calibrated"):
        restorer(fusion=SelfCorrectingFusion())(scan())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit:DeprecationWarning")
def test_a_recorded_restorer_restores_other_scans_alike():
    network = restorer().eval()
    recorded = torch.jit.trace(network, (scan(),), check_trace=False)
    torch.testing.assert_close(recorded(scan(seed=3)), network(scan(seed=3)), rtol=1e-4, atol=0.05)
