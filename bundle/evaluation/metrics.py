"""How far an image is from the normal-dose reference, in HU and in stated windows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import torch
import torch.nn.functional as F
from monai.metrics import PSNRMetric, RMSEMetric, SSIMMetric
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor

# Shapes in this file: S slices, H W image; all images in HU. A leading axis of 1 is dropped.

#: HU windows by name, low and high. Error metrics depend on them, so they are always reported with their range.
WINDOWS: dict[str, tuple[float, float]] = {
    "full": (-1024.0, 3072.0),
    "wide": (-1000.0, 1000.0),
    "abdomen": (-150.0, 250.0),
    "chest": (-1350.0, 150.0),
    "head": (0.0, 80.0),
}

#: Soft tissue, HU: what the smoothed reference must lie in to count for the HU bias.
SOFT_TISSUE_HU = (-100.0, 150.0)

#: Pixels that the HU bias needs at least; below, it is None.
LEAST_BIAS_PIXELS = 100

#: Above this a smoothed pixel counts as body for the noise level, HU.
BODY_HU = -500.0

Row = dict[str, Any]


def score_stages(
    stages: Mapping[str, Tensor], reference: Tensor | None, windows: Mapping[str, Sequence[float]] = WINDOWS
) -> dict[str, dict[str, Any]]:
    """Scores of every stage of one stack, ready for JSON.

    Args:
        stages: images by the name of the stage, each ``(S, H, W)`` or ``(1, S, H, W)``.
        reference: the normal-dose image, likewise; None (a measured scan) leaves only the noise level.
        windows: low and high in HU by name.

    Returns:
        By stage: ``slices``, one row of metrics a slice (see :func:`score_slices`); ``mean`` and ``std`` of each
        metric over the slices that have it (None where none has); ``n``, the number of slices.
    """
    scores = {}
    for stage, image in stages.items():
        rows = score_slices(image, reference, windows)
        scores[stage] = {"n": len(rows), **mean_and_std(rows), "slices": rows}
    return scores


def score_slices(
    image: Tensor, reference: Tensor | None, windows: Mapping[str, Sequence[float]] = WINDOWS
) -> list[Row]:
    """Metrics of every slice, each over the whole slice unless stated.

    ``rmse_hu``: root mean squared error, HU, not clipped. ``psnr_<window>`` (dB) and ``ssim_<window>``: image and
    reference clipped to the window, ``data_range`` its width, SSIM with a Gaussian of 1.5 pixels over 11; PSNR is None
    where the two are equal. ``hu_bias`` and ``hu_bias_pixels``: see :func:`hu_bias`. ``noise_hu``: see
    :func:`noise_level`. Without a reference only ``noise_hu``.

    Raises:
        ValueError: shapes that differ or are no stack, a slice smaller than SSIM's 11 pixels, a window that is none.
    """
    image = _stack(image, "image")
    noise = noise_level(image)
    if reference is None:
        return [{"noise_hu": n} for n in noise]
    reference = _stack(reference, "reference")
    if image.shape != reference.shape:
        raise ValueError(f"image and reference must agree, got {tuple(image.shape)} and {tuple(reference.shape)}")
    columns: dict[str, list[float | None]] = {"rmse_hu": _each(RMSEMetric(reduction="none"), image, reference)}
    for name, (low, high) in checked_windows(windows).items():
        clipped = image.clamp(low, high), reference.clamp(low, high)
        width = high - low
        columns[f"psnr_{name}"] = _each(PSNRMetric(max_val=width, reduction="none"), *clipped)
        columns[f"ssim_{name}"] = _each(SSIMMetric(2, data_range=width, reduction="none"), *clipped)
    biases = hu_bias(image, reference)
    columns["hu_bias"] = [bias for bias, _ in biases]
    columns["hu_bias_pixels"] = [pixels for _, pixels in biases]
    columns["noise_hu"] = noise
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def hu_bias(image: Tensor, reference: Tensor) -> list[tuple[float | None, int]]:
    """Mean of ``image - reference`` in soft tissue, HU, and the number of its pixels, slice by slice.

    Soft tissue: the reference, smoothed by a Gaussian of 2 pixels so that its noise chooses no pixels, lies in
    :data:`SOFT_TISSUE_HU`; eroded by 2 pixels. None where fewer than :data:`LEAST_BIAS_PIXELS` are left.
    """
    image, reference = _stack(image, "image"), _stack(reference, "reference")
    gauss = gaussian_1d(torch.tensor(2.0), truncated=3.0, normalize=True)
    smoothed = separable_filtering(reference[:, None], [gauss, gauss], mode="replicate")
    low, high = SOFT_TISSUE_HU
    outside = ((smoothed < low) | (smoothed > high)).float()
    # Outside the image counts as outside the tissue.
    mask = F.max_pool2d(F.pad(outside, (2, 2, 2, 2), value=1.0), 5, stride=1)[:, 0] == 0
    result: list[tuple[float | None, int]] = []
    for one, other, where in zip(image, reference, mask):
        pixels = int(where.sum())
        bias = float((one - other)[where].double().mean()) if pixels >= LEAST_BIAS_PIXELS else None
        result.append((bias, pixels))
    return result


def noise_level(image: Tensor) -> list[float]:
    """Noise of every slice, HU: median over the body of the local std (7x7) of what a 7x7 mean leaves.

    It needs no reference, and falls with blur as well as with dose: it judges nothing alone.
    """
    image = _stack(image, "image")[:, None]
    box = image.new_full((7,), 1 / 7)

    def mean(value: Tensor) -> Tensor:
        return separable_filtering(value, [box, box], mode="replicate")

    smoothed = mean(image)
    residual = image - smoothed
    local = (mean(residual**2) - mean(residual) ** 2).clamp_min(0).sqrt()
    body = smoothed > BODY_HU
    return [float((n[b] if b.any() else n).median()) for n, b in zip(local, body)]


def mean_and_std(rows: Sequence[Row]) -> dict[str, Row]:
    """Mean and standard deviation (of the population) of every column, over the rows where it is not None."""
    columns = {name: None for row in rows for name in row}
    values = {name: [row[name] for row in rows if row.get(name) is not None] for name in columns}
    return {
        "mean": {name: fmean(v) if v else None for name, v in values.items()},
        "std": {name: pstdev(v) if v else None for name, v in values.items()},
    }


def checked_windows(windows: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """The windows as pairs of numbers.

    Raises:
        ValueError: none at all, or one that is not two numbers, low before high.
    """
    if not windows:
        raise ValueError("windows must name at least one HU window, got none")
    for name, window in windows.items():
        if len(window) != 2 or not -math.inf < window[0] < window[1] < math.inf:
            raise ValueError(f"window {name!r} must be [low, high] in HU, got {list(window)}")
    return {name: (float(low), float(high)) for name, (low, high) in windows.items()}


def _stack(image: Tensor, name: str) -> Tensor:
    image = image.as_tensor() if hasattr(image, "as_tensor") else image
    if image.ndim == 4 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 3:
        raise ValueError(f"{name} must be (slices, rows, columns), got {tuple(image.shape)}")
    return image.detach().float().cpu()


def _each(metric: PSNRMetric | RMSEMetric | SSIMMetric, image: Tensor, reference: Tensor) -> list[float | None]:
    """The metric of every slice; None for what JSON can't say (the infinite PSNR of equal slices)."""
    if isinstance(metric, SSIMMetric) and min(image.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs slices of 11 x 11 pixels or more, got {tuple(image.shape[-2:])}")
    values: list[float | None] = []
    # Slice by slice: SSIM keeps several copies of what it is given.
    for one, other in zip(image, reference):
        value = float(metric(y_pred=one[None, None], y=other[None, None]))
        values.append(value if math.isfinite(value) else None)
    return values
