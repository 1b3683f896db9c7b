"""Noisy sinogram in, restored image out: the stages as one network."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bundle.physics import (
    MU_WATER,
    RAMP_WINDOWS,
    FanBeamGeometry,
    FanBeamProjector,
    FilteredBackprojection,
    attenuation_to_hu,
    log_bias,
)

from .held_out import Candidates
from .smoothing import gauss

# Shapes in this file: B batch, V views, D detector cells, H W image.

FUSION_ORDERS = ("before", "after")

#: What the restored image is an image of.
RESTORE_TO = ("backprojection", "object")

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


class Prepared(NamedTuple):
    """What every slice became by itself, before slices help each other; see :meth:`LowDoseRestorer.prepare`.

    Args:
        fbp: as in :class:`Restoration`.
        whole: candidates of all photons.
        part: those of the larger part, where photons are held out.
        held_out: backprojection of the held-out photons, ``(B, 1, H, W)`` in HU.
        geometry: of the scan.
        seconds: as in :class:`Restoration`.
    """

    fbp: Tensor
    whole: Candidates
    part: Candidates | None
    held_out: Tensor | None
    geometry: FanBeamGeometry
    seconds: dict[str, float]

    def slices(self, index: slice) -> Prepared:
        """Some slices of the batch; the seconds are left with the others."""
        whole, part = (
            None if images is None else Candidates(*(image[index] for image in images))
            for images in (self.whole, self.part)
        )
        held_out = None if self.held_out is None else self.held_out[index]
        return self._replace(fbp=self.fbp[index], whole=whole, part=part, held_out=held_out, seconds={})


class _Operators(NamedTuple):
    backproject: FilteredBackprojection
    project: FanBeamProjector


class LowDoseRestorer(nn.Module):
    """Restore CT slices from noisy sinograms: ``x_ld = FBP(y)``, ``xhat = FBP(f(y))``, fusion, latent refinement.

    No gradient, no randomness of its own. The state dict holds weights and the calibration of the fusion, nothing
    that depends on a geometry.

    Args:
        projection: sinogram denoiser ``f``, ``forward(sinogram, incident_photons=None, electronic_variance=None)``,
            ``(B, 1, V, D)`` to ``(B, 1, V, D)``; the scan's noise is told where the photons are known.
        refiner: image refiner, ``forward(image_hu, noise=...)``, all HU ``(B, 1, H, W)``; ``noise`` is
            what stage 1 took for noise, ``x_ld - xhat``.
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
        held_out_fusion: :class:`bundle.inference.HeldOutFusion`, which takes the place of ``output_fusion`` wherever
            the incident photons are known; each scan is then restored twice. None: never.
        level_width: standard deviation in pixels of the Gaussian mean that the refiner may not change: what is that
            broad is not noise but HU. 0: as the refiner says, as in the paper.
        restore_to: ``backprojection``: the restored image is what ``x_ld`` would be without noise, with its blur and
            its ringing, as a normal-dose FBP has them. ``object``: the backprojection's own error is taken out to first
            order, too (:meth:`bundle.inference.HeldOutFusion.of_object`; with a weight of 1 where no photons are held
            out), for a projection and a backprojection more each.
        backend: of the backprojection, see :class:`bundle.physics.FanBeamProjector`.
        electronic_variance: of the detector, photons squared, where a scan does not say; counts where the incident
            photons are known.

    Raises:
        ValueError: an unknown ``window``, ``fusion_order`` or ``restore_to``, a ``geometry`` that is none, a negative
            ``level_width``.

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
        held_out_fusion: nn.Module | None = None,
        level_width: float = 8.0,
        restore_to: str = "backprojection",
        backend: str = "auto",
        electronic_variance: float = 0.0,
    ) -> None:
        super().__init__()
        if fusion_order not in FUSION_ORDERS:
            raise ValueError(f"fusion_order must be one of {FUSION_ORDERS}, got {fusion_order!r}")
        if restore_to not in RESTORE_TO:
            raise ValueError(f"restore_to must be one of {RESTORE_TO}, got {restore_to!r}")
        if window not in RAMP_WINDOWS:
            raise ValueError(f"window must be one of {tuple(RAMP_WINDOWS)}, got {window!r}")
        self.projection = projection
        self.refiner = refiner
        self.fusion = fusion
        self.output_fusion = output_fusion
        self.held_out_fusion = held_out_fusion
        if not (math.isfinite(level_width) and level_width >= 0):
            raise ValueError(f"level_width must be zero or more pixels, got {level_width}")
        self.level_width = float(level_width)
        self.geometry = _as_geometry(geometry)
        self.window = window
        self.mu_water = mu_water
        self.fusion_order = fusion_order
        self.restore_to = restore_to
        self.backend = backend
        self.electronic_variance = float(electronic_variance)
        # A plain dict, so that no operator becomes a submodule: its tables must not enter the state dict.
        self._operators: dict[tuple[FanBeamGeometry, torch.device], _Operators] = {}

    def forward(
        self,
        sinogram: Tensor,
        geometry: FanBeamGeometry | str | None = None,
        incident_photons: float | None = None,
        electronic_variance: float | None = None,
    ) -> Tensor:
        """Restored HU ``(B, 1, H, W)`` of noisy line integrals ``(B, 1, V, D)``; see :meth:`restore`."""
        return self.restore(sinogram, geometry, incident_photons, electronic_variance).restored

    @torch.no_grad()
    def restore(
        self,
        sinogram: Tensor,
        geometry: FanBeamGeometry | str | None = None,
        incident_photons: float | None = None,
        electronic_variance: float | None = None,
        adjacent: bool = False,
    ) -> Restoration:
        """Restore and keep every stage.

        Args:
            sinogram: noisy line integrals, ``(B, 1, V, D)``, float32.
            geometry: the scan's own geometry (or its JSON), where it is not the default one.
            incident_photons: incident photons a ray of this scan. Given, the bias that the logarithm of few counts
                has (:func:`bundle.physics.log_bias`) is taken out of ``x_ld`` and ``xhat``; ``fbp`` stays as it comes.
            electronic_variance: of this scan, photons squared; None: that of the network.
            adjacent: the batch is a stack, in its order: held-out fusion searches each slice's neighbours, too.

        Raises:
            ValueError: a sinogram of another shape or dtype, with NaN or infinite values; a geometry that is none;
                ``incident_photons`` not positive.
        """
        prepared = self.prepare(sinogram, geometry, incident_photons, electronic_variance)
        last = len(sinogram) - 1
        # At an end of the stack the slice stands for the one that is not there.
        around = (prepared.slices(slice(0, 1)), prepared.slices(slice(last, None))) if adjacent and last else None
        return self.finish(prepared, around)

    @torch.no_grad()
    def prepare(
        self,
        sinogram: Tensor,
        geometry: FanBeamGeometry | str | None = None,
        incident_photons: float | None = None,
        electronic_variance: float | None = None,
    ) -> Prepared:
        """All of :meth:`restore` that a slice can do alone; :meth:`finish` does the rest. Arguments as there."""
        geometry = self.geometry if geometry is None else _as_geometry(geometry)
        # A MetaTensor would carry its history through every stage.
        sinogram = sinogram.as_tensor() if hasattr(sinogram, "as_tensor") else sinogram
        _check_sinogram(sinogram, geometry)
        clock = _Clock(sinogram.device)
        fbp = self._reconstruct(sinogram, geometry)
        clock.stop("fbp")
        variance = self.electronic_variance if electronic_variance is None else float(electronic_variance)
        low_dose, prior = self.estimates(sinogram, geometry, incident_photons, variance, fbp)
        clock.stop("prior")
        fused = self.fusion(low_dose, prior)
        clock.stop("fused")
        whole = Candidates(low_dose, prior, fused, self.refine(low_dose, prior, fused), low_dose - prior)
        part = held_out = None
        if self.held_out_fusion is not None and incident_photons is not None:
            part, held_out, noise = self._parted(sinogram, geometry, incident_photons, variance)
            whole = whole._replace(noise=noise)
        clock.stop("restored")
        return Prepared(fbp, whole, part, held_out, geometry, clock.seconds)

    @torch.no_grad()
    def finish(self, prepared: Prepared, around: tuple[Prepared, Prepared] | None = None) -> Restoration:
        """The restoration of what :meth:`prepare` made.

        ``around`` says that the batch is a stack and gives the slice before its first and the one after its last.
        """
        clock = _Clock(prepared.fbp.device)
        low_dose, prior, fused, refined, _ = prepared.whole
        to_object = self.restore_to == "object"
        reproject = partial(self._reproject, geometry=prepared.geometry)
        if prepared.part is not None:
            fuse, part, held_out = self.held_out_fusion, prepared.part, prepared.held_out
            of_whole, of_part = (_around(prepared, around, which) for which in ("whole", "part"))
            if to_object:
                restored = fuse.of_object(prepared.whole, part, held_out, reproject, (of_whole, of_part))
            else:
                restored = fuse(prepared.whole, fuse.weights(part, held_out, of_part), of_whole)
        elif self.output_fusion is not None:
            restored = self.output_fusion(low_dose, refined, fused)
        else:
            restored = refined
        if to_object and prepared.part is None:
            restored = 2 * restored - reproject(restored)
        clock.stop("restored")
        seconds = {**prepared.seconds, "restored": prepared.seconds.get("restored", 0.0) + clock.seconds["restored"]}
        return Restoration(prepared.fbp, prior, fused, restored, seconds)

    def _parted(
        self, sinogram: Tensor, geometry: FanBeamGeometry, incident_photons: float, electronic_variance: float
    ) -> tuple[Candidates, Tensor, Tensor]:
        """Candidates of the larger part of the photons, the backprojection of the rest, and the noise of all."""
        fusion = self.held_out_fusion
        kept, held_out = fusion.part(sinogram, incident_photons, electronic_variance)
        # Each part has its share of the photons and of the electronic variance.
        keeping, judging = (
            (share * incident_photons, share * electronic_variance) for share in (fusion.fraction, 1 - fusion.fraction)
        )
        low_dose, prior = self.estimates(kept, geometry, *keeping)
        fused = self.fusion(low_dose, prior)
        judge, _ = self.estimates(held_out, geometry, *judging)
        whole_noise, part_noise = fusion.noise(low_dose, judge)
        part = Candidates(low_dose, prior, fused, self.refine(low_dose, prior, fused), part_noise)
        return part, judge, whole_noise

    @torch.no_grad()
    def estimates(
        self,
        sinogram: Tensor,
        geometry: FanBeamGeometry,
        incident_photons: float | None = None,
        electronic_variance: float | None = None,
        fbp: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``x_ld`` and ``xhat``, what the fusion is given, ``(B, 1, H, W)`` in HU; arguments as in :meth:`restore`.

        ``fbp`` saves a backprojection where the sinogram's has been made already.
        """
        if incident_photons is None:
            denoised = self.projection(sinogram)
            return self._reconstruct(sinogram, geometry) if fbp is None else fbp, self._reconstruct(denoised, geometry)
        variance = self.electronic_variance if electronic_variance is None else electronic_variance
        denoised = self.projection(sinogram, incident_photons=incident_photons, electronic_variance=variance)
        bias = log_bias(denoised, incident_photons, electronic_variance=variance)
        return self._reconstruct(sinogram - bias, geometry), self._reconstruct(denoised - bias, geometry)

    @torch.no_grad()
    def refine(self, low_dose_hu: Tensor, prior_hu: Tensor, fused_hu: Tensor) -> Tensor:
        """The refined image, before any output fusion; all ``(B, 1, H, W)`` in HU."""
        noise = low_dose_hu - prior_hu
        if self.fusion_order == "before":
            return self._with_level(self.refiner(fused_hu, noise=noise), fused_hu)
        weight = self.fusion.weight(low_dose_hu, prior_hu)
        refined = self._with_level(self.refiner(low_dose_hu, noise=noise), low_dose_hu)
        return weight * low_dose_hu + (1 - weight) * refined

    def _with_level(self, refined: Tensor, image: Tensor) -> Tensor:
        """The refined image with the local mean of the image that it was made of."""
        if not self.level_width:
            return refined
        return refined + gauss(image - refined, self.level_width)

    def _reconstruct(self, sinogram: Tensor, geometry: FanBeamGeometry) -> Tensor:
        return attenuation_to_hu(self._operators_of(geometry, sinogram.device).backproject(sinogram), self.mu_water)

    def _reproject(self, image: Tensor, geometry: FanBeamGeometry) -> Tensor:
        """What the backprojection makes of the image's own projections, in HU; as it is outside the field of view."""
        x, y = (torch.from_numpy(c).to(image) for c in geometry.pixel_coordinates())
        # What no view has measured whole would stand at the detector's ends, as if the scan were truncated.
        seen = torch.hypot(x[None], y[:, None]) < geometry.field_of_view_radius
        # Linear, unlike hu_to_attenuation: noise below -1000 HU has its mean there, and without it air would be bright.
        attenuation = (image / 1000 + 1) * self.mu_water * seen
        again = self._reconstruct(self._operators_of(geometry, image.device).project(attenuation), geometry)
        return torch.where(seen, again, image)

    def _operators_of(self, geometry: FanBeamGeometry, device: torch.device) -> _Operators:
        key = geometry, device
        if key not in self._operators:
            if len(self._operators) >= KEPT_OPERATORS:
                self._operators.pop(next(iter(self._operators)))
            self._operators[key] = _Operators(
                FilteredBackprojection(geometry, self.window, self.backend).to(device),
                FanBeamProjector(geometry, self.backend).to(device),
            )
        return self._operators[key]

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


def _around(prepared: Prepared, around: tuple[Prepared, Prepared] | None, which: str) -> tuple[Candidates, ...]:
    """What lies before and what lies after every slice of the batch."""
    if around is None:
        return ()
    own = getattr(prepared, which)
    before, after = (getattr(other, which) for other in around)
    return (
        Candidates(*(torch.cat([first, images[:-1]]) for first, images in zip(before, own))),
        Candidates(*(torch.cat([images[1:], last]) for images, last in zip(own, after))),
    )


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
