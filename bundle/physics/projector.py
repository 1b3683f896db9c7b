"""Forward projection ``y = A x`` and its exact adjoint, differentiable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .backends import BACKENDS, Backend, is_recorded, make_backend
from .geometry import FanBeamGeometry


def linear_map(value: Tensor, apply: Callable[[Tensor], Tensor], transpose: Callable[[Tensor], Tensor]) -> Tensor:
    """``apply(value)`` of a linear `apply`, with its transpose as derivative."""
    # What is recorded is torch's own operations, and their derivatives are exact too.
    return apply(value) if is_recorded() else LinearMap.apply(value, apply, transpose)


class LinearMap(torch.autograd.Function):
    """A linear map whose derivative is its transpose; twice differentiable."""

    @staticmethod
    def forward(ctx, value: Tensor, apply: Callable, transpose: Callable) -> Tensor:
        ctx.maps = apply, transpose
        return apply(value)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        apply, transpose = ctx.maps
        # Contiguous: the gradient of a sum is one number seen at every index.
        return LinearMap.apply(gradient.contiguous(), transpose, apply), None, None


class FanBeamOperator(nn.Module):
    """What projector and reconstruction share: a geometry, a backend for each device, and checked input.

    ``torch.export.export`` and ``torch.jit.trace`` record both, by the torch backend (``auto`` takes it then): plain
    tensor operations that need nothing of this package. Such a program is tied to its geometry, takes any number of
    slices (``torch.export`` when told of a dynamic batch), has the same exact gradient, and no longer looks at the
    values: NaN goes in and comes out.
    """

    def __init__(self, geometry: FanBeamGeometry, backend: str = "auto") -> None:
        super().__init__()
        if not isinstance(geometry, FanBeamGeometry):
            raise ValueError(f"geometry must be a FanBeamGeometry, got {type(geometry).__name__}")
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
        self.geometry = geometry
        self.backend = backend
        self._made: dict[str, Backend] = {}

    def _backend(self, device: torch.device) -> Backend:
        if is_recorded():
            return make_backend(self.backend, self.geometry, device)
        if str(device) not in self._made:
            self._made[str(device)] = make_backend(self.backend, self.geometry, device)
        return self._made[str(device)]

    def _linear(self, value: Tensor, name: str, transpose: str) -> Tensor:
        """Apply a backend's map to ``(B, 1, ...)``, with its transpose as derivative."""
        backend = self._backend(value.device)
        return linear_map(value[:, 0].contiguous(), getattr(backend, name), getattr(backend, transpose))[:, None]

    def _checked(self, value: Tensor, shape: tuple[int, int], name: str) -> Tensor:
        if not isinstance(value, Tensor) or value.ndim != 4 or value.shape[1] != 1 or tuple(value.shape[2:]) != shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a tensor of shape (B, 1, {shape[0]}, {shape[1]}), got {got}")
        if not torch.is_floating_point(value):
            raise ValueError(f"{name} must be a floating-point tensor, got {value.dtype}")
        if not is_recorded() and not torch.isfinite(value).all():
            raise ValueError(f"{name} has NaN or infinite values")
        # MONAI's tensors would carry image metadata into physics; half precision is too coarse for line integrals.
        value = value.as_tensor() if hasattr(value, "as_tensor") else value
        return value if value.dtype == torch.float64 else value.float()

    def extra_repr(self) -> str:
        return f"{self.geometry}, backend={self.backend!r}"


class FanBeamProjector(FanBeamOperator):
    """Line integrals of an attenuation image: ``y = A x``, 1/mm in, no unit out; Joseph's method.

    Args:
        geometry: scan and image grid.
        backend: ``auto`` (numba on the CPU, Triton on CUDA, torch elsewhere), ``numba``, ``triton``, ``torch`` or
            ``leap``.

    Source: Joseph, IEEE TMI 1(3), 1982.
    """

    def forward(self, image: Tensor) -> Tensor:
        """Project ``(B, 1, H, W)`` in 1/mm to ``(B, 1, V, D)``.

        Raises:
            ValueError: shape does not fit the geometry, or values are not finite.
        """
        return self._linear(self._checked(image, self.geometry.image_shape, "image"), "project", "project_transpose")

    def adjoint(self, sinogram: Tensor) -> Tensor:
        """Exact transpose: ``(B, 1, V, D)`` to ``(B, 1, H, W)``, in mm times the sinogram's unit.

        Raises:
            ValueError: shape does not fit the geometry, or values are not finite.
        """
        return self._linear(
            self._checked(sinogram, self.geometry.sinogram_shape, "sinogram"), "project_transpose", "project"
        )
