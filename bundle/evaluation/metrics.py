"""How far an image is from the normal-dose reference, in HU and in stated windows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from monai.metrics import PSNRMetric, RMSEMetric, SSIMMetric
from monai.networks.layers import separable_filtering
from torch import Tensor

from .tissue import BODY_HU, EROSION, SMOOTHING, TISSUES, TissueStatistics, as_stack, tissue_masks, tissue_statistics

# Shapes in this file: S slices, H W image; all images in HU. A leading axis of 1 is dropped.

#: HU windows by name, low and high. Error metrics depend on them, so they are always reported with their range.
WINDOWS: dict[str, tuple[float, float]] = {
    "full": (-1024.0, 3072.0),
    "wide": (-1000.0, 1000.0),
    "abdomen": (-150.0, 250.0),
    "chest": (-1350.0, 150.0),
    "head": (0.0, 80.0),
}

#: Variance of the noise that VIF's observer sees by, HU^2; and the least side of a slice that its scales need, pixels.
VIF_NOISE_VARIANCE, VIF_LEAST_SIDE = 2.0, 41

#: Which pixels the columns of :func:`score_slices` were measured on; goes with them into every report.
MASKS: dict[str, str] = {
    "rmse_hu": "whole slice, not clipped",
    "psnr_<window>": "whole slice, image and reference clipped to the window; range: its width",
    "ssim_<window>": "whole slice but for a rim of 5 pixels, clipped likewise; range: the window's width",
    "vif_<window>": f"whole slice, clipped to the widest window; noise variance {VIF_NOISE_VARIANCE:g} HU^2",
    "noise_hu": f"body: 7x7 mean above {BODY_HU:g} HU",
    "hu_bias": "as hu_bias_soft_tissue; pixels: hu_bias_pixels",
    **{
        f"hu_bias_{tissue}, hu_std_{tissue}": f"reference under a Gaussian of {SMOOTHING:g} pixels in "
        f"[{low:g}, {high:g}] HU{place}, eroded by {EROSION} pixels; pixels: pixels_{tissue}"
        for (tissue, (low, high)), place in zip(TISSUES.items(), (" outside the body", " inside the body", "", ""))
    },
}

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
        metric over the slices that have it (None where none has); ``n``, the number of slices; ``windows`` and
        ``masks``: what the metrics were measured on.
    """
    masks = None if reference is None else tissue_masks(reference)
    stated = {"windows": checked_windows(windows), "masks": dict(MASKS)}
    scores = {}
    for stage, image in stages.items():
        rows = score_slices(image, reference, windows, masks)
        scores[stage] = {"n": len(rows), **stated, **mean_and_std(rows), "slices": rows}
    return scores


def score_slices(
    image: Tensor,
    reference: Tensor | None,
    windows: Mapping[str, Sequence[float]] = WINDOWS,
    masks: Mapping[str, Tensor] | None = None,
) -> list[Row]:
    """Metrics of every slice, each over the whole slice unless stated.

    ``rmse_hu``: root mean squared error, HU, not clipped. ``psnr_<window>`` (dB) and ``ssim_<window>``: image and
    reference clipped to the window, ``data_range`` its width, SSIM with a Gaussian of 1.5 pixels over 11; PSNR is None
    where the two are equal. ``vif_<window>``: see :func:`vif`, in the widest window alone, for it takes long.
    ``hu_bias_<tissue>``, ``hu_std_<tissue>`` and ``pixels_<tissue>``: see :func:`tissue_statistics`; ``hu_bias`` and
    ``hu_bias_pixels`` are those of soft tissue. ``noise_hu``: see :func:`noise_level`. Without a reference only
    ``noise_hu``. :data:`MASKS` says which pixels each was measured on.

    Args:
        image: ``(S, H, W)`` or ``(1, S, H, W)``.
        reference: likewise; None for a measured scan.
        windows: low and high in HU by name.
        masks: the reference's :func:`tissue_masks`, where they are known already.

    Raises:
        ValueError: shapes that differ or are no stack, a slice smaller than SSIM's 11 pixels, a window that is none.
    """
    image = as_stack(image, "image")
    noise = noise_level(image)
    if reference is None:
        return [{"noise_hu": n} for n in noise]
    reference = as_stack(reference, "reference")
    if image.shape != reference.shape:
        raise ValueError(f"image and reference must agree, got {tuple(image.shape)} and {tuple(reference.shape)}")
    columns: dict[str, list[float | None]] = {"rmse_hu": _each(RMSEMetric(reduction="none"), image, reference)}
    windows = checked_windows(windows)
    for name, (low, high) in windows.items():
        clipped = image.clamp(low, high), reference.clamp(low, high)
        width = high - low
        columns[f"psnr_{name}"] = _each(PSNRMetric(max_val=width, reduction="none"), *clipped)
        columns[f"ssim_{name}"] = _each(SSIMMetric(2, data_range=width, reduction="none"), *clipped)
    widest = max(windows, key=lambda name: windows[name][1] - windows[name][0])
    columns[f"vif_{widest}"] = vif(image, reference, windows[widest])
    statistics = tissue_statistics(image, reference, masks)
    columns["hu_bias"] = [row["soft_tissue"].bias for row in statistics]
    columns["hu_bias_pixels"] = [row["soft_tissue"].n for row in statistics]
    columns["noise_hu"] = noise
    for tissue in TISSUES:
        columns[f"hu_bias_{tissue}"] = [row[tissue].bias for row in statistics]
        columns[f"hu_std_{tissue}"] = [row[tissue].std for row in statistics]
        columns[f"pixels_{tissue}"] = [row[tissue].n for row in statistics]
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def vif(image: Tensor, reference: Tensor, window: Sequence[float]) -> list[float | None]:
    """Visual information fidelity of every slice in one window: 1 for the reference itself, above 1 when enhanced.

    Both are clipped to the window and shifted so that it begins at 0; they stay in HU, so the noise variance of the
    observer, :data:`VIF_NOISE_VARIANCE`, is in HU^2. None where the reference is flat in the window or slices are
    smaller than :data:`VIF_LEAST_SIDE`.

    Raises:
        ValueError: shapes that differ or are no stack, a window that is none.

    Source: Sheikh and Bovik, IEEE Trans. Image Process. 15(2), 2006 (the pixel form, as torchmetrics has it).
    """
    # It takes seconds to import, and most uses of this room have no need for it.
    from torchmetrics.functional.image import visual_information_fidelity

    image, reference = as_stack(image, "image"), as_stack(reference, "reference")
    if image.shape != reference.shape:
        raise ValueError(f"image and reference must agree, got {tuple(image.shape)} and {tuple(reference.shape)}")
    low, high = checked_windows({"window": window})["window"]
    if min(image.shape[-2:]) < VIF_LEAST_SIDE:
        return [None] * len(image)
    values: list[float | None] = []
    for one, other in zip(image, reference):
        clipped = ((v.clamp(low, high) - low)[None, None] for v in (one, other))
        value = float(visual_information_fidelity(*clipped, sigma_n_sq=VIF_NOISE_VARIANCE))
        values.append(value if math.isfinite(value) else None)
    return values


def hu_bias(image: Tensor, reference: Tensor) -> list[tuple[float | None, int]]:
    """Mean of ``image - reference`` in soft tissue, HU, and the number of its pixels, slice by slice.

    See :func:`tissue_statistics`. None where too few pixels are left.
    """
    soft: list[TissueStatistics] = [row["soft_tissue"] for row in tissue_statistics(image, reference)]
    return [(one.bias, one.n) for one in soft]


def noise_level(image: Tensor) -> list[float]:
    """Noise of every slice, HU: median over the body of the local std (7x7) of what a 7x7 mean leaves.

    It needs no reference, and falls with blur as well as with dose: it judges nothing alone.
    """
    image = as_stack(image, "image")[:, None]
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
