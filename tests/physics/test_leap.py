"""LEAP as a backend: the laws of the others where it is installed, a clear refusal where it isn't."""

from __future__ import annotations

import copy
import os
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bundle.physics import MU_WATER, FanBeamGeometry, FanBeamProjector, FilteredBackprojection
from bundle.physics.backends import leap, make_backend

from .phantoms import field_of_view, gaussian_image, gaussian_sinogram, rms, scan

CPU = torch.device("cpu")


def _missing() -> str:
    try:
        leap._model()
    except ValueError as error:
        return str(error).partition(". It is")[0]
    return ""


needs_leap = pytest.mark.skipif(bool(_missing()), reason=_missing() or "LEAP is there")
detectors = pytest.mark.parametrize("detector", ["flat", "equiangular"])


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Not negative, as images and sinograms are: inner products then stay far from 0."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def adjoint_mismatch(apply, transpose, value: Tensor, other: Tensor) -> float:
    left = (apply(value).double() * other).sum()
    right = (value.double() * transpose(other)).sum()
    return abs(left - right).item() / abs(left).item()


@needs_leap
@pytest.mark.parametrize("changes", [{}, {"detector": "equiangular"}, {"detector_offset": 0.25}], ids=str)
def test_leap_projects_and_reconstructs_the_smooth_phantom(changes):
    """As well as the other backends: half a Hounsfield unit at 256 x 256."""
    geometry = scan(256, **changes)
    image, sinogram = gaussian_image(geometry), gaussian_sinogram(geometry)
    projected = FanBeamProjector(geometry, backend="leap")(image.float())
    assert rms(projected - sinogram) / rms(sinogram) < 3e-4
    restored = FilteredBackprojection(geometry, backend="leap")(sinogram.float())
    inside = field_of_view(geometry, 0.99)
    assert rms((restored - image)[0, 0][inside]) / MU_WATER * 1000 < 0.5


@needs_leap
@pytest.mark.parametrize(
    "changes",
    [
        {"start_angle": 1.0, "arc": -4.5},
        {"angles": tuple(0.02 * k + 1e-4 * k**2 for k in range(72))},
        {"image_shape": (28, 36), "image_center": (9.0, -14.0)},
        {"num_cells": 21, "detector_offset": 1.75},
        {"detector": "equiangular", "detector_offset": -0.25, "num_cells": 31, "arc": -6.0},
    ],
    ids=str,
)
def test_leap_sees_any_scan_as_torch_does(changes):
    """Clockwise, uneven angles, image off centre, object wider than the detector: no rotation, flip or cut corner."""
    geometry = scan(32, **{"num_views": 72, **changes})
    ours, theirs = (make_backend(name, geometry, CPU) for name in ("torch", "leap"))
    image, sinogram = rand(2, *geometry.image_shape), rand(2, *geometry.sinogram_shape)
    assert rms(theirs.project(image) - ours.project(image)) < 0.02 * rms(ours.project(image))
    assert rms(theirs.backproject(sinogram) - ours.backproject(sinogram)) < 0.01 * rms(ours.backproject(sinogram))


@needs_leap
@detectors
def test_each_map_and_its_transpose_belong_together(detector):
    geometry = scan(32, detector=detector, detector_offset=0.25)
    backend = make_backend("leap", geometry, CPU)
    image, sinogram = rand(2, *geometry.image_shape), rand(2, *geometry.sinogram_shape, seed=1)
    assert adjoint_mismatch(backend.project, backend.project_transpose, image, sinogram) < 1e-5
    assert adjoint_mismatch(backend.backproject, backend.backproject_transpose, sinogram, image) < 1e-5


@needs_leap
@detectors
def test_the_gradient_of_reconstruction_is_its_finite_difference(detector):
    """Of the squared norm, whose central difference is exact for any step; two calls in one graph."""
    geometry = scan(32, detector=detector)
    # What is extended beyond the detector is not linear, and has its own test.
    reconstruct = FilteredBackprojection(geometry, backend="leap", truncation="ignore")
    first, second, step = (rand(1, 1, *geometry.sinogram_shape, seed=s) for s in range(3))

    def loss(value: Tensor) -> Tensor:
        return (reconstruct(value).double() * reconstruct(value + second)).sum()

    first.requires_grad_()
    loss(first).backward()
    difference = (loss(first.detach() + step) - loss(first.detach() - step)) / 2
    assert (first.grad.double() * step).sum().item() == pytest.approx(difference.item(), rel=1e-3)


@needs_leap
@detectors
def test_slices_are_independent_of_each_other(detector):
    geometry = scan(32, detector=detector)
    project = FanBeamProjector(geometry, backend="leap")
    images = rand(3, 1, *geometry.image_shape)
    assert torch.allclose(project(images), torch.cat([project(image[None]) for image in images]), rtol=1e-6)
    assert project(images[:0]).shape == (0, 1, *geometry.sinogram_shape)


@needs_leap
def test_no_result_is_overwritten_by_the_next_call():
    geometry = scan(32)
    project = FanBeamProjector(geometry, backend="leap")
    image = rand(1, 1, *geometry.image_shape)
    first = project(image)
    kept = first.clone()
    assert torch.allclose(project(2 * image), 2 * kept)
    assert torch.equal(first, kept)


@needs_leap
def test_input_may_lie_anyhow_in_memory_and_stays_as_it_was():
    geometry = scan(32)
    project = FanBeamProjector(geometry, backend="leap")
    turned = rand(1, 1, *geometry.image_shape).transpose(2, 3)
    kept = turned.clone()
    assert torch.equal(project(turned), project(turned.contiguous()))
    assert torch.equal(turned, kept)


@needs_leap
def test_float64_comes_back_as_float64_and_bfloat16_as_float32():
    geometry = scan(32)
    project = FanBeamProjector(geometry, backend="leap")
    image = rand(1, 1, *geometry.image_shape)
    assert torch.equal(project(image.double()), project(image).double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(project(image.bfloat16()), project(image.bfloat16().float()))


@needs_leap
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_used_operator_can_be_copied(copied):
    geometry = scan(32)
    reconstruct = FilteredBackprojection(geometry, backend="leap")
    sinogram = rand(1, 1, *geometry.sinogram_shape)
    expected = reconstruct(sinogram)
    assert torch.equal(copied(reconstruct)(sinogram), expected)


@needs_leap
def test_threads_of_torch_stay_as_they_were():
    geometry, threads = scan(32), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        FanBeamProjector(geometry, backend="leap")(rand(1, 1, *geometry.image_shape))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


@needs_leap
@pytest.mark.parametrize("end", ["low", "high"])
def test_the_pixel_size_named_as_allowed_is_one_that_leap_takes(end):
    geometry = scan(32)
    with pytest.raises(ValueError, match="pixel_size between") as error:
        make_backend("leap", geometry.with_grid((32, 32), 3.0), CPU)
    words = str(error.value).split()
    low, high = float(words[words.index("between") + 1]), float(words[words.index("and") + 1])
    size = low * 1.002 if end == "low" else high * 0.998
    backend = make_backend("leap", geometry.with_grid((32, 32), size), CPU)
    assert (backend.project(torch.ones(1, 32, 32)) > 0).any()


# From here on LEAP itself is not needed.


class _Model:
    """Stands for leapctype.tomographicModels."""

    libprojectors: object | None = SimpleNamespace()

    def set_gpu(self, which: int) -> bool:
        return False

    def set_fanbeam(self, *scan) -> bool:
        return False


@pytest.fixture
def leapctype(monkeypatch):
    """Puts another module (or none) in LEAP's place, and forgets it afterwards."""

    def replace(module) -> None:
        leap._load.cache_clear()
        monkeypatch.setitem(sys.modules, "leapctype", module)

    yield replace
    leap._load.cache_clear()


def refusal(geometry: FanBeamGeometry | None = None) -> str:
    with pytest.raises(ValueError, match="backend 'leap'") as error:
        make_backend("leap", geometry or scan(32), CPU)
    return str(error.value)


def test_a_missing_leap_is_named_with_the_way_to_install_it(leapctype):
    leapctype(None)
    assert "import leapctype" in refusal() and "conda-forge" in refusal()


def test_a_leap_without_its_library_is_refused(leapctype):
    leapctype(SimpleNamespace(tomographicModels=type("_Empty", (_Model,), {"libprojectors": None})))
    assert "libleapct" in refusal()


def test_a_leap_that_cannot_be_loaded_is_refused(leapctype, monkeypatch, tmp_path):
    (tmp_path / "leapctype.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    leapctype(None)
    monkeypatch.delitem(sys.modules, "leapctype")
    monkeypatch.syspath_prepend(tmp_path)
    assert "libcudart.so.12" in refusal()


def test_a_call_that_leap_refuses_raises_with_its_parameters(leapctype):
    leapctype(SimpleNamespace(tomographicModels=_Model))
    geometry = scan(32)
    with pytest.raises(RuntimeError, match="LEAP refused project as fan.*source_to_center=595"):
        FanBeamProjector(geometry, backend="leap")(rand(1, 1, *geometry.image_shape))


def test_a_forked_process_is_refused_instead_of_hanging(leapctype, monkeypatch):
    leapctype(SimpleNamespace(tomographicModels=_Model))
    leap._model()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert "spawn" in refusal()


@pytest.mark.parametrize(
    ("shape", "pixel_size", "words"),
    [((32, 32), 3.0, "pixel_size between"), ((32, 32), 15.9, "got pixel_size 15.9"), ((96, 96), 3.0, "fewer pixels")],
)
def test_a_grid_that_the_footprints_cannot_serve_is_refused(leapctype, shape, pixel_size, words):
    leapctype(SimpleNamespace(tomographicModels=_Model))
    assert words in refusal(scan(32).with_grid(shape, pixel_size))


def test_leap_refuses_other_devices_than_the_cpu():
    with pytest.raises(ValueError, match="'leap' computes on the CPU.*meta"):
        make_backend("leap", scan(32), torch.device("meta"))


def test_auto_never_picks_leap():
    assert not isinstance(make_backend("auto", scan(32), CPU), leap.LeapBackend)
