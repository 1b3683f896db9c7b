"""Where in a sinogram training crops should lie."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor
from torch.nn import functional


def tissue_weight(sinogram: Tensor, threshold: float = 0.2, least: float = 0.05, width: int = 31) -> Tensor:
    """Sampling weight of crop centres, ``(1, V, D)`` in ``[least, 1]``: high where rays met the patient.

    About half of a detector sees only air, where there is nothing to learn but the noise level. The edge is smooth
    and air keeps a small weight, so that the network sees both.

    Args:
        sinogram: noisy line integrals, ``(1, V, D)``.
        threshold: line integral from which a ray counts as having met the patient (0.2: 1 cm of water).
        least: weight of air.
        width: views and cells (odd) over which the edge is smoothed.

    Raises:
        ValueError: ``least`` outside (0, 1], or ``width`` not odd.
    """
    if not 0 < least <= 1:
        raise ValueError(f"least must be in (0, 1], got {least}")
    if width < 1 or width % 2 == 0:
        raise ValueError(f"width must be odd and positive, got {width}")
    inside = (torch.as_tensor(sinogram) > threshold).float()[None]
    smooth = functional.avg_pool2d(inside, width, stride=1, padding=width // 2, count_include_pad=False)[0]
    return least + (1 - least) * smooth


class TissueWeightd(MapTransform):
    """Add the :func:`tissue_weight` of a sinogram, for ``w_key`` of MONAI's ``RandWeightedCropd``.

    Args:
        keys: the sinogram.
        weight_key: where the weight goes.
        threshold: as in :func:`tissue_weight`.
        least: as in :func:`tissue_weight`.
        width: as in :func:`tissue_weight`.
    """

    def __init__(
        self,
        keys: KeysCollection = "sinogram",
        weight_key: str = "weight",
        threshold: float = 0.2,
        least: float = 0.05,
        width: int = 31,
    ) -> None:
        super().__init__(keys)
        self.weight_key = weight_key
        self.threshold = threshold
        self.least = least
        self.width = width

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[self.weight_key] = tissue_weight(item[key], self.threshold, self.least, self.width)
        return item
