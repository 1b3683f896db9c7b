"""What a backend must do, and how one is chosen. Weights, filter and units live above, in shared code."""

from __future__ import annotations

import importlib.util
import logging
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from ..geometry import FanBeamGeometry

BACKENDS = ("auto", "numba", "triton", "torch", "leap")

_log = logging.getLogger(__name__)


class Backend(Protocol):
    """Shapes: image ``(B, H, W)``, sinogram ``(B, V, D)``; float32 or float64, contiguous, on one device."""

    def project(self, image: Tensor) -> Tensor:
        """Line integrals, lengths in mm: Joseph's method (LEAP: separable footprints)."""

    def project_transpose(self, sinogram: Tensor) -> Tensor:
        """Exact transpose of :meth:`project`."""

    def backproject(self, sinogram: Tensor) -> Tensor:
        """Sum over views of the linearly interpolated sinogram, weighted by (source_to_center / distance)^2.

        The distance is taken along the central ray (flat) or from source to pixel (equiangular).
        """

    def backproject_transpose(self, image: Tensor) -> Tensor:
        """Exact transpose of :meth:`backproject`."""


def make_backend(name: str, geometry: FanBeamGeometry, device: torch.device) -> Backend:
    """The backend of that name; ``auto`` takes numba for the CPU and Triton for CUDA where they run, torch otherwise.

    Where the result is recorded, it is torch: the others work outside of torch's operations, so that a recording would
    keep their result instead.

    Raises:
        ValueError: unknown name, or a backend that can't serve that device, or can't be recorded.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {name!r}")
    if is_recorded():
        if name not in ("auto", "torch"):
            raise ValueError(f"backend {name!r} can't be exported or traced; use 'torch' or 'auto'")
        name = "torch"
    if name == "auto":
        name = _fastest(device)
        _say_once(name, device.type)
    if name == "numba":
        if device.type != "cpu":
            raise ValueError(f"backend 'numba' computes on the CPU, got tensors on {device}; use 'torch' or 'auto'")
        from .numba_cpu import NumbaBackend

        return NumbaBackend(geometry)
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            raise ValueError(
                "backend 'triton' needs the package triton (PyTorch for CUDA brings it on Linux); use 'auto'"
            )
        from .triton_cuda import INTERPRETED, TritonBackend

        if device.type != "cuda" and not INTERPRETED:
            raise ValueError(
                f"backend 'triton' computes on CUDA devices, got tensors on {device}; use 'auto' "
                "(or set TRITON_INTERPRET=1 before Python starts, to check it slowly on the CPU)"
            )
        return TritonBackend(geometry)
    if name == "leap":
        if device.type != "cpu":
            raise ValueError(f"backend 'leap' computes on the CPU, got tensors on {device}; use 'torch' or 'auto'")
        from .leap import LeapBackend

        return LeapBackend(geometry)
    from .torch_any import TorchBackend

    return TorchBackend(geometry)


def is_recorded() -> bool:
    """Whether ``torch.export`` or ``torch.jit.trace`` writes down what runs, to run it on other data."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def _fastest(device: torch.device) -> str:
    if device.type == "cpu" and importlib.util.find_spec("numba") is not None:
        return "numba"
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from .triton_cuda import INTERPRETED, agrees_with_torch

        if not INTERPRETED and agrees_with_torch(device):
            return "triton"
    return "torch"


@lru_cache
def _say_once(name: str, device: str) -> None:
    _log.info("fan-beam backend for %s: %s", device, name)
