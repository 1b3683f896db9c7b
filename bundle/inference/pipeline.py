"""Noisy sinogram in, restored image out: the stages as one network."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bundle.physics import MU_WATER, RAMP_WINDOWS, FanBeamGeometry, FilteredBackprojection, attenuation_to_hu

# Shapes in this file: B batch, V views, D detector cells, H W image.

FUSION_ORDERS = ("before", "after")

#: How many geometries keep their operator; a folder of measured scans may bring one each.
KEPT_OPERATORS = 4


class Restoration(NamedTuple):
    """A restored sinogram with what came between; images ``(B, 1, H, W)`` in HU.

    Args:
        fbp: filtered backprojection of the sinogram as it came.
        prior: filtered backprojection of the denoised sinogram.
        fused: the two, fused.
        restored: the result.
        seconds: time of every stage, by the names above: for ``prior`` the denoiser and its backprojection, for
            ``fused`` the fusion, for ``restored`` the refinement.
    """

    fbp: Tensor
    prior: Tensor
    fused: Tensor
    restored: Tensor
    seconds: dict[str, float]


class LowDoseRestorer(nn.Module):
    """Restore CT slices from noisy sinograms: ``x_ld = FBP(y)``, ``xhat = FBP(f(y))``, fusion, latent refinement.

    No gradient, no randomness of its own. The state dict holds weights and the calibration of the fusion, nothing
    that depends on a geometry.

    Args:
        projection: sinogram denoiser ``f``, ``(B, 1, V, D)`` to ``(B, 1, V, D)``.
        refiner: image refiner, HU ``(B, 1, H, W)`` to HU ``(B, 1, H, W)``.
        fusion: module with ``forward(low_dose_hu, prior_hu)`` and ``weight(low_dose_hu, prior_hu)``.
        geometry: scan and image grid that a sinogram without its own geometry is read in.
        window: ramp window of the backprojection.
        mu_water: attenuation of water, 1/mm.
        fusion_order: ``before``, as in the paper: ``restored = refiner(fused)``. ``after``:
            ``restored = lambda x_ld + (1 - lambda) refiner(x_ld)``. ``lambda`` is
            that of ``x_ld`` and ``xhat``.
        output_fusion: module like ``fusion`` that weighs the fused image against the refined one, by the noise of
            ``x_ld``: a refiner smooths what is hardly noisy, and there the fused image is the better one. None: the
            refined image is the result, as in the paper.
        backend: of the backprojection, see :class:`bundle.physics.FanBeamProjector`.

    Raises:
        ValueError: an unknown ``window`` or ``fusion_order``, a ``geometry`` that is none.

    Source: EGenDiff, arXiv 2509.23885, test-time pipeline.
    """

    def __init__(
        self,
        projection: nn.Module,
        refiner: nn.Module,
        fusion: nn.Module,
        geometry: FanBeamGeometry | str,
        window: str = "ram-lak",
        mu_water: float = MU_WATER,
        fusion_order: str = "before",
        output_fusion: nn.Module | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if fusion_order not in FUSION_ORDERS:
            raise ValueError(f"fusion_order must be one of {FUSION_ORDERS}, got {fusion_order!r}")
        if window not in RAMP_WINDOWS:
            raise ValueError(f"window must be one of {tuple(RAMP_WINDOWS)}, got {window!r}")
        self.projection = projection
        self.refiner = refiner
        self.fusion = fusion
        self.output_fusion = output_fusion
        self.geometry = _as_geometry(geometry)
        self.window = window
        self.mu_water = mu_water
        self.fusion_order = fusion_order
        self.backend = backend
        # A plain dict, so that no operator becomes a submodule: its tables must not enter the state dict.
        self._operators: dict[tuple[FanBeamGeometry, torch.device], FilteredBackprojection] = {}

    def forward(self, sinogram: Tensor, geometry: FanBeamGeometry | str | None = None) -> Tensor:
        """Restored HU ``(B, 1, H, W)`` of noisy line integrals ``(B, 1, V, D)``; see :meth:`restore`."""
        return self.restore(sinogram, geometry).restored

    @torch.no_grad()
    def restore(self, sinogram: Tensor, geometry: FanBeamGeometry | str | None = None) -> Restoration:
        """Restore and keep every stage.

        Args:
            sinogram: noisy line integrals, ``(B, 1, V, D)``, float32.
            geometry: the scan's own geometry (or its JSON), where it is not the default one.

        Raises:
            ValueError: a sinogram of another shape or dtype, with NaN or infinite values; a geometry that is none.
        """
        geometry = self.geometry if geometry is None else _as_geometry(geometry)
        # A MetaTensor would carry its history through every stage.
        sinogram = sinogram.as_tensor() if hasattr(sinogram, "as_tensor") else sinogram
        _check_sinogram(sinogram, geometry)
        clock = _Clock(sinogram.device)
        fbp = self._reconstruct(sinogram, geometry)
        clock.stop("fbp")
        prior = self._reconstruct(self.projection(sinogram), geometry)
        clock.stop("prior")
        fused = self.fusion(fbp, prior)
        clock.stop("fused")
        if self.fusion_order == "before":
            restored = self.refiner(fused)
        else:
            weight = self.fusion.weight(fbp, prior)
            restored = weight * fbp + (1 - weight) * self.refiner(fbp)
        if self.output_fusion is not None:
            restored = self.output_fusion(fbp, restored, fused)
        clock.stop("restored")
        return Restoration(fbp, prior, fused, restored, clock.seconds)

    def _reconstruct(self, sinogram: Tensor, geometry: FanBeamGeometry) -> Tensor:
        key = geometry, sinogram.device
        if key not in self._operators:
            if len(self._operators) >= KEPT_OPERATORS:
                self._operators.pop(next(iter(self._operators)))
            self._operators[key] = FilteredBackprojection(geometry, self.window, self.backend).to(sinogram.device)
        return attenuation_to_hu(self._operators[key](sinogram), self.mu_water)

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles build their own operators.
        return {**super().__getstate__(), "_operators": {}}


class _Clock:
    """Seconds since the last stop, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._last = self._now()

    def stop(self, name: str) -> None:
        now = self._now()
        self.seconds[name], self._last = now - self._last, now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _as_geometry(geometry: FanBeamGeometry | str) -> FanBeamGeometry:
    if isinstance(geometry, str):
        return FanBeamGeometry.from_json(geometry)
    if not isinstance(geometry, FanBeamGeometry):
        raise ValueError(f"geometry must be a FanBeamGeometry or its JSON, got {type(geometry).__name__}")
    return geometry


def _check_sinogram(sinogram: Tensor, geometry: FanBeamGeometry) -> None:
    if not isinstance(sinogram, Tensor):
        raise ValueError(f"sinogram must be a tensor, got {type(sinogram).__name__}")
    views, cells = geometry.sinogram_shape
    if sinogram.ndim != 4 or sinogram.shape[1] != 1 or tuple(sinogram.shape[2:]) != (views, cells):
        raise ValueError(
            f"sinogram must be (B, 1, {views}, {cells}) for its geometry (views, cells), got {tuple(sinogram.shape)}"
        )
    if sinogram.dtype != torch.float32:
        raise ValueError(f"sinogram must be float32, got {sinogram.dtype}")
    bad = int((~torch.isfinite(sinogram)).sum())
    if bad:
        raise ValueError(f"sinogram must be finite, got NaN or infinite values in {bad} of {sinogram.numel()} entries")
