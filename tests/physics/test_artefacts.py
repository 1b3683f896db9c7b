"""Each artefact keeps its law."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from bundle.physics import (
    Ellipse,
    FanBeamGeometry,
    Phantom,
    TwoEnergyBeam,
    breathe,
    detector_gain,
    metal_inserts,
    move_between_views,
    scan_with_two_energies,
    shoulders,
    truncate_detector,
)

from .phantoms import scan

BEAM = TwoEnergyBeam()
BODY = Phantom(name="body", ellipses=(Ellipse(5, -10, 120, 90, 1000.0), Ellipse(30, 0, 15, 15, 800.0, material="bone")))


def thickness() -> torch.Tensor:
    return torch.linspace(0, 12, 200, dtype=torch.float64)


@pytest.mark.parametrize("material", ["water", "bone", "metal"])
class TestTwoEnergies:
    def test_line_integrals_are_concave_in_thickness(self, material):
        assert BEAM.harden({material: thickness()}).diff().diff().max() < 0

    def test_a_thin_layer_is_seen_as_it_is(self, material):
        thin = torch.tensor([1e-4], dtype=torch.float64)
        assert BEAM.harden({material: thin}).item() == pytest.approx(1e-4, rel=1e-4)

    def test_behind_much_material_only_the_higher_energy_is_left(self, material):
        slope = BEAM.harden({material: torch.tensor([400.0, 401.0], dtype=torch.float64)}).diff().item()
        assert slope == pytest.approx(BEAM.high(material), rel=1e-6)

    def test_one_energy_hardens_nothing(self, material):
        one = TwoEnergyBeam(low={"water": 1.0, "bone": 1.0, "metal": 1.0})
        torch.testing.assert_close(one.harden({material: thickness()}), thickness())


def test_correcting_for_water_undoes_the_hardening_of_water():
    torch.testing.assert_close(BEAM.correct_for_water(BEAM.harden({"water": thickness()})), thickness())


def test_correcting_for_water_leaves_values_below_zero():
    assert BEAM.correct_for_water(torch.tensor([-0.01])).item() == pytest.approx(-0.01)


def test_bone_behind_water_hardens_more_than_either_alone():
    water, bone = torch.tensor(4.0), torch.tensor(2.0)
    both = BEAM.harden({"water": water, "bone": bone})
    assert both < BEAM.harden({"water": water}) + BEAM.harden({"bone": bone})
    assert BEAM.correct_for_water(both) < water + bone


def test_a_scan_of_water_alone_is_corrected_to_its_line_integrals():
    geometry = scan(16)
    water = dataclasses.replace(BODY, ellipses=BODY.ellipses[:1])
    exact = water.line_integrals(geometry)
    torch.testing.assert_close(scan_with_two_energies(water, geometry, BEAM), exact, atol=1e-5, rtol=1e-5)
    assert scan_with_two_energies(water, geometry, BEAM, corrected=False).max() < exact.max() - 0.01


def test_two_metal_inserts_starve_the_rays_through_both():
    geometry = scan(16, num_cells=368, cell_pitch=2.6)
    metal = BODY.with_ellipses(*metal_inserts([(-40, 0), (40, 0)], radius=8))
    behind = metal.line_integrals(geometry, "metal")
    assert behind.max() == pytest.approx(4 * 8 * 11 * 0.0192, rel=0.05)
    hardened = scan_with_two_energies(metal, geometry, BEAM)
    assert hardened.max() > 5 and hardened.max() < metal.line_integrals(geometry).max() - 1


def test_shoulders_lengthen_rays_from_side_to_side_and_leave_the_grid():
    geometry = scan(16)
    wide = BODY.with_ellipses(*shoulders(inner=175, thickness=80))
    assert torch.equal(wide.image_hu(geometry), BODY.image_hu(geometry))
    longer = (wide.line_integrals(geometry) - BODY.line_integrals(geometry))[0, 0]
    quarter = geometry.num_views // 4
    middle = slice(geometry.num_cells // 2 - 2, geometry.num_cells // 2 + 2)
    assert longer[quarter].max() > 2 and longer[0, middle].abs().max() == 0


class TestMotion:
    def test_none_is_the_identity(self):
        still = BODY.line_integrals(scan(16))
        assert torch.equal(breathe(BODY, scan(16), (0.0, 0.0)), still)

    def test_every_view_sees_the_object_where_it_is(self):
        geometry = scan(16)
        states = [BODY.moved(0, y).line_integrals(geometry) for y in (0.0, 7.0)]
        when = torch.arange(geometry.num_views) // 20 % 2
        moving = move_between_views(states, when)
        for view, state in enumerate(when.tolist()):
            assert torch.equal(moving[0, 0, view], states[state][0, 0, view])

    def test_breathing_starts_at_rest_and_reaches_its_amplitude(self):
        geometry = scan(16)
        moving = breathe(BODY, geometry, (3.0, 6.0), periods=1, num_states=5)
        quarter = geometry.num_views // 4
        assert torch.equal(moving[..., 0, :], BODY.line_integrals(geometry)[..., 0, :])
        assert torch.equal(moving[..., quarter, :], BODY.moved(3.0, 6.0).line_integrals(geometry)[..., quarter, :])

    def test_bad_input_is_named(self):
        state = torch.zeros(1, 1, 4, 3)
        with pytest.raises(ValueError, match="states must be sinograms of one shape"):
            move_between_views([state, state[..., :2]], torch.zeros(4, dtype=torch.long))
        with pytest.raises(ValueError, match="4 whole numbers"):
            move_between_views([state], torch.zeros(3, dtype=torch.long))
        with pytest.raises(ValueError, match="from 0 to 0, got 0 to 1"):
            move_between_views([state], torch.tensor([0, 1, 0, 0]))
        with pytest.raises(ValueError, match="num_states must be odd"):
            breathe(BODY, scan(16), (1.0, 0.0), num_states=4)


@pytest.mark.parametrize("lost", [6, 7])
def test_cells_that_stay_keep_their_rays(lost):
    geometry = scan(16, detector_offset=0.25)
    full = BODY.line_integrals(geometry)
    sinogram, kept = truncate_detector(full, geometry, geometry.num_cells - lost)
    assert isinstance(kept, FanBeamGeometry) and sinogram.shape[-1] == kept.num_cells
    torch.testing.assert_close(BODY.line_integrals(kept), sinogram, atol=1e-6, rtol=0)


def test_a_detector_cannot_be_made_longer():
    with pytest.raises(ValueError, match="num_cells must be from 2 to 5, got 6"):
        truncate_detector(torch.zeros(1, 1, 4, 5), scan(16, num_cells=5), 6)


class TestGain:
    def test_it_shifts_line_integrals_of_its_cell_by_ln_gain(self):
        p = torch.rand(2, 1, 6, 5, generator=torch.Generator().manual_seed(0))
        shift = detector_gain(p, [3], 1.2) - p
        torch.testing.assert_close(shift[..., 3], torch.full((2, 1, 6), -math.log(1.2)))
        assert shift[..., [0, 1, 2, 4]].abs().max() == 0

    def test_one_is_the_identity(self):
        p = torch.rand(1, 1, 4, 5)
        assert torch.equal(detector_gain(p, [0, 4], 1.0), p)

    @pytest.mark.parametrize(("cells", "gain"), [([5], 1.1), ([-1], 1.1), ([0], 0.0)])
    def test_what_cannot_be_is_refused(self, cells, gain):
        with pytest.raises(ValueError, match="must be"):
            detector_gain(torch.zeros(1, 1, 4, 5), cells, gain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0.0}, "share must be between"),
        ({"low": {"water": 1.1}}, "no ratio for 'bone'"),
        ({"low": {"water": 1.1, "bone": 1.2, "metal": 2.0}}, "low ratio of 'metal'"),
    ],
)
def test_a_beam_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TwoEnergyBeam(**settings)


def test_an_unknown_material_is_refused():
    with pytest.raises(ValueError, match="parts must be by material"):
        BEAM.harden({"gold": torch.ones(1)})
