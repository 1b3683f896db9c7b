"""Where air, lung, soft tissue and bone are in an image, and how far another image is off there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.layers import gaussian_1d, separable_filtering
from scipy.ndimage import binary_fill_holes
from torch import Tensor

from .result import Result, stated_range

# Shapes in this file: S slices, H W image; all images in HU. A leading axis of 1 is dropped.

#: HU that a tissue's smoothed pixels lie in. Vessels full of contrast agent can reach those of bone.
TISSUES: dict[str, tuple[float, float]] = {
    "air": (-1100.0, -900.0),
    "lung": (-950.0, -500.0),
    "soft_tissue": (-100.0, 150.0),
    "bone": (250.0, 2500.0),
}

#: Above this a smoothed pixel counts as body, HU.
BODY_HU = -500.0

#: Pixels that a tissue needs at least; below, there is no bias and no std.
LEAST_PIXELS = 100

#: Standard deviation of the Gaussian before tissues are told apart, and how far their edges are left out; pixels.
SMOOTHING, EROSION = 2.0, 2


@dataclass(frozen=True, kw_only=True, eq=False)
class TissueStatistics(Result):
    """Error of an image in one tissue; ``n`` counts pixels.

    Args:
        tissue: name in :data:`TISSUES`.
        range_hu: what the smoothed reference lies in there, HU.
        bias: mean of image - reference, HU; None below :data:`LEAST_PIXELS`.
        std: its standard deviation, HU, likewise.
    """

    tissue: str
    range_hu: tuple[float, float]
    bias: float | None
    std: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        stated_range("range_hu", self.range_hu)


@dataclass(frozen=True, kw_only=True, eq=False)
class Contrast(Result):
    """Contrast of a detail against the noise beside it; ``n`` counts the detail's pixels.

    Args:
        n_background: pixels of the background.
        contrast: mean of the detail less mean of the background, HU.
        noise: standard deviation of the background, HU.
        cnr: the one by the other, signed; None without noise.
    """

    n_background: int
    contrast: float
    noise: float
    cnr: float | None


def tissue_masks(reference: Tensor) -> dict[str, Tensor]:
    """Eroded masks ``(S, H, W)`` of every tissue in :data:`TISSUES`.

    The reference is smoothed first, so that its noise chooses no pixels; then every edge is left out by
    :data:`EROSION` pixels (a square). Air counts outside the body and inside the circle that fits into the image, lung
    inside the body: what is filled in where smoothed pixels lie above :data:`BODY_HU`.
    """
    reference = as_stack(reference, "reference")
    smoothed = smooth(reference)
    body = filled_body(smoothed)
    masks = {name: (smoothed >= low) & (smoothed <= high) for name, (low, high) in TISSUES.items()}
    masks["air"] &= ~body & circle(*reference.shape[-2:])
    masks["lung"] &= body
    return {name: _eroded(mask) for name, mask in masks.items()}


def tissue_statistics(
    image: Tensor, reference: Tensor, masks: dict[str, Tensor] | None = None
) -> list[dict[str, TissueStatistics]]:
    """Bias and std of ``image - reference`` in every tissue of every slice.

    Args:
        image: ``(S, H, W)`` or ``(1, S, H, W)``.
        reference: likewise.
        masks: those of :func:`tissue_masks`, where they are known already.

    Returns:
        By slice, then by tissue.

    Raises:
        ValueError: no stacks, or of different shapes.
    """
    image, reference = as_stack(image, "image"), as_stack(reference, "reference")
    if image.shape != reference.shape:
        raise ValueError(f"image and reference must agree, got {tuple(image.shape)} and {tuple(reference.shape)}")
    masks = tissue_masks(reference) if masks is None else masks
    difference = image.double() - reference.double()
    return [
        {name: _statistics(name, difference[k][mask[k]]) for name, mask in masks.items()} for k in range(len(image))
    ]


def contrast_to_noise(image: Tensor, signal_mask: Tensor, background_mask: Tensor) -> Contrast:
    """Contrast-to-noise ratio of a detail: difference of the means by the standard deviation of the background.

    Args:
        image: HU, any shape.
        signal_mask: where the detail is, boolean, the image's shape.
        background_mask: where the background is, likewise, elsewhere.

    Raises:
        ValueError: masks of another shape or kind, that overlap or are too small (1 and 2 pixels at least).
    """
    for name, mask, least in (("signal_mask", signal_mask, 1), ("background_mask", background_mask, 2)):
        if mask.shape != image.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"{name} must be boolean of shape {tuple(image.shape)}, got {mask.dtype} {tuple(mask.shape)}"
            )
        if int(mask.sum()) < least:
            raise ValueError(f"{name} must have {least} pixels or more, got {int(mask.sum())}")
    if bool((signal_mask & background_mask).any()):
        raise ValueError("signal_mask and background_mask must not overlap")
    signal, background = (image[mask].detach().double() for mask in (signal_mask, background_mask))
    contrast, noise = float(signal.mean() - background.mean()), float(background.std())
    return Contrast(
        mask=f"{signal.numel()} pixels of signal_mask against {background.numel()} of background_mask",
        n=signal.numel(),
        n_background=background.numel(),
        contrast=contrast,
        noise=noise,
        cnr=contrast / noise if noise > 0 else None,
    )


def smooth(image: Tensor, sigma: float = SMOOTHING) -> Tensor:
    """The stack ``(S, H, W)`` under a Gaussian of ``sigma`` pixels, slice by slice; edges go on as they are."""
    gauss = gaussian_1d(torch.tensor(float(sigma)), truncated=3.0, normalize=True)
    return separable_filtering(image[:, None], [gauss, gauss], mode="replicate")[:, 0]


def filled_body(smoothed: Tensor) -> Tensor:
    """Body of every slice ``(S, H, W)`` of a smoothed stack: what lies above :data:`BODY_HU`, its cavities filled."""
    return torch.from_numpy(np.stack([binary_fill_holes(one) for one in (smoothed > BODY_HU).numpy()]))


def circle(rows: int, columns: int) -> Tensor:
    """The circle that fits into an image, ``(H, W)``: what lies outside is often not measured, but made up."""
    y, x = (torch.arange(count) - (count - 1) / 2 for count in (rows, columns))
    return y[:, None] ** 2 + x**2 <= (min(rows, columns) / 2) ** 2


def as_stack(image: Tensor, name: str) -> Tensor:
    """The image as float32 ``(S, H, W)`` on the CPU.

    Raises:
        ValueError: it is neither that nor ``(1, S, H, W)``; the message has ``name``.
    """
    image = image.as_tensor() if hasattr(image, "as_tensor") else image
    if image.ndim == 4 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 3:
        raise ValueError(f"{name} must be (slices, rows, columns), got {tuple(image.shape)}")
    return image.detach().float().cpu()


def _eroded(mask: Tensor) -> Tensor:
    side = 2 * EROSION + 1
    # Outside the image counts as outside the tissue.
    return F.max_pool2d(F.pad((~mask).float()[:, None], (EROSION,) * 4, value=1.0), side, stride=1)[:, 0] == 0


def _statistics(tissue: str, difference: Tensor) -> TissueStatistics:
    n = difference.numel()
    low, high = TISSUES[tissue]
    place = {"air": " outside the body", "lung": " inside the body"}.get(tissue, "")
    return TissueStatistics(
        mask=f"smoothed reference (Gaussian, {SMOOTHING:g} pixels) in [{low:g}, {high:g}] HU{place}, "
        f"eroded by {EROSION} pixels",
        n=n,
        tissue=tissue,
        range_hu=(low, high),
        bias=float(difference.mean()) if n >= LEAST_PIXELS else None,
        std=float(difference.std()) if n >= LEAST_PIXELS else None,
    )
