"""Projection against line integrals known in closed form, and the laws of a linear operator and its adjoint."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from bundle.physics import MU_WATER, FanBeamGeometry, FanBeamProjector
from bundle.physics.backends import make_backend
from bundle.physics.backends.numba_cpu import NumbaBackend
from bundle.physics.backends.rays import ray_frames

from .phantoms import ellipse_image, ellipse_sinogram, gaussian_image, gaussian_sinogram, half_width, rms, scan

DISC = np.array([(0.1, -0.2, 0.5, 0.5, 0, 1.0)])


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Non-negative, as images and sinograms are: an adjoint off by 1 % then shows as 1e-2."""
    return torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def image_of(geometry: FanBeamGeometry, slices: int = 1, **options) -> Tensor:
    return draw(slices, 1, *geometry.image_shape, **options)


def sinogram_of(geometry: FanBeamGeometry, slices: int = 1, **options) -> Tensor:
    return draw(slices, 1, *geometry.sinogram_shape, seed=1, **options)


def relative(value: Tensor, expected: Tensor) -> float:
    return ((value - expected).abs().max() / expected.abs().max()).item()


def mismatch(apply, transpose, x: Tensor, y: Tensor) -> float:
    """Relative gap between <A x, y> and <x, A' y>."""
    left, right = (apply(x).double() * y.double()).sum(), (x.double() * transpose(y).double()).sum()
    return abs(left / right - 1).item()


# Against closed forms


@pytest.mark.parametrize(
    "changes", [{}, {"detector": "equiangular"}, {"detector_offset": 0.25}, {"arc": -4.3, "start_angle": 1.0}], ids=str
)
def test_gaussians_have_their_exact_line_integrals(changes):
    geometry = scan(256, **changes)
    exact = gaussian_sinogram(geometry)
    projected = FanBeamProjector(geometry, "numba")(gaussian_image(geometry).float())
    assert rms(projected - exact) < 2e-4 * rms(exact)


def test_gaussians_on_a_coarse_grid(geometry, backend):
    x, y = geometry.image_center
    broad = np.array([(0.1, -0.15, 0.2, 1.0), (-0.1, 0.1, 0.18, 0.5)])
    broad[:, :2] += np.array([x, y]) / half_width(geometry)
    exact = gaussian_sinogram(geometry, broad)
    projected = FanBeamProjector(geometry, backend)(gaussian_image(geometry, broad))
    assert rms(projected - exact) < 1e-2 * rms(exact)


@pytest.mark.parametrize("detector", ["flat", "equiangular"])
def test_a_disc_has_chords_as_line_integrals(detector, backend):
    geometry = scan(64, detector=detector)
    exact = ellipse_sinogram(geometry, DISC)
    projected = FanBeamProjector(geometry, backend)(ellipse_image(geometry, DISC))
    # Pixels blur the rim; the area under it stays.
    assert rms(projected - exact) < 2e-2 * rms(exact)
    assert projected.sum().item() == pytest.approx(exact.sum().item(), rel=1e-3)


def test_the_central_ray_sees_the_diameter(backend):
    geometry = scan(64, num_cells=91, num_views=8)
    disc = np.array([(0.0, 0.0, 0.5, 0.5, 0, 1.0)])
    centre = FanBeamProjector(geometry, backend)(ellipse_image(geometry, disc))[0, 0, :, 45]
    assert torch.allclose(centre, torch.full_like(centre, 170 * MU_WATER), rtol=0.01)


@pytest.mark.parametrize("detector", ["flat", "equiangular"])
def test_a_point_is_seen_where_geometry_says(detector, backend):
    """Source at (0, -d), cells along +x; a quarter turn later source at (d, 0), cells along +y; and so on."""
    geometry = scan(64, num_views=4, detector=detector)
    image = torch.zeros(1, 1, 64, 64)
    column, row = 49, 40
    image[0, 0, row, column] = 1
    x, y = (axis[k] for axis, k in zip(geometry.pixel_coordinates(), (column, row)))
    d = geometry.source_to_center
    angle = np.arctan([x / (d + y), y / (d - x), -x / (d - y), -y / (d + x)])
    position = geometry.source_to_detector * (np.tan(angle) if detector == "flat" else angle)
    sinogram = FanBeamProjector(geometry, backend)(image)[0, 0].numpy()
    seen = (sinogram * geometry.cell_positions).sum(1) / sinogram.sum(1)
    assert seen == pytest.approx(position, abs=0.2 * geometry.cell_pitch)


def test_turning_the_image_turns_the_scan(backend):
    geometry = scan(32, detector_offset=0.25)
    image = image_of(geometry, dtype=torch.float64)
    project = FanBeamProjector(geometry, backend)
    # Rows grow with +y: rot90 from rows to columns takes +x to +y.
    turned = project(torch.rot90(image, -1, (2, 3)))
    assert relative(turned, torch.roll(project(image), geometry.num_views // 4, 2)) < 1e-12


# Laws


def test_the_adjoint_is_exact(geometry, backend):
    project = FanBeamProjector(geometry, backend)
    assert mismatch(project, project.adjoint, image_of(geometry, 3), sinogram_of(geometry, 3)) < 1e-5
    double = {"dtype": torch.float64}
    assert mismatch(project, project.adjoint, image_of(geometry, **double), sinogram_of(geometry, **double)) < 1e-12


def test_backprojection_has_an_exact_transpose(geometry, backend):
    maps = make_backend(backend, geometry, torch.device("cpu"))
    image, sinogram = image_of(geometry, 3)[:, 0], sinogram_of(geometry, 3)[:, 0]
    assert mismatch(maps.backproject, maps.backproject_transpose, sinogram, image) < 1e-5


@pytest.mark.parametrize("slices", [1, 3, 8])
def test_backends_agree(geometry, slices):
    image, sinogram = image_of(geometry, slices)[:, 0], sinogram_of(geometry, slices)[:, 0]
    numba, plain = (make_backend(name, geometry, torch.device("cpu")) for name in ("numba", "torch"))
    assert relative(numba.project(image), plain.project(image)) < 1e-5
    assert relative(numba.project_transpose(sinogram), plain.project_transpose(sinogram)) < 1e-5
    assert relative(numba.backproject(sinogram), plain.backproject(sinogram)) < 1e-5
    assert relative(numba.backproject_transpose(image), plain.backproject_transpose(image)) < 1e-5


def test_the_matrix_of_the_adjoint_is_the_transpose(backend):
    geometry = scan(5, num_views=7, num_cells=8, image_shape=(5, 6))
    project = FanBeamProjector(geometry, backend)
    forward = project(torch.eye(30, dtype=torch.float64).view(30, 1, 5, 6)).view(30, 56)
    adjoint = project.adjoint(torch.eye(56, dtype=torch.float64).view(56, 1, 7, 8)).view(56, 30)
    assert relative(adjoint, forward.T) < 1e-12


@pytest.mark.parametrize("slices", [1, 3, 8])
def test_a_batch_equals_its_slices(geometry, backend, slices):
    project = FanBeamProjector(geometry, backend)
    image, sinogram = image_of(geometry, slices), sinogram_of(geometry, slices)
    assert relative(project(image), torch.cat([project(one[None]) for one in image])) < 1e-5
    assert relative(project.adjoint(sinogram), torch.cat([project.adjoint(one[None]) for one in sinogram])) < 1e-5


@pytest.mark.parametrize("eighth", range(-8, 9))
def test_every_ray_is_traced_once_also_at_45_degrees(eighth):
    geometry = scan(32, num_cells=47, start_angle=eighth * math.pi / 4)
    traced = np.zeros(geometry.sinogram_shape, int)
    for frame in ray_frames(geometry):
        for view, (first, end) in enumerate(frame.ranges):
            traced[view, first:end] += 1
    assert (traced == 1).all()


@pytest.mark.parametrize("changes", [{}, {"arc": -2 * math.pi, "start_angle": 0.3, "detector_offset": 0.25}])
@pytest.mark.parametrize("slices", [1, 3])
def test_quarter_turn_symmetry_changes_nothing(changes, slices):
    fast = scan(32, **changes)
    general = scan(32, **changes | {"angles": tuple(fast.view_angles)})
    assert (NumbaBackend(fast).turns, NumbaBackend(general).turns) == (4, 1)
    image, sinogram = image_of(fast, slices), sinogram_of(fast, slices)
    one, other = FanBeamProjector(fast, "numba"), FanBeamProjector(general, "numba")
    assert relative(one(image), other(image)) < 1e-5
    assert relative(one.adjoint(sinogram), other.adjoint(sinogram)) < 1e-5


def test_the_gradient_is_the_adjoint(geometry, backend):
    project = FanBeamProjector(geometry, backend)
    image, weight = image_of(geometry).requires_grad_(), sinogram_of(geometry)
    (project(image) * weight).sum().backward()
    assert torch.equal(image.grad, project.adjoint(weight))


def test_second_derivatives_are_right(backend):
    project = FanBeamProjector(scan(4, num_views=5, num_cells=6), backend)
    image = image_of(project.geometry, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: project(x).square(), image)


# Kinds of input


def test_memory_order_does_not_matter(backend):
    project = FanBeamProjector(scan(32), backend)
    image = image_of(project.geometry)
    strided = image.transpose(2, 3).contiguous().transpose(2, 3)
    assert not strided.is_contiguous() and torch.equal(project(strided), project(image))
    expanded = torch.ones(1, 1, 1, 1).expand(2, 1, 32, 32).requires_grad_()
    project(expanded).sum().backward()
    assert relative(expanded.grad, project.adjoint(torch.ones(2, 1, *project.geometry.sinogram_shape))) == 0


def test_float64_is_computed_in_float64(geometry, backend):
    project = FanBeamProjector(geometry, backend)
    image = image_of(geometry, dtype=torch.float64)
    assert project(image).dtype == torch.float64
    assert 1e-12 < relative(project(image.float()), project(image)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(backend, dtype):
    project = FanBeamProjector(scan(32), backend)
    image = image_of(project.geometry).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        sinogram = project(image)
    assert sinogram.dtype == torch.float32 and torch.equal(sinogram, project(image.float()))
    sinogram.sum().backward()
    assert image.grad.dtype == dtype and image.grad.isfinite().all()


def test_an_image_with_metadata_gives_a_plain_sinogram(backend):
    project = FanBeamProjector(scan(32), backend)
    image = image_of(project.geometry)
    assert type(project(MetaTensor(image))) is Tensor
    assert torch.equal(project(MetaTensor(image)), project(image))


def test_an_empty_batch_stays_empty(backend):
    project = FanBeamProjector(scan(32), backend)
    assert project(torch.zeros(0, 1, 32, 32)).shape == (0, 1, 72, 46)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_used_operator_can_be_copied(backend, clone):
    project = FanBeamProjector(scan(32), backend)
    image = image_of(project.geometry)
    assert torch.equal(project(image), clone(project)(image))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 1, 32, 31), r"image must be a tensor of shape \(B, 1, 32, 32\), got \(1, 1, 32, 31\)"),
        (torch.zeros(1, 2, 32, 32), r"got \(1, 2, 32, 32\)"),
        (torch.zeros(32, 32), r"got \(32, 32\)"),
        (np.zeros((1, 1, 32, 32)), "got ndarray"),
        (torch.zeros(1, 1, 32, 32, dtype=torch.int16), "image must be a floating-point tensor, got torch.int16"),
        (torch.full((1, 1, 32, 32), math.nan), "image has NaN or infinite values"),
        (torch.full((1, 1, 32, 32), math.inf), "image has NaN or infinite values"),
    ],
)
def test_an_image_that_does_not_fit_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        FanBeamProjector(scan(32))(image)


def test_the_adjoint_names_the_sinogram():
    with pytest.raises(ValueError, match=r"sinogram must be a tensor of shape \(B, 1, 72, 46\), got \(1, 1, 46, 72\)"):
        FanBeamProjector(scan(32)).adjoint(torch.zeros(1, 1, 46, 72))


def test_an_unknown_backend_is_refused_with_those_there():
    with pytest.raises(ValueError, match="backend must be one of .*'numba'.*'torch'.* got 'leaf'"):
        FanBeamProjector(scan(32), "leaf")


def test_numba_refuses_other_devices():
    with pytest.raises(ValueError, match="'numba' computes on the CPU, got tensors on meta"):
        make_backend("numba", scan(32), torch.device("meta"))


def test_auto_takes_the_fast_backend_on_the_cpu():
    assert isinstance(make_backend("auto", scan(32), torch.device("cpu")), NumbaBackend)
