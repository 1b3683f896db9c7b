"""Single slices for training, from scans that are read once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bundle.io import read_ct, read_sinogram


def training_slices(scans: Sequence[dict], every: int = 1) -> list[dict[str, Any]]:
    """One item a slice, for a MONAI dataset.

    Args:
        scans: items of :func:`bundle.io.find_scans`.
        every: take each n-th slice of a scan.

    Returns:
        For a CT ``image_hu``, float32 ``(1, H, W)``, a view into its volume, and ``pixel_size`` (mm); for a measured
        scan ``sinogram``, float32 ``(1, V, D)``, and ``geometry`` (JSON); for both ``name``, ``patient``, ``slice``.

    Raises:
        ValueError: ``every`` is below 1, or names the file that can't be read.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    items = []
    for scan in scans:
        if scan["kind"] == "sinogram":
            stack, geometry = read_sinogram(scan["path"])
            key, more = "sinogram", {"geometry": geometry.to_json()}
        else:
            volume = read_ct(scan["path"])
            stack, key, more = volume.image_hu, "image_hu", {"pixel_size": volume.pixel_size}
        who = {"name": scan["name"], "patient": scan["patient"]}
        items += [{key: stack[index][None], "slice": index, **more, **who} for index in range(0, len(stack), every)]
    return items
