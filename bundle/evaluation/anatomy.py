"""Whether what a restoration took away was noise: edges in the residual, and HU that drifted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .result import Result, stated_range
from .tissue import EROSION, LEAST_PIXELS, SMOOTHING, TISSUES, as_stack, filled_body, smooth, tissue_masks

# Shapes in this file: S slices, H W image; all images in HU. A leading axis of 1 is dropped.

#: Edges are looked at between these two Gaussians, pixels: finer is mostly noise, coarser is HU drift.
EDGE_BAND = (1.0, 3.0)

#: How far an edge must stand out from the noise that the structure has: the standard deviation of normal noise whose
#: absolute values have the same lower quartile, in the body. More than that quartile is not taken for plain.
EDGE_FACTOR, QUARTILE = 5.0, 0.3186

#: The residual is shifted against the structure by these distances in eight directions, to see what chance gives.
SHIFTS = (11, 17, 29)

#: Gaussian under which histograms are compared, pixels: the noise of an FBP is gone at this scale.
HISTOGRAM_SMOOTHING = 4.0

#: Side of the squares whose spread gives the error of a shift, pixels: wider than noise is correlated.
BLOCK = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class ResidualAnatomy(Result):
    """How much of the edges of a slice is in the residual FBP - restored; ``n`` counts edge pixels.

    Args:
        least_edge: what counts as an edge, HU in the band of :data:`EDGE_BAND`.
        share: of the edges' contrast that the residual holds: 0 where only noise was taken away, 1 where all edges
            were; negative where edges were enhanced. None below ``LEAST_PIXELS``.
        chance: standard deviation of ``share`` over shifts of the residual that tear it from the structure.
        correlation: of the residual with the structure on the edges, in the same band.
    """

    least_edge: float
    share: float | None
    chance: float | None
    correlation: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Drift(Result):
    """How far HU of one tissue moved from the FBP to the restored slice; ``n`` counts pixels.

    Args:
        tissue: name in ``TISSUES``.
        range_hu: what the smoothed restored image lies in there, HU.
        shift: mean of restored - FBP, HU; None below ``LEAST_PIXELS``.
        error: standard error of the shift, from squares of :data:`BLOCK` pixels.
        histogram: mean distance of the two histograms (Wasserstein's, order 1) of the images under a Gaussian of
            :data:`HISTOGRAM_SMOOTHING` pixels, HU: at least the shift; more where contrast within the tissue was lost.
    """

    tissue: str
    range_hu: tuple[float, float]
    shift: float | None
    error: float | None
    histogram: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        stated_range("range_hu", self.range_hu)


def residual_anatomy(fbp: Tensor, restored: Tensor, structure: Tensor | None = None) -> list[ResidualAnatomy]:
    """How much of the body's edges the residual ``fbp - restored`` holds, slice by slice.

    Structure and residual pass the same band (difference of Gaussians). On edges, the residual is summed with the sign
    of the structure and divided by the sum of the structure's absolute values; edges above three times the least one
    weigh no more than that, lest skin and bone drown the rest. The noise that image and residual share cancels: at an
    edge, it does not decide the sign.

    Args:
        fbp: ``(S, H, W)`` or ``(1, S, H, W)``.
        restored: likewise.
        structure: whose edges to look for; None takes the restored image's own, the reference is surer.

    Raises:
        ValueError: no stacks, or of different shapes.
    """
    fbp, restored = _pair(fbp, restored)
    structure = restored if structure is None else as_stack(structure, "structure")
    if structure.shape != fbp.shape:
        raise ValueError(f"structure must be {tuple(fbp.shape)}, got {tuple(structure.shape)}")
    residuals, structures = _band(fbp - restored), _band(structure)
    bodies = filled_body(smooth(structure))
    return [_anatomy(*slices) for slices in zip(residuals, structures, bodies)]


def hu_drift(fbp: Tensor, restored: Tensor) -> list[dict[str, Drift]]:
    """Shift of HU from FBP to restored in every tissue of every slice: needs no reference.

    The mean of an FBP over a tissue is nearly free of noise and, unless photons were starved, of bias: a restoration
    that moves it has drifted. Tissues are told apart in the restored image, see :func:`tissue_masks`.

    Args:
        fbp: ``(S, H, W)`` or ``(1, S, H, W)``.
        restored: likewise.

    Raises:
        ValueError: no stacks, or of different shapes.
    """
    fbp, restored = _pair(fbp, restored)
    masks = tissue_masks(restored)
    coarse = smooth(fbp, HISTOGRAM_SMOOTHING), smooth(restored, HISTOGRAM_SMOOTHING)
    difference = restored.double() - fbp.double()
    return [
        {name: _drift(name, difference[k], coarse[0][k], coarse[1][k], mask[k]) for name, mask in masks.items()}
        for k in range(len(fbp))
    ]


def _pair(fbp: Tensor, restored: Tensor) -> tuple[Tensor, Tensor]:
    fbp, restored = as_stack(fbp, "fbp"), as_stack(restored, "restored")
    if fbp.shape != restored.shape:
        raise ValueError(f"fbp and restored must agree, got {tuple(fbp.shape)} and {tuple(restored.shape)}")
    return fbp, restored


def _band(stack: Tensor) -> Tensor:
    fine, coarse = EDGE_BAND
    return smooth(stack, fine) - smooth(stack, coarse)


def _anatomy(residual: Tensor, structure: Tensor, body: Tensor) -> ResidualAnatomy:
    plain = structure[body].abs().sort().values
    spread = float(plain[len(plain) // 4]) / QUARTILE if len(plain) else 0.0
    least = max(EDGE_FACTOR * spread, torch.finfo(torch.float32).eps * 1000)
    edges = body & (structure.abs() > least)
    n = int(edges.sum())
    share = chance = correlation = None
    if n >= LEAST_PIXELS:
        strength = structure[edges].abs().double()
        weight = (3 * least / strength).clamp(max=1) * structure[edges].sign()

        def share_of(field: Tensor) -> float:
            return float((field[edges] * weight).sum() / (strength * weight.abs()).sum())

        share = share_of(residual)
        # Torn from the structure, the residual inside the body still has its strength and its texture.
        inside = residual * body
        turns = [(0, 1), (1, 0), (1, 1), (1, -1), (0, -1), (-1, 0), (-1, -1), (-1, 1)]
        shifted = [share_of(inside.roll((d * a, d * b), (0, 1))) for d in SHIFTS for a, b in turns]
        chance = float(torch.tensor(shifted).square().mean().sqrt())
        pair = torch.stack([residual[edges], structure[edges]]).double()
        correlation = float(torch.corrcoef(pair)[0, 1].nan_to_num())
    fine, coarse = EDGE_BAND
    return ResidualAnatomy(
        mask=f"edges inside the body: structure between Gaussians of {fine:g} and {coarse:g} pixels beyond "
        f"{least:.1f} HU",
        n=n,
        least_edge=least,
        share=share,
        chance=chance,
        correlation=correlation,
    )


def _drift(tissue: str, difference: Tensor, fbp: Tensor, restored: Tensor, mask: Tensor) -> Drift:
    n = int(mask.sum())
    low, high = TISSUES[tissue]
    shift = error = histogram = None
    if n >= LEAST_PIXELS:
        shift = float(difference[mask].mean())
        sums, counts = (
            F.avg_pool2d(F.pad(v, (0, -v.shape[1] % BLOCK, 0, -v.shape[0] % BLOCK))[None], BLOCK, BLOCK) * BLOCK**2
            for v in ((difference - shift) * mask, mask.double())
        )
        blocks = max(1, int((counts > 0).sum()))
        error = float(sums.square().sum().sqrt() / n * (blocks / max(1, blocks - 1)) ** 0.5)
        histogram = float((fbp[mask].sort().values - restored[mask].sort().values).abs().mean())
    return Drift(
        mask=f"smoothed restored image (Gaussian, {SMOOTHING:g} pixels) in [{low:g}, {high:g}] HU, eroded by {EROSION} "
        "pixels",
        n=n,
        tissue=tissue,
        range_hu=(low, high),
        shift=shift,
        error=error,
        histogram=histogram,
    )
