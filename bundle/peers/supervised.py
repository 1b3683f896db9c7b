"""The ceiling: our own stages, taught by what no patient study has."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from monai.transforms import Transform


class SupervisedPaird(Transform):
    """Put the normal-dose image in the place of the distillation target: a supervised twin of the image stages.

    For comparison only. The stages of this project learn from low-dose data alone and refuse a target named
    ``reference``; whoever trains the twin says so by naming this transform.

    Args:
        pair: transform that makes input and target, such as :class:`bundle.transforms.ReconstructPaird`.
        target_key: the target that is replaced.
        reference_key: the normal-dose image, HU; leaves the item.

    Raises:
        ValueError: an item without the target or without the reference, or of unlike shapes.
    """

    def __init__(
        self,
        pair: Callable[[Mapping[Hashable, Any]], Mapping[Hashable, Any]],
        target_key: str = "prior",
        reference_key: str = "reference",
    ) -> None:
        self.pair = pair
        self.target_key = target_key
        self.reference_key = reference_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(self.pair(data))
        for key in (self.target_key, self.reference_key):
            if key not in item:
                raise ValueError(f"a supervised pair needs {key!r}, the item has only {sorted(map(str, item))}")
        reference = item.pop(self.reference_key)
        if reference.shape != item[self.target_key].shape:
            raise ValueError(
                f"{self.reference_key} must have the shape of {self.target_key}, "
                f"{tuple(item[self.target_key].shape)}, got {tuple(reference.shape)}"
            )
        return {**item, self.target_key: reference}
