"""Pictures of a restoration: every stage in a stated window, and what was taken away."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from bundle.io import replace_when_complete

from .anatomy import residual_anatomy
from .metrics import checked_windows, noise_level
from .tissue import BODY_HU

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
    shown, truth, slice_index = _chosen(stages, reference, slice_index)
    figure, axes = _empty()
    figure.suptitle(f"{name + ', ' if name else ''}slice {slice_index}, window {window_name} [{low:g}, {high:g}] HU")
    places = iter(axes)
    if truth is not None:
        _show(next(places), truth, low, high, "reference (normal dose)")
    for key, image in shown.items():
        if truth is None:
            note = f"noise {noise_level(image[None])[0]:.1f} HU"
        else:
            note = f"RMSE {(image - truth).double().square().mean().sqrt():.1f} HU"
        _show(next(places), image, low, high, f"{_TITLES.get(key, key)}\n{note}")
    reach = (high - low) / 4
    residual = shown["fbp"] - shown["restored"]
    _show(next(places), residual, -reach, reach, f"residual FBP - restored\n[{-reach:g}, {reach:g}] HU")
    with replace_when_complete(path, overwrite=overwrite) as unfinished:
        figure.savefig(unfinished, format="png")


def save_residuals(
    path: str | os.PathLike[str],
    stages: Mapping[str, Tensor],
    reference: Tensor | None = None,
    reach: float = 100.0,
    slice_index: int | None = None,
    name: str = "",
    overwrite: bool = False,
) -> None:
    """Write a PNG of what each stage took away, FBP - stage, and with a reference of what is wrong, stage - reference.

    Taken away should be noise alone: under each such map stands the share of the edges' contrast that it holds (see
    :func:`residual_anatomy`; the reference's edges, or else the restored image's), and what chance gives. The maps go
    from ``-reach`` to ``reach``.

    Args:
        path: PNG file.
        stages: images in HU, ``(S, H, W)`` or ``(1, S, H, W)``; ``fbp`` and ``restored`` are needed;
            beside ``fbp`` the first three are shown.
        reference: the normal-dose image, likewise.
        reach: of the grey scale, HU.
        slice_index: slice to show; by default the one with most body.
        name: of the case, for the title.
        overwrite: replace an existing file.

    Raises:
        ValueError: a file that exists, a reach that is not positive, a slice that the stack lacks.
    """
    if not reach > 0:
        raise ValueError(f"reach must be positive (HU), got {reach}")
    shown, truth, slice_index = _chosen(stages, reference, slice_index)
    figure, axes = _empty()
    figure.suptitle(f"{name + ', ' if name else ''}slice {slice_index}, differences in [-{reach:g}, {reach:g}] HU")
    structure = shown["restored"] if truth is None else truth
    for (key, image), axis in zip(((k, v) for k, v in shown.items() if k != "fbp"), axes[:3]):
        residual = shown["fbp"] - image
        found = residual_anatomy(shown["fbp"][None], image[None], structure[None])[0]
        note = "too few edges" if found.share is None else f"edges {found.share:.1%} (chance {found.chance:.1%})"
        _show(axis, residual, -reach, reach, f"FBP - {_TITLES.get(key, key)}\n{note}, n = {found.n} pixels")
        if truth is not None:
            error = image - truth
            note = f"RMSE {error.double().square().mean().sqrt():.1f} HU, whole slice"
            _show(axes[axes.index(axis) + 3], error, -reach, reach, f"{_TITLES.get(key, key)} - reference\n{note}")
    with replace_when_complete(path, overwrite=overwrite) as unfinished:
        figure.savefig(unfinished, format="png")


def _chosen(
    stages: Mapping[str, Tensor], reference: Tensor | None, slice_index: int | None
) -> tuple[dict[str, Tensor], Tensor | None, int]:
    """One slice of every stage and of the reference, and its index."""
    stacks = {key: _slices(image) for key, image in stages.items()}
    fbp = stacks["fbp"]
    if slice_index is None:
        slice_index = int((fbp > BODY_HU).flatten(1).sum(1).argmax())
    if not 0 <= slice_index < len(fbp):
        raise ValueError(f"slice_index must be 0 to {len(fbp) - 1}, got {slice_index}")
    truth = None if reference is None else _slices(reference)[slice_index]
    return {key: stack[slice_index] for key, stack in stacks.items()}, truth, slice_index


def _empty() -> tuple[Figure, list]:
    figure = Figure(figsize=(PANEL_SIZE[0] / _DPI, PANEL_SIZE[1] / _DPI), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(2, 3).flat)
    for axis in axes:
        axis.set_axis_off()
    return figure, axes


def _slices(image: Tensor) -> Tensor:
    return image.reshape(-1, *image.shape[-2:]).detach().float().cpu()


def _show(axis, image: Tensor, low: float, high: float, title: str) -> None:
    axis.imshow(torch.clamp(image, low, high).numpy(), cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    axis.set_title(title, fontsize="medium")
