"""What goes wrong in a scan: changes of the noise-free line integrals, to be made before the noise is added."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import FanBeamGeometry
from .phantoms import MATERIALS, Ellipse, Phantom

# Shapes in this file: V views, D detector cells.


@dataclass(frozen=True, kw_only=True)
class TwoEnergyBeam:
    """A beam of two energies: how much each contributes, and how each material attenuates it.

    Ratios are to the attenuation at the effective energy, so that a thin layer of any material is seen as it is:
    ``share r_low + (1 - share) r_high = 1`` gives the ratio of the higher energy from that of the lower one.

    Args:
        share: of the detected photons without an object that have the lower energy.
        low: ratio of the lower energy by material, 1 or more. The defaults are those of 60 against 100 keV, roughly
            the spread of a filtered 120 kV spectrum: water 0.206 and 0.171, bone 0.315 and 0.186, titanium
            0.766 and 0.272 cm^2/g.

    Raises:
        ValueError: a share outside (0, 1), a material without a ratio, a ratio that leaves the higher energy without
            attenuation.

    Source: Alvarez and Macovski, Phys. Med. Biol. 21(5), 1976; mass attenuation of Hubbell and Seltzer, NISTIR 5632.
    """

    share: float = 0.5
    low: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"water": 1.093, "bone": 1.258, "metal": 1.476}
    )

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must be between 0 and 1, got {self.share}")
        for material in MATERIALS:
            if material not in self.low:
                raise ValueError(f"low has no ratio for {material!r}; got {sorted(self.low)}")
            if not 1 <= self.low[material] < 1 / self.share:
                raise ValueError(
                    f"low ratio of {material!r} must be from 1 to below 1 / share = {1 / self.share:g}, got "
                    f"{self.low[material]}"
                )

    def high(self, material: str) -> float:
        """Ratio of the higher energy."""
        return (1 - self.share * self.low[material]) / (1 - self.share)

    def harden(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Line integrals that this beam measures of materials whose line integrals at the effective energy are known.

        ``p = -ln(share exp(-sum_m r_m p_m) + (1 - share) exp(-sum_m h_m p_m))``: equal to the sum for thin objects,
        and below it for thick ones, which makes cups, and dark bands between dense objects.

        Args:
            parts: by material (see :data:`bundle.physics.phantoms.MATERIALS`), all of one shape.

        Raises:
            ValueError: an unknown material, or none.
        """
        unknown = sorted(set(parts) - set(MATERIALS))
        if unknown or not parts:
            raise ValueError(f"parts must be by material, of {MATERIALS}, got {sorted(parts)}")
        low = sum(self.low[material] * p.double() for material, p in parts.items())
        high = sum(self.high(material) * p.double() for material, p in parts.items())
        terms = torch.stack((math.log(self.share) - low, math.log1p(-self.share) - high))
        return -torch.logsumexp(terms, 0).to(next(iter(parts.values())).dtype)

    def correct_for_water(self, line_integrals: Tensor) -> Tensor:
        """The correction that scanners make: what thickness of water would have given these line integrals.

        Undoes :meth:`harden` for water alone; bone and metal stay under-corrected. Any shape, no unit. Values below 0
        (noise) are continued by the slope at 0.
        """
        measured = line_integrals.double()
        low, high = self.low["water"], self.high("water")
        thickness = measured
        # Newton's method: measured(thickness) is concave and growing, so every step from the left stays there.
        for _ in range(8):
            weight = torch.sigmoid(math.log(self.share / (1 - self.share)) + (high - low) * thickness)
            now = self.harden({"water": thickness})
            thickness = thickness + (measured - now) / (weight * low + (1 - weight) * high)
        return torch.where(measured < 0, measured, thickness).to(line_integrals.dtype)


def scan_with_two_energies(
    phantom: Phantom, geometry: FanBeamGeometry, beam: TwoEnergyBeam, *, corrected: bool = True, **settings
) -> Tensor:
    """Line integrals ``(1, 1, V, D)`` of a phantom's materials in a beam that hardens.

    Args:
        phantom: its ellipses say of which material they are.
        geometry: the scan.
        beam: its energies.
        corrected: for water, as scanners do; bone and metal then leave bands and streaks. False: cups as well.
        settings: ``mu_water`` and ``backend`` of :meth:`Phantom.line_integrals`.
    """
    parts = {material: phantom.line_integrals(geometry, material, **settings) for material in MATERIALS}
    hardened = beam.harden(parts)
    return beam.correct_for_water(hardened) if corrected else hardened


def metal_inserts(
    places: Sequence[tuple[float, float]], radius: float = 6.0, hu: float = 11000.0
) -> tuple[Ellipse, ...]:
    """Metal rods to put into a phantom; the default attenuates as titanium does.

    Behind two of them hardly a photon is left: with a beam of two energies and counted photons they give hardened
    and starved streaks.

    Args:
        places: x and y of each, mm.
        radius: mm.
        hu: what they add.
    """
    return tuple(Ellipse(x, y, radius, radius, hu, material="metal", name="metal") for x, y in places)


def shoulders(inner: float, thickness: float = 110.0, height: float = 60.0, y: float = 10.0) -> tuple[Ellipse, ...]:
    """Upper arms beside a phantom: rays from side to side become so long that few photons are left.

    They may lie outside the image grid, which leaves the truth on it as it was; they must lie in the scanner's field of
    view, or the scan is truncated as well.

    Args:
        inner: |x| at which they begin, mm.
        thickness: of each along x, mm.
        height: along y, mm.
        y: of their centres, mm.
    """
    half = thickness / 2, height / 2
    arms = []
    for side in (-1, 1):
        x = side * (inner + thickness / 2)
        arms.append(Ellipse(x, y, *half, 1050.0, name="shoulder"))
        arms.append(Ellipse(x, y, 0.4 * half[0], 0.4 * half[0], 800.0, material="bone", name="shoulder"))
    return tuple(arms)


def move_between_views(states: Sequence[Tensor], state_of_view: Tensor) -> Tensor:
    """Line integrals of an object that changes during the scan: each view is taken from the state at its time.

    Args:
        states: sinograms ``(..., V, D)`` of the object at rest in each of its states, all of one shape.
        state_of_view: index of the state of each view, ``(V,)``, whole numbers.

    Raises:
        ValueError: no states, shapes that differ, indices that do not fit.
    """
    if not states or any(s.shape != states[0].shape for s in states):
        raise ValueError(f"states must be sinograms of one shape, got {[tuple(s.shape) for s in states]}")
    views = states[0].shape[-2]
    if tuple(state_of_view.shape) != (views,) or state_of_view.is_floating_point():
        raise ValueError(
            f"state_of_view must hold {views} whole numbers, one a view, got {tuple(state_of_view.shape)} of "
            f"{state_of_view.dtype}"
        )
    if state_of_view.min() < 0 or state_of_view.max() >= len(states):
        raise ValueError(
            f"state_of_view must be from 0 to {len(states) - 1}, got {int(state_of_view.min())} to "
            f"{int(state_of_view.max())}"
        )
    moved = torch.empty_like(states[0])
    for index, state in enumerate(states):
        chosen = state_of_view == index
        moved[..., chosen, :] = state[..., chosen, :]
    return moved


def breathe(
    phantom: Phantom,
    geometry: FanBeamGeometry,
    amplitude: tuple[float, float],
    periods: float = 1.0,
    num_states: int = 9,
    **settings,
) -> Tensor:
    """Line integrals ``(1, 1, V, D)`` of a phantom that swings to and fro while the views are taken.

    Its centre stands at ``amplitude sin(2 pi periods t)``, t from 0 to 1 over the scan, rounded to one of `num_states`
    places.

    Args:
        phantom: what moves.
        geometry: the scan.
        amplitude: x and y, mm.
        periods: of the motion in one scan.
        num_states: places that are scanned, odd, so that rest is one of them.
        settings: ``mu_water`` and ``backend`` of :meth:`Phantom.line_integrals`.

    Raises:
        ValueError: `num_states` even or below 1.
    """
    if num_states < 1 or num_states % 2 == 0:
        raise ValueError(f"num_states must be odd, got {num_states}")
    time = torch.arange(geometry.num_views, dtype=torch.float64) / geometry.num_views
    half = (num_states - 1) // 2
    state_of_view = torch.round(half * torch.sin(2 * math.pi * periods * time)).long() + half
    shifts = [(k - half) / max(half, 1) for k in range(num_states)]
    states = [phantom.moved(amplitude[0] * s, amplitude[1] * s).line_integrals(geometry, **settings) for s in shifts]
    return move_between_views(states, state_of_view)


def truncate_detector(
    line_integrals: Tensor, geometry: FanBeamGeometry, num_cells: int
) -> tuple[Tensor, FanBeamGeometry]:
    """The same scan with a shorter detector: the outer cells of ``(..., V, D)`` and of the geometry are taken away.

    As many at either end; with an odd number the last cell goes as well.

    Raises:
        ValueError: `num_cells` below 2 or above those there are.
    """
    if not 2 <= num_cells <= geometry.num_cells:
        raise ValueError(f"num_cells must be from 2 to {geometry.num_cells}, got {num_cells}")
    lost = geometry.num_cells - num_cells
    first = lost // 2
    # The centre of the kept cells lies half a cell off where one more was taken from the end.
    offset = geometry.detector_offset + first - lost / 2
    kept = dataclasses.replace(geometry, num_cells=num_cells, detector_offset=offset)
    return line_integrals[..., first : first + num_cells].contiguous(), kept


def detector_gain(line_integrals: Tensor, cells: Sequence[int], gain: float) -> Tensor:
    """Line integrals ``(..., V, D)`` where some cells count `gain` times the photons that reach them: rings.

    The scan believes the cells to be as they were calibrated, so their line integrals fall by ``ln(gain)`` in every
    view.

    Args:
        line_integrals: without the error.
        cells: index of each.
        gain: 1 is no error.

    Raises:
        ValueError: a gain that is not positive, a cell that is not there.
    """
    if not (math.isfinite(gain) and gain > 0):
        raise ValueError(f"gain must be a positive number, got {gain}")
    wrong = [c for c in cells if not 0 <= c < line_integrals.shape[-1]]
    if wrong:
        raise ValueError(f"cells must be from 0 to {line_integrals.shape[-1] - 1}, got {wrong}")
    changed = line_integrals.clone()
    changed[..., list(cells)] -= math.log(gain)
    return changed
