"""From a scan that was found to its pixels or line integrals."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from bundle.io import ScanFrame, read_ct, read_scan_noise, read_sinogram


class LoadScand(MapTransform):
    """Read the scan of an item from :func:`bundle.io.find_scans`.

    Adds ``scan`` (:class:`bundle.io.ScanFrame` as JSON: what writing the result back needs), ``slice`` (int64
    ``(S,)``, index of each slice in the file), ``pixel_size`` (mm), and for a CT ``image_hu``, float32
    ``(1, S, H, W)``; for a measured sinogram ``sinogram``, float32 ``(1, S, V, D)``, and ``geometry`` (JSON); with
    ``incident_photons`` and ``electronic_variance`` where the file says them.

    Args:
        keys: key of the path.
        slices: read all (None), or this many evenly spaced slices from the middle of the stack.

    Raises:
        ValueError: names the file and what is wrong with it.
    """

    def __init__(self, keys: KeysCollection = "path", slices: int | None = None) -> None:
        super().__init__(keys)
        if slices is not None and slices < 1:
            raise ValueError(f"slices must be None (all) or at least 1, got {slices}")
        self.slices = slices

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            item.update(self._load(item[key], item))
        return item

    def _load(self, path: Any, item: Mapping[Hashable, Any]) -> dict[str, Any]:
        if item.get("kind") == "sinogram":
            stack, geometry = read_sinogram(path)
            patient = str(item.get("patient", ""))
            frame = ScanFrame.from_geometry(geometry, len(stack), patient=patient, source=str(path))
            loaded = {"geometry": geometry.to_json()}
            noise = read_scan_noise(path)
            if noise.photons is not None:
                loaded["incident_photons"] = noise.photons
            if noise.electronic_variance is not None:
                loaded["electronic_variance"] = noise.electronic_variance
            name = "sinogram"
        else:
            volume = read_ct(path)
            stack, frame = volume.image_hu, volume
            loaded = {}
            name = "image_hu"
        total = len(stack)
        count = min(self.slices or total, total)
        step = total // count
        first = (total - 1 - step * (count - 1)) // 2
        chosen = first + step * torch.arange(count)
        loaded |= {
            name: stack[chosen][None],
            "slice": chosen,
            "scan": frame.with_slices(first, step, count).to_json(),
            "pixel_size": frame.pixel_size,
        }
        return loaded
