"""One picture of a restoration: every stage in a stated window, and what was taken away."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from bundle.io import replace_when_complete

from .metrics import BODY_HU, checked_windows, score_slices

#: Width and height of a panel in pixels.
PANEL_SIZE = (1440, 1080)
_DPI = 100

_TITLES = {"fbp": "FBP", "prior": "prior", "fused": "fused", "restored": "restored"}


def save_panel(
    path: str | os.PathLike[str],
    stages: Mapping[str, Tensor],
    reference: Tensor | None = None,
    window: Sequence[float] = (-150.0, 250.0),
    window_name: str = "abdomen",
    slice_index: int | None = None,
    name: str = "",
    overwrite: bool = False,
) -> None:
    """Write a PNG: reference, FBP, prior, fused, restored in one window, and the residual FBP - restored.

    Under each image stands its RMSE to the reference over the whole slice, HU; without a reference its noise level.
    The residual is shown over a quarter of the window's width to either side of 0: it should show no anatomy.

    Args:
        path: PNG file.
        stages: images in HU, ``(S, H, W)`` or ``(1, S, H, W)``; ``fbp`` and ``restored`` are needed.
        reference: the normal-dose image, likewise; left out of the panel where there is none.
        window: low and high in HU.
        window_name: what the window is called in the title.
        slice_index: slice to show; by default the one with most body.
        name: of the case, for the title.
        overwrite: replace an existing file.

    Raises:
        ValueError: a file that exists, a window that is none, a slice that the stack lacks.
    """
    low, high = checked_windows({window_name: window})[window_name]
    stacks = {key: _slices(image) for key, image in stages.items()}
    fbp = stacks["fbp"]
    if slice_index is None:
        slice_index = int((fbp > BODY_HU).flatten(1).sum(1).argmax())
    if not 0 <= slice_index < len(fbp):
        raise ValueError(f"slice_index must be 0 to {len(fbp) - 1}, got {slice_index}")
    shown = {key: stack[slice_index] for key, stack in stacks.items()}
    truth = None if reference is None else _slices(reference)[slice_index]

    figure = Figure(figsize=(PANEL_SIZE[0] / _DPI, PANEL_SIZE[1] / _DPI), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(2, 3).flat)
    for axis in axes:
        axis.set_axis_off()
    figure.suptitle(f"{name + ', ' if name else ''}slice {slice_index}, window {window_name} [{low:g}, {high:g}] HU")
    places = iter(axes)
    if truth is not None:
        _show(next(places), truth, low, high, "reference (normal dose)")
    for key, image in shown.items():
        row = score_slices(image[None], None if truth is None else truth[None], {window_name: (low, high)})[0]
        note = f"noise {row['noise_hu']:.1f} HU" if truth is None else f"RMSE {row['rmse_hu']:.1f} HU"
        _show(next(places), image, low, high, f"{_TITLES.get(key, key)}\n{note}")
    reach = (high - low) / 4
    residual = shown["fbp"] - shown["restored"]
    _show(next(places), residual, -reach, reach, f"residual FBP - restored\n[{-reach:g}, {reach:g}] HU")
    with replace_when_complete(path, overwrite=overwrite) as unfinished:
        figure.savefig(unfinished, format="png")


def _slices(image: Tensor) -> Tensor:
    return image.reshape(-1, *image.shape[-2:]).detach().float().cpu()


def _show(axis, image: Tensor, low: float, high: float, title: str) -> None:
    axis.imshow(torch.clamp(image, low, high).numpy(), cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    axis.set_title(title, fontsize="medium")
