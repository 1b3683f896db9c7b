"""Each alarm is raised by its own fault, and by no sound scan."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import pytest
import torch

from bundle.evaluation import LIMITS, check_restoration, measure_restoration
from bundle.physics import (
    FanBeamGeometry,
    FanBeamProjector,
    FilteredBackprojection,
    attenuation_to_hu,
    hu_to_attenuation,
    simulate_low_dose,
)

from .phantoms import blurred, noise, organs

PHOTONS, SIZE = 1e6, 144
GEOMETRY = FanBeamGeometry(
    source_to_center=595.0,
    source_to_detector=1085.6,
    num_views=180,
    num_cells=240,
    cell_pitch=2.4,
    pixel_size=1.6,
    image_shape=(SIZE, SIZE),
)


def patient(shift: float = 0.0, metal: bool = False) -> torch.Tensor:
    """A body off centre with two lungs and a spine, shifted along the columns by mm, ``(1, 1, H, W)``, HU."""
    row, column = (GEOMETRY.pixel_size * (torch.arange(float(SIZE)) - (SIZE - 1) / 2) for _ in "rc")
    row, column = row[:, None] - 5, column[None] + 6 - shift
    image = torch.where((column / 95) ** 2 + (row / 70) ** 2 < 1, 40.0, -1000.0)
    for side in (-1, 1):
        image = torch.where(((column - 45 * side) / 25) ** 2 + ((row + 8) / 35) ** 2 < 1, -800.0, image)
    image = torch.where(column**2 + (row - 40) ** 2 < 16**2, 700.0, image)
    if metal:
        image = torch.where(column**2 + (row + 25) ** 2 < 6**2, 12000.0, image)
    return image[None, None]


@functools.cache
def scan(shift: float = 0.0, metal: bool = False) -> torch.Tensor:
    """Noise-free line integrals, ``(1, 1, V, D)``."""
    return FanBeamProjector(GEOMETRY)(hu_to_attenuation(patient(shift, metal)))


def noisy(line_integrals: torch.Tensor, photons: float = PHOTONS) -> torch.Tensor:
    return simulate_low_dose(line_integrals, photons, generator=torch.Generator().manual_seed(0))


def image(sinogram: torch.Tensor) -> torch.Tensor:
    return attenuation_to_hu(FilteredBackprojection(GEOMETRY)(sinogram))


def raised(sinogram=None, restored=None, photons=PHOTONS, fbp=None):
    sinogram = noisy(scan()) if sinogram is None else sinogram
    restored = image(scan()) if restored is None else restored
    fbp = image(sinogram) if fbp is None else fbp
    return {a.name: a for a in check_restoration(fbp, restored, sinogram, photons, GEOMETRY)}


def test_a_sound_restoration_of_a_sound_scan_raises_nothing():
    assert raised() == {}


def test_every_check_is_measured_where_its_input_is_there():
    measured = measure_restoration(image(noisy(scan())), image(scan()), noisy(scan()), PHOTONS, GEOMETRY)
    assert [a.name for a in measured] == list(LIMITS)
    assert all(a.n == 1 and not a.raised and math.isfinite(a.value) for a in measured)


def test_images_alone_are_enough_for_the_checks_of_images():
    names = [a.name for a in measure_restoration(image(noisy(scan())), image(scan()))]
    assert names == [n for n in LIMITS if n.startswith("hu_") or n in ("residual_anatomy", "metal")]


def test_edges_taken_away_are_an_alarm():
    fbp = organs() + noise(20.0, organs())
    (alarm,) = check_restoration(fbp, blurred(organs(), 0.6))
    assert alarm.name == "residual_anatomy" and alarm.value > alarm.limit and "%" in alarm.text
    assert check_restoration(fbp, organs()) == []


@pytest.mark.parametrize(("tissue", "shift"), [("soft_tissue", -9.0), ("lung", 25.0)])
def test_a_tissue_that_drifts_is_an_alarm_that_names_it(tissue, shift):
    part = {"soft_tissue": 40.0, "lung": -800.0}[tissue]
    alarms = raised(restored=torch.where(patient() == part, image(scan()) + shift, image(scan())))
    assert alarms[f"hu_drift_{tissue}"].value == pytest.approx(shift, abs=2)
    assert tissue.replace("_", " ") in alarms[f"hu_drift_{tissue}"].text


def test_starved_rays_are_an_alarm_that_needs_the_number_of_photons():
    few = noisy(scan(), 300.0)
    assert raised(few, photons=300.0)["photon_starvation"].value > 0.05
    assert "photon_starvation" not in raised(few, photons=None)


def test_rays_without_a_signal_are_told_by_their_common_value():
    starved = scan().clamp(max=float(scan().max()) * 0.9)
    assert "floored_rays" in raised(starved)


def test_a_body_wider_than_the_detector_is_an_alarm():
    assert raised(scan().roll(80, -1))["truncation"].value > 0.05


def test_metal_is_an_alarm():
    alarm = raised(noisy(scan(metal=True)), restored=image(scan(metal=True)))["metal"]
    assert alarm.value > 2500 and "HU" in alarm.text


def test_hu_that_no_tissue_has_are_an_alarm():
    strange = image(scan()).clone()
    strange[..., 40:50, 40:50] = -1500
    assert "hu_range" in raised(restored=strange)


def test_a_cell_that_is_off_in_all_views_is_an_alarm():
    striped = noisy(scan()).clone()
    striped[..., 110] += 0.03
    assert raised(striped)["stripes"].value == pytest.approx(0.03, rel=0.2)


def test_a_centred_cylinder_has_no_stripes():
    axis = torch.linspace(-1, 1, SIZE)
    cylinder = torch.where(axis[:, None] ** 2 + axis**2 < 0.7**2, 0.0, -1000.0)[None, None]
    line_integrals = FanBeamProjector(GEOMETRY)(hu_to_attenuation(cylinder))
    assert "stripes" not in raised(noisy(line_integrals))


def test_a_patient_who_moves_during_the_scan_is_an_alarm():
    moved = scan().clone()
    moved[..., 90:, :] = scan(shift=8.0)[..., 90:, :]
    alarm = raised(noisy(moved))["motion"]
    assert alarm.value > 2 * measure(noisy(scan()), "motion")


def test_motion_is_told_whichever_way_the_gantry_turns():
    backwards = dataclasses.replace(GEOMETRY, arc=-GEOMETRY.arc)
    sinogram = FanBeamProjector(backwards)(hu_to_attenuation(patient()))
    still = check_restoration(image(scan()), image(scan()), sinogram, geometry=backwards)
    assert "motion" not in [a.name for a in still]


def measure(sinogram: torch.Tensor, name: str) -> float:
    (alarm,) = [
        a for a in measure_restoration(image(sinogram), image(scan()), sinogram, PHOTONS, GEOMETRY) if a.name == name
    ]
    return alarm.value


def test_an_alarm_names_its_slices_of_the_stack():
    sinograms = torch.cat([noisy(scan()), noisy(scan(metal=True))])
    fbp, restored = (torch.cat([image(a), image(b)])[:, 0] for a, b in ((sinograms[:1], sinograms[1:]),) * 2)
    metal = {a.name: a for a in check_restoration(fbp, restored, sinograms)}["metal"]
    assert (metal.slices, metal.n) == ((1,), 2)
    assert json.loads(json.dumps(dataclasses.asdict(metal)))["limit"] == LIMITS["metal"]


def test_limits_can_be_set_and_left_out():
    arguments = image(noisy(scan())), image(scan())
    (alarm,) = check_restoration(*arguments, limits={"metal": 100.0})
    assert (alarm.name, alarm.limit) == ("metal", 100.0)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"limits": {"rings": 1.0}}, "rings"),
        ({"incident_photons": 0.0}, "incident_photons"),
        ({"sinogram": torch.zeros(3, 180, 240)}, "1 slices"),
        ({"restored": torch.zeros(1, 32, 32)}, r"\(1, 144, 144\) and \(1, 32, 32\)"),
    ],
)
def test_input_that_cannot_be_is_named(changes, match):
    arguments = {"fbp": image(scan()), "restored": image(scan()), "sinogram": scan(), "incident_photons": 1e5}
    with pytest.raises(ValueError, match=match):
        check_restoration(**(arguments | changes))
