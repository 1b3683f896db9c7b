"""Where a restoration should not be trusted: checks that need no reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.physics import FanBeamGeometry

from .anatomy import hu_drift, residual_anatomy
from .tissue import TISSUES, as_stack, circle, smooth

# Shapes in this file: S slices, V views, D detector cells, H W image; images in HU, sinograms line integrals.

#: What each check may measure at most.
LIMITS: dict[str, float] = {
    # Share of the edges' contrast that the residual holds; a Gaussian blur of half a pixel takes this much.
    "residual_anatomy": 0.05,
    # Shift of a tissue's mean, HU. Half widths of what CT accreditation lets a scanner be off: water +-4 HU (IEC
    # 61223-3-5), air (-1005 to -970 HU) and bone (850 to 970 HU) of the ACR phantom; lung as air.
    "hu_drift_air": 17.5,
    "hu_drift_lung": 17.5,
    "hu_drift_soft_tissue": 4.0,
    "hu_drift_bone": 60.0,
    # Share of rays with fewer photons than STARVED_PHOTONS.
    "photon_starvation": 0.01,
    # Share of rays at the largest line integral: those that were set to the least count before the logarithm.
    "floored_rays": 1e-4,
    # Share of views that see material at an end of the detector.
    "truncation": 0.05,
    # Largest HU of the FBP: beyond bone and enamel is metal.
    "metal": 2500.0,
    # Share of restored pixels that no tissue has.
    "hu_range": 1e-3,
    # Offset of one cell in all views, line integral: some 10 HU in a ring of 5 cm radius. Less is not told from noise.
    "stripes": 5e-3,
    # Disagreement of rays that run the same way from both sides, line integral: 1.5 mm of water.
    "motion": 0.03,
}

#: Below, the logarithm's bias, 1/(2 n), is more than 4 HU of the ray's path (1000/(2 n p) at p = 6).
STARVED_PHOTONS = 20.0

#: A residual or a cell must stand out from chance by so many standard deviations besides.
SURE = 5.0

#: What smoothed restored pixels must lie in, HU.
POSSIBLE_HU = (-1100.0, 3071.0)

# As the backprojection tells truncated views: an end cell above both.
_EDGE_LINE_INTEGRAL, _EDGE_FRACTION = 0.1, 0.05

# The edge of a centred cylinder, a square root, reaches .94; a single cell's offset reaches 1 but for noise.
_STRIPE_EXPLAINED = 0.96


@dataclass(frozen=True)
class Alarm:
    """One check of a restored stack.

    Args:
        name: of the check, in :data:`LIMITS`.
        value: what was measured, in the worst slice.
        limit: what it may be at most.
        text: what that means, with the numbers.
        slices: indices of the slices beyond the limit.
        n: slices measured.
    """

    name: str
    value: float
    limit: float
    text: str
    slices: tuple[int, ...]
    n: int

    @property
    def raised(self) -> bool:
        """Whether any slice is beyond the limit."""
        return bool(self.slices)


def check_restoration(
    fbp: Tensor,
    restored: Tensor,
    sinogram: Tensor | None = None,
    incident_photons: float | None = None,
    geometry: FanBeamGeometry | None = None,
    limits: Mapping[str, float] = LIMITS,
) -> list[Alarm]:
    """The alarms of a restored stack: what :func:`measure_restoration` finds beyond its limit. None is good news."""
    return [
        alarm
        for alarm in measure_restoration(fbp, restored, sinogram, incident_photons, geometry, limits)
        if alarm.raised
    ]


def measure_restoration(
    fbp: Tensor,
    restored: Tensor,
    sinogram: Tensor | None = None,
    incident_photons: float | None = None,
    geometry: FanBeamGeometry | None = None,
    limits: Mapping[str, float] = LIMITS,
) -> list[Alarm]:
    """Every check that the arguments allow, raised or not, in the order of :data:`LIMITS`.

    Images alone: ``residual_anatomy`` (the edges' share in FBP - restored), ``hu_drift_<tissue>``, ``metal`` and
    ``hu_range``. With the sinogram: ``floored_rays``, ``truncation`` and ``stripes`` (a cell that is off in all views).
    With the incident photons: ``photon_starvation``. With the geometry of a full scan of even steps: ``motion`` (rays
    that run the same way from both sides disagree). A check without anything to measure (no bone, say) is left out.

    Args:
        fbp: HU, ``(S, H, W)`` or ``(1, S, H, W)``.
        restored: likewise.
        sinogram: line integrals, ``(S, V, D)`` with one axis of 1 anywhere before V.
        incident_photons: a ray, of this scan.
        geometry: of the scan.
        limits: by name; a check without a limit is left out.

    Raises:
        ValueError: shapes that don't agree, a number of photons that is not positive, an unknown limit.
    """
    unknown = set(limits) - set(LIMITS)
    if unknown:
        raise ValueError(f"limits must be among {sorted(LIMITS)}, got {sorted(unknown)}")
    fbp, restored = as_stack(fbp, "fbp"), as_stack(restored, "restored")
    measured = dict(_image_checks(fbp, restored))
    if sinogram is not None:
        sinogram = sinogram.as_tensor() if hasattr(sinogram, "as_tensor") else sinogram
        views = sinogram.detach().float().cpu().reshape(-1, *sinogram.shape[-2:])
        if len(views) != len(fbp):
            raise ValueError(f"sinogram must have {len(fbp)} slices, got shape {tuple(sinogram.shape)}")
        measured |= dict(_sinogram_checks(views, incident_photons, geometry))
    alarms = []
    for name in LIMITS:
        values = measured.get(name, [])
        known = [k for k, value in enumerate(values) if value is not None]
        if name in limits and known:
            worst = max((values[k] for k in known), key=abs)
            over = tuple(k for k in known if abs(values[k]) > limits[name])
            text = _TEXTS[name if name in _TEXTS else "hu_drift"](name, worst, limits[name])
            alarms.append(Alarm(name, worst, limits[name], text, over, len(known)))
    return alarms


Values = Sequence[float | None]


def _image_checks(fbp: Tensor, restored: Tensor) -> Iterator[tuple[str, Values]]:
    # A share or a shift within chance counts as none: a small limit must not be broken by noise.
    yield (
        "residual_anatomy",
        [
            a.share if a.share is None or abs(a.share) > SURE * a.chance else 0.0
            for a in residual_anatomy(fbp, restored)
        ],
    )
    drifts = hu_drift(fbp, restored)
    for tissue in TISSUES:
        shifts = [slice_drifts[tissue] for slice_drifts in drifts]
        yield (
            f"hu_drift_{tissue}",
            [d.shift if d.shift is None or abs(d.shift) > SURE * d.error else 0.0 for d in shifts],
        )
    yield "metal", smooth(fbp, 1.0).flatten(1).amax(1).tolist()
    low, high = POSSIBLE_HU
    seen = smooth(restored, 1.0)[:, circle(*restored.shape[-2:])]
    yield "hu_range", ((seen < low) | (seen > high)).float().mean(1).tolist()


def _sinogram_checks(
    views: Tensor, incident_photons: float | None, geometry: FanBeamGeometry | None
) -> Iterator[tuple[str, Values]]:
    if incident_photons is not None:
        incident_photons = float(incident_photons)
        if not (incident_photons > 0 and math.isfinite(incident_photons)):
            raise ValueError(f"incident_photons must be a positive number, got {incident_photons}")
        starved = views > math.log(incident_photons / STARVED_PHOTONS)
        yield "photon_starvation", starved.float().mean((1, 2)).tolist()
    largest = views.flatten(1).amax(1)[:, None, None]
    # Rays of the same largest value: one is the maximum, many are a floor.
    floored = (views >= largest - 1e-5).float().sum((1, 2)) - 1
    yield "floored_rays", (floored / views[0].numel()).tolist()
    outer = max(1, views.shape[-1] // 64)
    ends = torch.maximum(views[..., :outer].mean(-1), views[..., -outer:].mean(-1))
    cut = ends > (_EDGE_FRACTION * views.amax(-1)).clamp_min(_EDGE_LINE_INTEGRAL)
    yield "truncation", cut.float().mean(1).tolist()
    if views.shape[-1] >= 16:
        yield "stripes", _stripes(views).tolist()
    if geometry is not None and geometry.is_full_scan and geometry.angles is None and views.shape[-1] >= 32:
        yield "motion", _conjugate_disagreement(views, geometry).tolist()


def _stripes(views: Tensor) -> Tensor:
    """Largest offset ``(S,)`` of a single cell in half of all views or more; 0 where chance gives it.

    Views are averaged in some 36 blocks, and a cell is held against the cubic through two neighbours to either side.
    Over the blocks, a median leaves out the anatomy, whose edges wander. Those of a body that turns about its own
    middle don't: so the five cells around must show the pattern that a single offset leaves, and hardly anything else.
    """
    blocks = F.avg_pool2d(views[:, None], (max(1, views.shape[1] // 36), 1))[:, 0]
    pattern = blocks.new_tensor([1.0, -4.0, 6.0, -4.0, 1.0]) / 6
    off = blocks.unfold(-1, 5, 1) @ pattern
    offsets = off.median(1).values
    noise = 1.4826 * (off - offsets[:, None]).abs().median(1).values / blocks.shape[1] ** 0.5
    spread = 1.4826 * offsets.abs().median(-1, keepdim=True).values
    sure = offsets.abs() > SURE * torch.maximum(noise, spread)
    around = offsets.unfold(-1, 5, 1)
    explained = (around @ pattern).square() / (pattern.square().sum() * around.square().sum(-1)).clamp_min(1e-20)
    return (offsets.abs() * sure)[..., 2:-2].mul(explained > _STRIPE_EXPLAINED).amax(1)


def _conjugate_disagreement(views: Tensor, geometry: FanBeamGeometry) -> Tensor:
    """Root mean square difference ``(S,)`` of opposite rays beyond what noise explains, line integral.

    The ray at angle b and fan angle g runs as the one at b + pi - 2 g and -g does (counter-clockwise). Sinograms are
    smoothed by a square of 9 first, and noise is estimated from differences of neighbouring cells.
    """
    side = 9
    count, cells = geometry.sinogram_shape
    padded = F.pad(views[:, None], (0, 0, side // 2, side // 2), mode="circular")
    smoothed = F.avg_pool2d(padded, side, stride=1, padding=(0, side // 2), count_include_pad=False)[:, 0]
    sense = math.copysign(1.0, geometry.arc)
    fan = torch.from_numpy(geometry.fan_angles)
    ahead = (math.pi - 2 * sense * fan) / (2 * math.pi) * count
    # A few hundred views tell as much as all, for they are smoothed.
    looked_at = torch.arange(0, count, max(1, count // 256))
    view = (looked_at[:, None] + ahead) % count
    cell = (2 * geometry.center_cell - torch.arange(cells, dtype=torch.float64)).expand(len(looked_at), -1)
    inside = (cell >= side) & (cell <= cells - 1 - side)
    inside &= inside.flip(1)
    low_view, low_cell = view.floor().long() % count, cell.floor().long().clamp(0, cells - 2)
    a, b = (view - low_view).float(), (cell - low_cell).float()
    opposite = sum(
        smoothed[:, (low_view + i) % count, low_cell + j] * (a if i else 1 - a) * (b if j else 1 - b)
        for i in (0, 1)
        for j in (0, 1)
    )
    # Second differences see noise and hardly any anatomy; each has six times the variance of a ray.
    noise = views.diff(dim=2, n=2).square().mean((1, 2)) / 6 * 2 / side**2
    squared = (smoothed[:, looked_at] - opposite)[:, inside].square().mean(1)
    return (squared - noise).clamp_min(0).sqrt()


def _text(meaning: str, unit: str = "") -> Callable[[str, float, float], str]:
    if unit == "%":
        return lambda name, value, limit: f"{meaning}: {value:.2%}, at most {limit:.2%}"
    return lambda name, value, limit: f"{meaning}: {value:.3g}{unit}, at most {limit:g}{unit}"


_TEXTS = {
    "residual_anatomy": _text(
        "edges of the anatomy were taken away (negative: enhanced); share of their contrast", "%"
    ),
    "hu_drift": lambda name, value, limit: (
        f"HU of {name.removeprefix('hu_drift_').replace('_', ' ')} moved from the FBP: "
        f"{value:+.1f} HU, at most {limit:g} HU"
    ),
    "photon_starvation": _text(f"rays with fewer than {STARVED_PHOTONS:g} photons, biased and streaky", "%"),
    "floored_rays": _text("rays without a signal, all at the same largest line integral", "%"),
    "truncation": _text("views that see material at an end of the detector; HU are uncertain near the edge", "%"),
    "metal": _text("metal: streaks around it are no noise; largest HU of the FBP", " HU"),
    "hu_range": _text(f"restored HU outside [{POSSIBLE_HU[0]:g}, {POSSIBLE_HU[1]:g}]", "%"),
    "stripes": _text("a detector cell is off in all views (a ring); line integral"),
    "motion": _text("rays that run the same way from both sides disagree (motion); line integral"),
}
