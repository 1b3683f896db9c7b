"""How many photons a measured scan had, where its file does not say."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import Transform

from bundle.physics import estimate_noise_model

logger = logging.getLogger(__name__)

#: Slices that are looked at, evenly spaced: each has some hundred thousand rays.
MOST_SLICES = 8


class EstimatePhotonsd(Transform):
    """Add ``incident_photons`` and ``electronic_variance`` where an item lacks the photons, and ``photons_estimated``.

    They come from the noise of ``sinogram`` ``(1, S, V, D)`` itself (:func:`bundle.physics.estimate_noise_model`); an
    electronic variance that the item says is kept. Known photons tell stage 1 how noisy the scan is, take the
    logarithm's bias out, and let held-out photons judge the fusion. An item whose noise cannot be measured stays as it
    is, with a warning that says why.

    Raises:
        ValueError: the item has no ``sinogram``.

    Source: this project's (docs/decisions/0020-photons-from-the-noise.md).
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if item.get("incident_photons") is not None:
            return item
        if "sinogram" not in item:
            raise ValueError(f"an item must hold a 'sinogram' to estimate its photons by, got {sorted(map(str, item))}")
        sinogram, name = item["sinogram"], item.get("name", "scan")
        slices = sinogram.reshape(-1, *sinogram.shape[-2:])
        every = -(-len(slices) // MOST_SLICES)
        try:
            noise = estimate_noise_model(slices[::every], item.get("electronic_variance"))
        except ValueError as error:
            logger.warning("%s: the number of photons is neither said nor to be measured (%s)", name, error)
            return item
        item["incident_photons"] = noise.incident_photons
        item["electronic_variance"] = noise.significant_electronic_variance
        item["photons_estimated"] = True
        logger.info(
            "%s: %.4g incident photons a ray, standard error %.1g, by the noise of the sinogram",
            name,
            noise.incident_photons,
            noise.incident_photons_error,
        )
        return item
