"""Phantoms of ellipses: picture and line integrals are those of one and the same object."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bundle.physics import (
    MU_WATER,
    Ellipse,
    FanBeamProjector,
    FilteredBackprojection,
    Phantom,
    abdomen_phantom,
    attenuation_to_hu,
    chest_phantom,
    hu_to_attenuation,
    insert_phantom,
    low_contrast_phantom,
    mixed_phantom,
    rod_places,
)
from bundle.physics.phantoms import LOW_CONTRAST_RODS

from .phantoms import SHEPP_LOGAN, ellipse_image, ellipse_sinogram, half_width, rays, rms, scan

BODIES = [abdomen_phantom, chest_phantom]


@functools.cache
def drawn(body, seed: int = 0) -> Phantom:
    return body(seed)


def shepp_logan(geometry) -> Phantom:
    scale = half_width(geometry)
    ellipses = [
        Ellipse(u * scale, v * scale, a * scale, b * scale, 1000 * value, math.radians(turn))
        for u, v, a, b, turn, value in SHEPP_LOGAN
    ]
    return Phantom(name="head", ellipses=tuple(ellipses))


def test_line_integrals_are_those_of_the_closed_form_on_every_scan(geometry):
    expected = ellipse_sinogram(geometry)
    assert rms(shepp_logan(geometry).line_integrals(geometry) - expected) < 1e-6 * rms(expected)


def test_the_picture_is_the_mean_of_every_pixel():
    geometry = scan(32)
    expected = attenuation_to_hu(ellipse_image(geometry, samples=64))
    assert (shepp_logan(geometry).image_hu(geometry, samples=64) - expected).abs().max() < 5


def test_a_soft_edge_has_the_line_integrals_of_its_profile():
    """Against sums along the rays of: 1 inside, and linear in the squared radius down to 0 over the edge."""
    e = Ellipse(20, -30, 50, 25, 1000.0, turn=0.5, edge=10.0)
    geometry = scan(16)
    source, direction = rays(geometry)
    steps = np.linspace(300, 900, 6001)
    points = source[..., None, :] + direction[..., None, :] * steps[:, None]
    radius = (((points - (e.x, e.y)) @ e.to_circle().T) ** 2).sum(-1)
    inner, outer = (1 - e.softness) ** 2, (1 + e.softness) ** 2
    expected = np.clip((outer - radius) / (outer - inner), 0, 1).sum(-1) * (steps[1] - steps[0]) * MU_WATER
    found = Phantom(name="one", ellipses=(e,)).line_integrals(geometry)[0, 0].numpy()
    assert np.abs(found - expected).max() < 1e-4 * expected.max()


@pytest.mark.parametrize("edge", [0.0, 6.0])
def test_coarse_pixels_are_means_of_fine_ones(edge):
    phantom = Phantom(name="one", ellipses=(Ellipse(3, -8, 60, 21, 1000.0, turn=0.7, edge=edge),))
    coarse, fine = phantom.image_hu(scan(16), samples=8), phantom.image_hu(scan(32), samples=4)
    torch.testing.assert_close(coarse, F.avg_pool2d(fine, 2), atol=1e-3, rtol=0)


@pytest.mark.parametrize("edge", [0.0, 8.0])
def test_the_picture_holds_the_area(edge):
    """Of radii R and r of the edge, the area is pi a b (R^2 + r^2) / 2."""
    e = Ellipse(3, -8, 60, 21, 1000.0, turn=0.7, edge=edge)
    geometry = scan(64)
    sum_hu = (Phantom(name="one", ellipses=(e,)).image_hu(geometry).double() + 1000).sum() * geometry.pixel_size**2
    area = math.pi * e.half_x * e.half_y * (1 + e.softness**2)
    assert sum_hu.item() == pytest.approx(1000 * area, rel=1e-3)


def test_reconstructing_the_line_integrals_gives_the_picture():
    geometry = scan(96)
    phantom = Phantom(
        name="soft", ellipses=(Ellipse(10, 5, 80, 60, 1000.0, 0.3, 50), Ellipse(0, 0, 20, 20, 200.0, 0, 30))
    )
    found = attenuation_to_hu(FilteredBackprojection(geometry)(phantom.line_integrals(geometry)))
    assert rms(found - phantom.image_hu(geometry)) < 5


class TestTexture:
    around = Ellipse(0, 0, 120, 120, 1000.0, edge=40)
    phantom = Phantom(name="texture", ellipses=(around,), texture=(Ellipse(10, 0, 80, 80, 20.0, edge=20),), seed=3)

    def test_line_integrals_are_those_of_a_finely_pixelled_picture(self):
        geometry = scan(32)
        fine = geometry.with_grid((680, 680), 0.5)
        expected = FanBeamProjector(fine)(hu_to_attenuation(self.phantom.image_hu(fine)))
        found = self.phantom.line_integrals(geometry)
        plain = dataclasses.replace(self.phantom, texture=()).line_integrals(geometry)
        assert rms(found - expected) < 0.02 * rms(found - plain)

    def test_it_is_as_strong_as_asked_where_asked(self):
        geometry = scan(64).with_grid((256, 256), 1.2)
        texture = self.phantom.image_hu(geometry) - dataclasses.replace(self.phantom, texture=()).image_hu(geometry)
        x, y = (torch.from_numpy(c) for c in geometry.pixel_coordinates())
        radius = torch.hypot(x[None] - 10, y[:, None])
        assert texture[0, 0][radius < 60].std().item() == pytest.approx(20, rel=0.3)
        assert texture[0, 0][radius > 95].abs().max() == 0

    def test_it_belongs_to_the_seed(self):
        geometry = scan(16)
        again, other = (dataclasses.replace(self.phantom, seed=s).image_hu(geometry) for s in (3, 4))
        assert torch.equal(again, self.phantom.image_hu(geometry)) and not torch.equal(other, again)

    def test_it_moves_with_the_object(self):
        geometry = scan(32)
        step = geometry.pixel_size
        moved = self.phantom.moved(2 * step, -step)
        expected = self.phantom.image_hu(geometry).roll((-1, 2), (2, 3))
        torch.testing.assert_close(
            moved.image_hu(geometry)[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=0.1, rtol=0
        )
        fine = geometry.with_grid((680, 680), 0.5)
        projected = FanBeamProjector(fine)(hu_to_attenuation(moved.image_hu(fine)))
        assert rms(moved.line_integrals(geometry) - projected) < 1e-3 * rms(projected)

    def test_beyond_its_grid_it_is_refused(self):
        with pytest.raises(ValueError, match="within 192"):
            dataclasses.replace(self.phantom, texture=(Ellipse(150, 0, 80, 80, 5.0),)).image_hu(scan(16))


@pytest.mark.parametrize("body", BODIES)
class TestBodies:
    def test_a_seed_is_one_object(self, body):
        assert body(1) == drawn(body, 1) != drawn(body, 2)

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_nothing_attenuates_less_than_air_nor_more_than_bone(self, body, seed):
        image = drawn(body, seed).image_hu(scan(32).with_grid((256, 256), 1.4))
        assert image.min() > -1000.5 and 400 < image.max() < 750

    def test_it_lies_in_the_grid_of_350_mm_with_air_around(self, body):
        image = drawn(body).image_hu(scan(32).with_grid((128, 128), 350 / 128))[0, 0]
        assert max(image[0].max(), image[-1].max(), image[:, 0].max(), image[:, -1].max()) == -1000

    def test_materials_add_up_to_the_whole(self, body):
        geometry, phantom = scan(32), drawn(body)
        parts = [phantom.line_integrals(geometry, m) for m in ("water", "bone", "metal")]
        torch.testing.assert_close(sum(parts), phantom.line_integrals(geometry), atol=1e-5, rtol=0)
        assert parts[1].max() > 0.2 and parts[2].max() == 0

    def test_lesions_can_be_found(self, body):
        assert 3 <= len(drawn(body).named("lesion")) <= 10


class TestMixed:
    """What is trained on: anything but anatomy."""

    @pytest.mark.parametrize("seed", range(6))
    def test_nothing_attenuates_less_than_air_nor_more_than_dense_bone(self, seed):
        image = mixed_phantom(seed).image_hu(scan(32).with_grid((256, 256), 1.4))
        assert image.min() > -1060 and 100 < image.max() < 1600

    @pytest.mark.parametrize("seed", range(6))
    def test_it_lies_in_the_grid_of_the_smallest_pixels_with_air_around(self, seed):
        image = mixed_phantom(seed).image_hu(scan(32).with_grid((128, 128), 512 * 0.68 / 128))[0, 0]
        assert max(image[0].max(), image[-1].max(), image[:, 0].max(), image[:, -1].max()) == -1000

    def test_a_seed_is_one_object(self):
        assert mixed_phantom(1) == mixed_phantom(1) != mixed_phantom(2)

    def test_there_are_sharp_and_soft_edges_small_and_faint_things(self):
        ellipses = [e for seed in range(6) for e in mixed_phantom(seed).ellipses]
        sharp = sum(e.edge == 0 for e in ellipses) / len(ellipses)
        assert 0.3 < sharp < 0.7
        assert sum(abs(e.hu) < 20 for e in ellipses) > 60 and sum(min(e.half_x, e.half_y) < 2 for e in ellipses) > 100


def test_a_rod_raises_its_place_by_its_contrast():
    with_rods, without = low_contrast_phantom(), low_contrast_phantom(rods=())
    geometry = scan(32).with_grid((680, 680), 0.3)
    difference = (with_rods.image_hu(geometry) - without.image_hu(geometry))[0, 0]
    for (x, y), contrast in zip(rod_places(), (14.0, 7.0, 5.0, 3.0) * 2):
        assert difference[_pixel(y), _pixel(x)].item() == pytest.approx(contrast, abs=1e-3)
    # Rods of 3 to 10 mm, twice: nothing else differs.
    area = sum(math.pi * (diameter / 2) ** 2 * contrast for diameter, contrast in LOW_CONTRAST_RODS)
    assert difference.sum().item() * 0.3**2 == pytest.approx(2 * area, rel=1e-3)


def _pixel(position: float) -> int:
    return round(position / 0.3 + 339.5)


def test_inserts_have_their_contrast_to_water():
    phantom = insert_phantom((350.0, -1000.0), diameter=20)
    assert [e.hu for e in phantom.named("insert +350 HU")] == [350.0]
    e = phantom.named("insert -1000 HU")[0]
    at = dataclasses.replace(scan(16).with_grid((4, 4), 1.0), image_center=(e.x, e.y))
    assert phantom.image_hu(at).mean().item() == pytest.approx(-1000, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"half_x": 0.0}, "half_x and half_y must be positive"),
        ({"edge": 41.0}, "edge must be from 0"),
        ({"edge": -1.0}, "edge must be from 0"),
        ({"x": math.nan}, "x must be a finite number"),
        ({"material": "gold"}, "material must be one of"),
    ],
)
def test_an_ellipse_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Ellipse(**({"x": 0.0, "y": 0.0, "half_x": 20.0, "half_y": 30.0, "hu": 1.0} | change))


def test_what_is_not_there_is_named():
    phantom = low_contrast_phantom()
    with pytest.raises(ValueError, match="no ellipse 'rod 4 mm'.*rod 3 mm"):
        phantom.named("rod 4 mm")
    with pytest.raises(ValueError, match="material must be one of"):
        phantom.line_integrals(scan(16), "gold")
    with pytest.raises(ValueError, match="samples must be 1"):
        phantom.image_hu(scan(16), samples=0)
    with pytest.raises(ValueError, match="source would run through"):
        phantom.moved(550, 0).line_integrals(scan(16))
