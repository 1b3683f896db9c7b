"""One noisy sinogram becomes two: neighbouring samples, drawn at random in every 2x2 cell."""

# Shapes in this file: B batch, C channel, V views, D detector cells; h, w = ceil(V / 2), ceil(D / 2).

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: Ordered pairs (input, target) out of the three consecutive ring positions that every 2x2 cell draws.
PAIRS = {
    "adjacent": ((0, 1), (1, 0), (1, 2), (2, 1)),
    "all": ((0, 1), (1, 0), (1, 2), (2, 1), (0, 2), (2, 0)),
}

# The ring runs clockwise through the cell, `0 1 / 3 2`; these are its positions in reading order, 2 * row + column.
_RING = (0, 1, 3, 2)


@dataclass(frozen=True)
class SubPairPlan:
    """The masks of one draw; call it on as many sinograms as should be sampled alike.

    Args:
        input_positions: position in reading order (0..3) that every 2x2 cell gives to the input, (B, h, w), int64.
        target_positions: the same for the target.
        sinogram_shape: views and cells of the sinograms that the plan fits.
    """

    input_positions: Tensor
    target_positions: Tensor
    sinogram_shape: tuple[int, int]

    def __call__(self, sinogram: Tensor) -> tuple[Tensor, Tensor]:
        """Input and target sub-sinogram, (B, C, h, w) each, of a sinogram (B, C, V, D).

        Odd V or D: the last line is repeated first.

        Raises:
            ValueError: batch, views or cells are not those the plan was drawn for.
        """
        expected = (len(self.input_positions), *self.sinogram_shape)
        if sinogram.ndim != 4 or (len(sinogram), *sinogram.shape[2:]) != expected:
            raise ValueError(
                f"sinogram must have the plan's shape (B, C, V, D) = ({expected[0]}, C, {expected[1]}, {expected[2]}), "
                f"got {tuple(sinogram.shape)}"
            )
        views, cells = self.sinogram_shape
        if views % 2 or cells % 2:
            sinogram = F.pad(sinogram, (0, cells % 2, 0, views % 2), mode="replicate")
        channels = sinogram.shape[1]
        in_cells = F.pixel_unshuffle(sinogram, 2).unflatten(1, (channels, 4))
        first, second = (
            in_cells.gather(2, positions[:, None, None].expand(-1, channels, -1, -1, -1)).squeeze(2)
            for positions in (self.input_positions, self.target_positions)
        )
        return first, second


class ContextualSubsampler:
    """Contextual sub-data sampler: random pairs of neighbouring sub-sinograms.

    Every 2x2 cell takes three consecutive positions of its ring, from a random start in a random direction. One
    ordered pair of the three is the input and the target, the same pair for the whole item of a batch.

    Args:
        pairs: ``adjacent`` for direct neighbours only, ``all`` to draw the diagonal pair, too.
        seed: start of the sampler's own random numbers; ``None`` takes torch's global ones.

    Raises:
        ValueError: ``pairs`` is neither of the two.

    Source: EGenDiff, arXiv 2509.23885, contextual sub-data sampler; the draw of start, direction and pair per cell or
    item follows Neighbor2Neighbor, CVPR 2021, where the text leaves it open.
    """

    def __init__(self, pairs: str = "adjacent", seed: int | None = None) -> None:
        if pairs not in PAIRS:
            raise ValueError(f"pairs must be one of {tuple(PAIRS)}, got {pairs!r}")
        self.pairs = pairs
        self.set_random_state(seed)

    def set_random_state(self, seed: int | None = None) -> ContextualSubsampler:
        """Start the random numbers anew from ``seed``: the same seed gives the same masks on every device."""
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)
        return self

    def draw(self, sinogram_shape: Sequence[int], device: torch.device | str | None = None) -> SubPairPlan:
        """Draw the masks for sinograms of shape (B, C, V, D).

        Raises:
            ValueError: the shape is not four positive numbers.
        """
        if len(sinogram_shape) != 4 or min(sinogram_shape) < 1:
            raise ValueError(f"sinogram_shape must be four positive numbers (B, C, V, D), got {tuple(sinogram_shape)}")
        batch, _, views, cells = sinogram_shape
        # Drawn on the CPU and moved, so that the masks do not depend on the device.
        grid = (batch, -(-views // 2), -(-cells // 2))
        start = torch.randint(4, grid, generator=self._generator)
        direction = 2 * torch.randint(2, grid, generator=self._generator) - 1
        pairs = torch.tensor(PAIRS[self.pairs])
        pair = pairs[torch.randint(len(pairs), (batch,), generator=self._generator)]
        ring = torch.tensor(_RING)
        first, second = (ring[(start + pair[:, k, None, None] * direction) % 4].to(device) for k in (0, 1))
        return SubPairPlan(first, second, (views, cells))

    def __call__(self, sinogram: Tensor) -> SubPairPlan:
        """Draw the masks for this sinogram's shape (B, C, V, D) and device."""
        return self.draw(sinogram.shape, sinogram.device)
