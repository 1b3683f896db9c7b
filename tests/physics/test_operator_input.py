"""What users hand to the operators: a right result or an error that says what was expected, never a wrong one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from bundle.physics import FanBeamGeometry, FanBeamProjector, FilteredBackprojection
from bundle.physics.backends import BACKENDS, numba_cpu

from .phantoms import scan

GEOMETRY = scan(16)
OPERATORS = {
    "projection": (lambda backend: FanBeamProjector(GEOMETRY, backend), GEOMETRY.image_shape, "image"),
    "adjoint": (lambda backend: FanBeamProjector(GEOMETRY, backend).adjoint, GEOMETRY.sinogram_shape, "sinogram"),
    "FBP": (lambda backend: FilteredBackprojection(GEOMETRY, backend=backend), GEOMETRY.sinogram_shape, "sinogram"),
}


@pytest.fixture(params=OPERATORS)
def operator(request, backend) -> Callable[[Tensor], Tensor]:
    return OPERATORS[request.param][0](backend)


@pytest.fixture
def shape(request) -> tuple[int, int]:
    return OPERATORS[request.node.callspec.params["operator"]][1]


@pytest.fixture
def name(request) -> str:
    return OPERATORS[request.node.callspec.params["operator"]][2]


def draw(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def value_and_gradient(operator: Callable[[Tensor], Tensor], value: Tensor) -> tuple[Tensor, Tensor]:
    value = value.detach().requires_grad_()
    result = operator(value)
    result.square().sum().backward()
    return result.detach(), value.grad


# How a tensor lies in memory


LAYOUTS = {
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every second": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "part of a wider tensor": lambda x: torch.nn.functional.pad(x, (3, 2, 1, 1))[..., 1:-1, 3:-2],
    "one of several channels": lambda x: x.expand(-1, 3, -1, -1).contiguous()[:, 1:2],
    "batch last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_memory_order_changes_neither_result_nor_gradient(operator, shape, layout):
    plain = draw(3, 1, *shape)
    strided = layout(plain)
    assert torch.equal(strided, plain)
    for got, expected in zip(value_and_gradient(operator, strided), value_and_gradient(operator, plain)):
        assert torch.equal(got, expected)


def test_the_input_is_left_as_it_was(operator, shape):
    value = draw(2, 1, *shape)
    before = value.clone()
    operator(value)
    assert torch.equal(value, before)


def test_a_gradient_in_any_memory_order_is_right(operator, shape):
    value = draw(1, 1, *shape).requires_grad_()
    result = operator(value)
    upstream = draw(*result.shape)
    strided = upstream.transpose(2, 3).contiguous().transpose(2, 3)
    (one,) = torch.autograd.grad(result, value, upstream, retain_graph=True)
    (other,) = torch.autograd.grad(result, value, strided)
    assert torch.equal(one, other)


def test_an_empty_batch_gives_an_empty_batch(operator, shape):
    result, gradient = value_and_gradient(operator, torch.zeros(0, 1, *shape))
    assert len(result) == 0 and result.ndim == 4 and gradient.shape == (0, 1, *shape)


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_in_single(operator, shape, dtype):
    value = draw(2, 1, *shape).to(dtype)
    result, gradient = value_and_gradient(operator, value)
    assert result.dtype == torch.float32 and gradient.dtype == dtype
    assert torch.equal(result, operator(value.float()))


MODULES = {"projection": FanBeamProjector, "FBP": FilteredBackprojection}


@pytest.mark.parametrize("change", ["half", "bfloat16", "float", "double"])
@pytest.mark.parametrize("kind", MODULES)
def test_the_precision_of_a_module_changes_nothing(kind, change, backend):
    """A network may be turned to half precision, and an operator is part of it; float64 data stays exact."""
    plain, changed = (torch.nn.Sequential(MODULES[kind](GEOMETRY, backend=backend)) for _ in range(2))
    getattr(changed, change)()
    for dtype in (torch.float16, torch.float32, torch.float64):
        value = draw(2, 1, *OPERATORS[kind][1]).to(dtype)
        for got, expected in zip(value_and_gradient(changed, value), value_and_gradient(plain, value)):
            assert torch.equal(got, expected)


def test_what_was_used_under_inference_mode_still_learns(operator, shape):
    value = draw(1, 1, *shape)
    with torch.inference_mode():
        before = operator(value)
    result, gradient = value_and_gradient(operator, value)
    assert torch.equal(result, before) and gradient.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_reaches_neither_result_nor_gradient(operator, shape, dtype):
    value = draw(2, 1, *shape)
    with torch.autocast("cpu", dtype):
        inside = value_and_gradient(operator, value)
    for got, expected in zip(inside, value_and_gradient(operator, value)):
        assert got.dtype == torch.float32 and torch.equal(got, expected)


def test_the_output_of_a_network_under_autocast_is_taken(operator, shape):
    network, value = torch.nn.Conv2d(1, 1, 3, padding=1), draw(1, 1, *shape)
    with torch.autocast("cpu", torch.bfloat16):
        features = network(value)
        result = operator(features)
    assert features.dtype == torch.bfloat16
    assert torch.equal(result, operator(features.float()))
    result.sum().backward()
    assert network.weight.grad.isfinite().all() and network.weight.grad.abs().max() > 0


# What is refused


def test_a_shape_that_does_not_fit_is_refused(operator, shape, name):
    wrong = (
        (1, 2, *shape),  # channels
        (1, 1, shape[0] + 1, shape[1]),
        (1, 1, shape[0], shape[1] - 1),
        shape,
        (1, *shape),
        (1, 1, 1, *shape),
        # An image for a sinogram, a sinogram for an image.
        (1, 1, *(GEOMETRY.image_shape if name == "sinogram" else GEOMETRY.sinogram_shape)),
    )
    expected = rf"^{name} must be a tensor of shape \(B, 1, {shape[0]}, {shape[1]}\), got "
    for got in wrong:
        with pytest.raises(ValueError, match=expected + re.escape(str(got))):
            operator(torch.zeros(got))


def test_what_is_no_floating_point_tensor_is_refused(operator, shape, name):
    with pytest.raises(ValueError, match=f"{name} must be a tensor of shape .* got ndarray"):
        operator(torch.zeros(1, 1, *shape).numpy())
    for dtype in (torch.int16, torch.bool, torch.complex64):
        with pytest.raises(ValueError, match=f"{name} must be a floating-point tensor, got {dtype}"):
            operator(torch.zeros(1, 1, *shape, dtype=dtype))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_refused(operator, shape, name, number):
    value = draw(2, 1, *shape)
    value[1, 0, 3, 4] = number
    with pytest.raises(ValueError, match=f"{name} has NaN or infinite values"):
        operator(value)


@pytest.mark.parametrize("make", [FanBeamProjector, FilteredBackprojection])
def test_an_unknown_backend_is_refused_with_those_there(make):
    with pytest.raises(ValueError, match=f"backend must be one of {re.escape(str(BACKENDS))}, got 'cuda'"):
        make(GEOMETRY, backend="cuda")


@pytest.mark.parametrize("make", [FanBeamProjector, FilteredBackprojection])
def test_a_geometry_that_is_still_text_is_refused(make):
    with pytest.raises(ValueError, match="geometry must be a FanBeamGeometry, got str"):
        make(GEOMETRY.to_json())


@pytest.mark.parametrize(
    "changes",
    [
        {"arc": math.pi},
        {"arc": -math.pi},
        {"angles": tuple(math.pi / 36 * k for k in range(36))},
        {"angles": tuple(-math.pi / 36 * k for k in range(36))},
        {"arc": math.pi, "detector": "equiangular"},
    ],
    ids=str,
)
def test_an_arc_too_short_is_refused_with_both_angles(changes):
    geometry = scan(16, num_views=36, **changes)
    needed = 180 + 2 * math.degrees(abs(geometry.fan_angles[0]))
    message = f"the arc of 180.00 degrees is below 180 degrees + fan angle = {needed:.2f} degrees"
    with pytest.raises(ValueError, match=re.escape(message)):
        FilteredBackprojection(geometry)
    # Projection has no such limit.
    FanBeamProjector(geometry)(torch.zeros(1, 1, 16, 16))


def test_a_source_inside_the_image_is_refused_on_any_grid():
    message = "the source would run through the image: its corner lies 721.2 mm .* source_to_center is 595.0 mm"
    with pytest.raises(ValueError, match=message):
        GEOMETRY.with_grid((1020, 1020), 1.0)
    with pytest.raises(ValueError, match="the source would run through the image"):
        scan(16, image_center=(400.0, 200.0))


def test_an_angle_grid_in_degrees_is_refused():
    degrees = tuple(float(k) for k in range(0, 360, 10))
    with pytest.raises(ValueError, match="the views must stay within one turn, got an arc of 350.0 rad"):
        FanBeamGeometry(**GEOMETRY.__dict__ | {"num_views": 36, "angles": degrees})


# The first call


def test_the_first_call_says_once_that_it_compiles_and_a_loaded_kernel_is_silent(tmp_path, monkeypatch, caplog):
    """One small kernel stands for all of them, with a cache of its own."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(numba_cpu.compile_notice, "said", False)
    messages = []
    for _ in range(2):
        # As in a new process: nothing but the disk remembers.
        kernel = numba.njit(cache=True)(numba_cpu.kernels._first_at_least.py_func)
        for dtype in (np.float32, np.float64):
            kernel(np.zeros(3, dtype), 0, 3, dtype(0), dtype(0), dtype(1))
        messages.append([r.getMessage() for r in caplog.records if r.name == numba_cpu.__name__])
        caplog.clear()
        monkeypatch.setattr(numba_cpu.compile_notice, "said", False)
    (message,) = messages[0]
    assert message.startswith("compiling kernels") and str(tmp_path) in message
    assert messages[1] == []


def test_other_kernels_may_compile_in_silence(monkeypatch, caplog):
    monkeypatch.setattr(numba_cpu.compile_notice, "said", False)
    numba.njit(lambda x: x + 1)(1)
    assert not caplog.records
