"""The Triton kernels: in Triton's interpreter where there is no GPU, as compiled kernels where there is one.

Small scans: the interpreter takes a fraction of a millisecond for each operation of each turn of a loop.
"""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bundle.physics import FanBeamGeometry, FanBeamProjector, FilteredBackprojection
from bundle.physics.backends import base, make_backend

from .phantoms import scan

# Triton reads it when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="Triton is not installed: PyTorch for CUDA brings it on Linux")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

DEVICES = [
    pytest.param(
        "cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="the kernels are compiled here, not run as Python")
    ),
    pytest.param("cuda", marks=pytest.mark.skipif(INTERPRETED, reason="no GPU here, or TRITON_INTERPRET=1 is set")),
]
MAPS = ("project", "project_transpose", "backproject", "backproject_transpose")


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def sparse(geometry) -> FanBeamGeometry:
    """Every third view."""
    angles = geometry.angles and geometry.angles[::3]
    return dataclasses.replace(geometry, num_views=geometry.num_views // 3, angles=angles)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def input_of(name: str, geometry: FanBeamGeometry, slices: int, **options) -> Tensor:
    shape = geometry.image_shape if name in ("project", "backproject_transpose") else geometry.sinogram_shape
    return draw(slices, *shape, **options)


def relative(value: Tensor, expected: Tensor) -> float:
    return ((value.cpu() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", MAPS)
def test_each_map_is_that_of_the_other_backends(sparse, device, name):
    value = input_of(name, sparse, 3)
    mapped = getattr(make_backend("triton", sparse, device), name)(value.to(device))
    for other in ("numba", "torch"):
        assert relative(mapped, getattr(make_backend(other, sparse, torch.device("cpu")), name)(value)) < 1e-5


@pytest.mark.parametrize("detector", ["flat", "equiangular"])
@pytest.mark.parametrize("pair", [MAPS[:2], MAPS[2:]], ids=["projection", "backprojection"])
def test_the_transposes_are_exact(detector, pair, device):
    # Fine cells and coarse cells beside the pixels: many rays cross a pixel, or hardly one.
    for cells in (12, 3):
        geometry = scan(
            4, num_views=5, num_cells=cells, cell_pitch=900 / cells, image_shape=(3, 4), detector=detector,
            start_angle=math.pi / 4, detector_offset=0.25,
        )  # fmt: skip
        maps, double = make_backend("triton", geometry, device), {"dtype": torch.float64, "device": device}
        columns, rows = (math.prod(input_of(name, geometry, 1).shape) for name in pair)
        first_shape, second_shape = (input_of(name, geometry, 1).shape[1:] for name in pair)
        matrix = getattr(maps, pair[0])(torch.eye(columns, **double).unflatten(1, first_shape)).flatten(1)
        transpose = getattr(maps, pair[1])(torch.eye(rows, **double).unflatten(1, second_shape)).flatten(1)
        assert relative(transpose, matrix.T.cpu()) < 1e-12


@pytest.mark.parametrize("changes", [{}, {"arc": -4.3, "detector": "equiangular", "detector_offset": 0.25}], ids=str)
def test_the_gradient_of_reconstruction_is_its_finite_difference(changes, device):
    geometry = scan(8, **changes)
    reconstruct = FilteredBackprojection(geometry, backend="triton")
    double = {"dtype": torch.float64}
    sinogram = draw(1, 1, *geometry.sinogram_shape, **double).to(device).requires_grad_()
    step = draw(1, 1, *geometry.sinogram_shape, seed=1, **double).to(device)

    def loss(p: Tensor) -> Tensor:
        return reconstruct(p).square().sum()

    (gradient,) = torch.autograd.grad(loss(sinogram), sinogram)
    with torch.no_grad():
        difference = (loss(sinogram + 1e-4 * step) - loss(sinogram - 1e-4 * step)) / 2e-4
    assert (gradient * step).sum().item() == pytest.approx(difference.item(), rel=1e-6)


def test_the_gradient_of_projection_is_its_adjoint(device):
    project = FanBeamProjector(scan(4), "triton")
    image = draw(1, 1, 4, 4, dtype=torch.float64).to(device).requires_grad_()
    assert torch.autograd.gradcheck(project, image, nondet_tol=1e-9, fast_mode=True)


@pytest.mark.parametrize("slices", [2, 11])
def test_a_batch_equals_its_slices(slices, device):
    geometry = scan(8, num_views=6)
    maps = make_backend("triton", geometry, device)
    for name in MAPS:
        apply, value = getattr(maps, name), input_of(name, geometry, slices).to(device)
        assert relative(apply(value), torch.cat([apply(one[None]) for one in value]).cpu()) < 1e-6


def test_an_empty_batch_stays_empty(device):
    geometry = scan(8, num_views=6)
    maps = make_backend("triton", geometry, device)
    for name in MAPS:
        assert len(getattr(maps, name)(input_of(name, geometry, 0).to(device))) == 0


@pytest.mark.parametrize("name", MAPS)
def test_the_same_input_gives_the_same_bits(name, device):
    geometry = scan(8, num_views=6)
    apply = getattr(make_backend("triton", geometry, device), name)
    value = input_of(name, geometry, 2).to(device)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(apply(value), apply(value))
    finally:
        torch.use_deterministic_algorithms(False)


# Selection


def test_the_trial_against_torch_is_passed(device):
    from bundle.physics.backends.triton_cuda import agrees_with_torch

    assert agrees_with_torch(device)


def test_kernels_that_fail_the_trial_are_said_to(monkeypatch, caplog, device):
    from bundle.physics.backends import triton_cuda

    wrong = dict.fromkeys(MAPS, lambda self, value: TorchBackend.project(self, value))
    TorchBackend = triton_cuda.TorchBackend
    monkeypatch.setattr(triton_cuda, "TritonBackend", type("Wrong", (TorchBackend,), wrong))
    assert not triton_cuda.agrees_with_torch.__wrapped__(device)
    assert "plain torch is used" in caplog.text


@pytest.mark.parametrize(("agrees", "expected"), [(True, "TritonBackend"), (False, "TorchBackend")])
def test_auto_takes_triton_on_cuda_where_it_passed_its_trial(monkeypatch, agrees, expected):
    from bundle.physics.backends import triton_cuda

    monkeypatch.setattr(triton_cuda, "agrees_with_torch", lambda device: agrees)
    monkeypatch.setattr(triton_cuda, "INTERPRETED", False)
    assert type(make_backend("auto", scan(8), torch.device("cuda"))).__name__ == expected


def test_auto_never_interprets_on_a_gpu(monkeypatch):
    from bundle.physics.backends import triton_cuda

    monkeypatch.setattr(triton_cuda, "INTERPRETED", True)
    assert type(make_backend("auto", scan(8), torch.device("cuda"))).__name__ == "TorchBackend"


def test_without_triton_the_name_is_refused(monkeypatch):
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="backend 'triton' needs the package triton"):
        make_backend("triton", scan(8), torch.device("cpu"))


def test_tensors_on_the_cpu_are_refused_without_the_interpreter(monkeypatch):
    from bundle.physics.backends import triton_cuda

    monkeypatch.setattr(triton_cuda, "INTERPRETED", False)
    with pytest.raises(ValueError, match="backend 'triton' computes on CUDA devices, got tensors on cpu"):
        make_backend("triton", scan(8), torch.device("cpu"))


@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings NVIDIA's assembler on Linux only")
def test_the_kernels_compile_for_gpus(tmp_path):
    """To machine code, by Triton's own assembler: no GPU is needed. The interpreter would accept what this does not."""
    code = """
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile
        from bundle.physics.backends import triton_cuda as kernels

        types = {"ranges": "*i32"} | dict.fromkeys(("image", "sinogram", "frame", "fan", "scan", "angles"), "*fp32")
        for name in ("project", "project_transpose", "backproject", "backproject_transpose"):
            kernel = getattr(kernels, "_" + name)
            fixed = {"ARC": True, "LANES": 2, "BLOCK": 128}
            signature = {p.name: "constexpr" if p.name in fixed else types.get(p.name, "i32") for p in kernel.params}
            built = compile(ASTSource(kernel, signature, fixed), target=GPUTarget("cuda", 80, 32))
            print(name, len(built.asm["cubin"]), ".f64" in built.asm["ptx"])
    """
    settings = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parents[2]
    settings["PYTHONPATH"] = os.pathsep.join([str(root), settings.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=settings, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    built = {name: (int(size), double) for name, size, double in map(str.split, done.stdout.splitlines())}
    assert set(built) == set(MAPS)
    # Doubles slipping into single precision would cost a GPU a factor of up to 64.
    assert all(size > 0 and double == "False" for size, double in built.values())
