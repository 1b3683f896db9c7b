"""The scan as a value: checked once, the same after JSON."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from bundle.physics import FanBeamGeometry

from .phantoms import SCANS, scan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_to_center": 0}, "source_to_center must be positive"),
        ({"cell_pitch": -1.0}, "cell_pitch must be positive .* got -1.0"),
        ({"pixel_size": math.nan}, "pixel_size must be a finite number, got nan"),
        ({"source_to_detector": "1085"}, "source_to_detector must be a finite number, got '1085'"),
        ({"source_to_detector": 500.0}, "source_to_center < source_to_detector, got 595.0 and 500.0"),
        ({"start_angle": math.inf}, "start_angle must be a finite number"),
        ({"num_views": 0}, "num_views must be a whole number, 1 or more, got 0"),
        ({"num_cells": 1}, "num_cells must be a whole number, 2 or more, got 1"),
        ({"num_cells": 46.0}, "num_cells must be a whole number"),
        ({"image_shape": (32,)}, r"image_shape must be two whole numbers, got \(32,\)"),
        ({"image_shape": (32, 32.5)}, "image_shape must be two whole numbers"),
        ({"image_shape": (0, 32)}, r"image_shape must be positive, got \(0, 32\)"),
        ({"image_center": (0.0, math.nan)}, "image_center must be two numbers"),
        ({"detector": "curved"}, "detector must be one of .* got 'curved'"),
        ({"arc": 0.0}, "arc must not be 0"),
        ({"arc": 7.0}, "within one turn, got an arc of 7.0 rad"),
        ({"angles": (0.0, 1.0)}, "one entry a view, got 2 for num_views = 72"),
        ({"angles": "round"}, "angles must be a list of numbers in radians, got str"),
        ({"num_views": 3, "angles": (0.0, 2.0, 1.0)}, "strictly monotonic"),
        ({"num_views": 3, "angles": (0.0, math.nan, 1.0)}, "angles must be finite"),
        ({"num_views": 3, "angles": (0.0, 3.0, 2 * math.pi)}, "within one turn"),
    ],
)
def test_a_bad_value_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        scan(32, **changes)


def test_a_fan_of_45_degrees_is_too_wide():
    with pytest.raises(ValueError, match=r"narrower than 45 degrees .* got -45.* \(see cell_pitch, num_cells"):
        scan(32, num_cells=47, cell_pitch=1085.6 / 23)


def test_a_source_inside_the_image_is_refused():
    with pytest.raises(
        ValueError, match="run through the image: its corner lies 240.4 mm .* source_to_center is 240.0"
    ):
        scan(32, source_to_center=240.0)


@pytest.mark.parametrize("changes", SCANS.values(), ids=SCANS.keys())
def test_json_gives_the_same_scan_back(changes):
    geometry = scan(32, **changes)
    assert FanBeamGeometry.from_json(geometry.to_json()) == geometry


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON object"),
        ("[1, 2]", "must be a JSON object, got list"),
        (None, "no JSON object"),
        ('{"sod": 595}', r"unknown fields \['sod'\] and lacks \['cell_pitch', 'image_shape'"),
    ],
)
def test_json_of_something_else_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        FanBeamGeometry.from_json(text)


def test_lists_become_tuples_so_that_equal_scans_compare_equal():
    angles = np.linspace(0, 4, 72)
    listed = scan(32, image_shape=[32, 32], image_center=[0, 0], angles=angles.tolist())
    assert listed == scan(32, image_center=(0.0, 0.0), angles=angles)
    assert hash(listed) == hash(scan(32, angles=tuple(angles)))


def test_a_scan_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        scan(32).num_views = 3


def test_views_start_at_the_start_angle_and_leave_the_last_step_open():
    assert scan(32, num_views=4, start_angle=1.0, arc=2.0).view_angles == pytest.approx([1.0, 1.5, 2.0, 2.5])


def test_a_negative_arc_turns_clockwise():
    assert scan(32, num_views=4, arc=-math.pi).view_angles == pytest.approx(
        [0, -math.pi / 4, -math.pi / 2, -2.35619449]
    )


def test_listed_angles_replace_start_and_arc():
    geometry = scan(32, num_views=3, start_angle=5.0, arc=1.0, angles=(3.0, 2.0, 0.5))
    assert geometry.view_angles == pytest.approx([3.0, 2.0, 0.5])
    assert geometry.scan_arc == pytest.approx(-3.75)


@pytest.mark.parametrize("sense", [1, -1])
def test_uneven_angles_all_around_are_a_full_scan(sense):
    jitter = 0.4 * np.array([-1, *[0] * 70, 1])
    geometry = scan(32, angles=sense * (np.arange(72) + jitter) * 2 * math.pi / 72)
    assert geometry.is_full_scan and geometry.scan_arc == pytest.approx(sense * 2 * math.pi)


def test_a_gap_of_two_steps_is_no_full_scan():
    assert not scan(32, angles=np.arange(72) * 2 * math.pi / 73).is_full_scan
    assert not scan(32, arc=6.2).is_full_scan


def test_the_offset_moves_every_cell_along_the_detector():
    plain, shifted = scan(32), scan(32, detector_offset=0.25)
    assert shifted.cell_positions - plain.cell_positions == pytest.approx(0.25 * plain.cell_pitch)
    assert plain.cell_positions + plain.cell_positions[::-1] == pytest.approx(np.zeros(46))


@pytest.mark.parametrize(("detector", "edge"), [("flat", math.atan(0.2)), ("equiangular", 0.2)])
def test_the_field_of_view_touches_the_outermost_ray(detector, edge):
    geometry = scan(32, detector=detector, num_cells=100, cell_pitch=0.4 * 1085.6 / 100)
    assert geometry.field_of_view_radius == pytest.approx(595 * math.sin(edge))


def test_a_detector_beside_the_central_ray_has_no_field_of_view():
    assert scan(32, detector_offset=30.0).field_of_view_radius == 0


def test_another_grid_leaves_the_scanner_alone():
    geometry = scan(32, detector_offset=0.25)
    other = geometry.with_grid([16, 24], 2.0)
    assert (other.image_shape, other.pixel_size) == ((16, 24), 2.0)
    assert other.with_grid(geometry.image_shape, geometry.pixel_size) == geometry


def test_pixels_lie_evenly_around_the_image_centre():
    x, y = scan(32, image_shape=(2, 3), pixel_size=2.0, image_center=(10.0, -1.0)).pixel_coordinates()
    assert x == pytest.approx([8, 10, 12]) and y == pytest.approx([-2, 0])


def test_json_holds_plain_fields_only():
    fields = json.loads(scan(32).to_json())
    assert fields["image_shape"] == [32, 32] and fields["detector"] == "flat" and fields["angles"] is None
