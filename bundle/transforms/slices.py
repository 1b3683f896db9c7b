"""Single slices for training, from scans that are read once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bundle.io import read_ct, read_scan_noise, read_sinogram


def training_slices(scans: Sequence[dict], every: int = 1, repeats: int = 1) -> list[dict[str, Any]]:
    """One item a slice, for a MONAI dataset.

    Args:
        scans: items of :func:`bundle.io.find_scans`.
        every: take each n-th slice of a scan.
        repeats: items a slice, told apart by ``repeat``: what is drawn at random for a slice but then kept, such as
            a thinning, is drawn this often.

    Returns:
        For a CT ``image_hu``, float32 ``(1, H, W)``, a view into its volume, and ``pixel_size`` (mm); for a measured
        scan ``sinogram``, float32 ``(1, V, D)``, ``geometry`` (JSON), and where the file says them ``incident_photons``
        and ``electronic_variance``; for both ``name``, ``patient``,
        ``slice`` and ``repeat``.

    Raises:
        ValueError: ``every`` or ``repeats`` is below 1, or names the file that can't be read.
    """
    for name, value in (("every", every), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    items = []
    for scan in scans:
        if scan["kind"] == "sinogram":
            stack, geometry = read_sinogram(scan["path"])
            photons, variance = read_scan_noise(scan["path"])
            known = {"incident_photons": photons, "electronic_variance": variance}
            key, more = "sinogram", {name: value for name, value in known.items() if value is not None}
            more["geometry"] = geometry.to_json()
        else:
            volume = read_ct(scan["path"])
            stack, key, more = volume.image_hu, "image_hu", {"pixel_size": volume.pixel_size}
        who = {"name": scan["name"], "patient": scan["patient"]}
        items += [
            {key: stack[index][None], "slice": index, "repeat": repeat, **more, **who}
            for index in range(0, len(stack), every)
            for repeat in range(repeats)
        ]
    return items
