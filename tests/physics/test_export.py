"""Operators as programs: recorded by torch's export and trace, they compute the same without this package."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from bundle.physics import FanBeamProjector, FilteredBackprojection

from .phantoms import scan

# Recorded operation by operation: as few as will do.
GEOMETRY = scan(8, num_views=10, detector_offset=0.25)
OPERATORS = {
    "projection": (lambda backend: FanBeamProjector(GEOMETRY, backend), GEOMETRY.image_shape),
    "FBP": (lambda backend: FilteredBackprojection(GEOMETRY, "hann", backend), GEOMETRY.sinogram_shape),
}

# The trace warns of every shape that is looked at in Python.
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")


@pytest.fixture(params=OPERATORS)
def make(request):
    return OPERATORS[request.param][0]


@pytest.fixture
def shape(request) -> tuple[int, int]:
    return OPERATORS[request.node.callspec.params["make"]][1]


def draw(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def exported(operator: nn.Module, value: Tensor) -> nn.Module:
    program = torch.export.export(operator, (value,), dynamic_shapes=({0: torch.export.Dim("slices")},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


def traced(operator: nn.Module, value: Tensor) -> nn.Module:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(operator, (value,)), file)
    file.seek(0)
    return torch.jit.load(file)


def value_and_gradient(operator: nn.Module, value: Tensor) -> tuple[Tensor, Tensor]:
    value = value.clone().requires_grad_()
    result = operator(value)
    result.square().sum().backward()
    return result.detach(), value.grad


def largest_gap(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("record", [exported, traced])
def test_a_recorded_operator_gives_the_same_result_and_gradient_for_any_number_of_slices(make, shape, record):
    program, operator = record(make("auto"), draw(2, 1, *shape)), make("torch")
    for slices in (1, 3):
        value = draw(slices, 1, *shape) - 0.3
        for got, expected in zip(value_and_gradient(program, value), value_and_gradient(operator, value)):
            assert largest_gap(got, expected) < 1e-6


@pytest.mark.parametrize("record", [exported, traced])
def test_a_backend_that_cannot_be_recorded_is_refused_and_works_on(make, shape, record):
    operator, value = make("numba"), draw(2, 1, *shape)
    before = operator(value)
    with pytest.raises(ValueError, match="backend 'numba' can't be exported or traced; use 'torch' or 'auto'"):
        record(operator, value)
    assert torch.equal(operator(value), before)
    with pytest.raises(ValueError, match="NaN"):
        operator(value * torch.nan)
