"""The scan: where source, detector and image grid are. Units: mm and radians."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

DETECTORS = ("flat", "equiangular")


@dataclass(frozen=True, kw_only=True)
class FanBeamGeometry:
    """One circular fan-beam scan, and the image grid it is seen on.

    Lengths are in mm, angles in radians. The rotation centre is the origin. At angle ``b`` the source stands at
    ``(d sin b, -d cos b)`` with ``d = source_to_center``, and the cell index grows along ``(cos b, sin b)``; the
    gantry turns counter-clockwise. Image columns grow with +x, rows with +y.

    Args:
        source_to_center: source to rotation centre.
        source_to_detector: source to detector, along the central ray.
        num_views: projections of the scan.
        num_cells: detector cells.
        cell_pitch: distance of two cells on the detector: along the line (flat) or along the arc (equiangular).
        pixel_size: side of a square image pixel.
        image_shape: rows, columns.
        detector: ``flat``, or ``equiangular``: an arc centred on the source.
        detector_offset: shift of the detector in cells (quarter-cell offset: 0.25), along growing cell index.
        start_angle: angle of the first view.
        arc: angle covered by all views; view k stands at ``start_angle + arc * k / num_views``. Negative: clockwise.
        angles: angle of every view, strictly monotonic; replaces ``start_angle`` and ``arc``.
        image_center: x, y of the centre of the image.

    Raises:
        ValueError: names the argument that cannot be, and what came.
    """

    source_to_center: float
    source_to_detector: float
    num_views: int
    num_cells: int
    cell_pitch: float
    pixel_size: float
    image_shape: tuple[int, int]
    detector: str = "flat"
    detector_offset: float = 0.0
    start_angle: float = 0.0
    arc: float = 2 * math.pi
    angles: tuple[float, ...] | None = None
    image_center: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for name in ("source_to_center", "source_to_detector", "cell_pitch", "pixel_size"):
            value = self._number(name)
            if value <= 0:
                raise ValueError(f"{name} must be positive (mm), got {value}")
        for name in ("detector_offset", "start_angle", "arc"):
            self._number(name)
        for name, least in (("num_views", 1), ("num_cells", 2)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"{name} must be a whole number, {least} or more, got {value!r}")
            object.__setattr__(self, name, int(value))
        # JSON has no tuples; without this two equal scans would compare unequal.
        object.__setattr__(self, "image_shape", self._pair("image_shape", int))
        object.__setattr__(self, "image_center", self._pair("image_center", float))
        if min(self.image_shape) < 1:
            raise ValueError(f"image_shape must be positive, got {self.image_shape}")
        if self.source_to_detector <= self.source_to_center:
            raise ValueError(
                "expected source_to_center < source_to_detector, "
                f"got {self.source_to_center} and {self.source_to_detector} mm"
            )
        if self.detector not in DETECTORS:
            raise ValueError(f"detector must be one of {DETECTORS}, got {self.detector!r}")
        if self.angles is not None:
            self._check_angles()
        elif self.arc == 0:
            raise ValueError("arc must not be 0")
        covered = self.arc if self.angles is None else self.angles[-1] - self.angles[0]
        if abs(covered) > 2 * math.pi * (1 + 1e-3 if self.angles is None else 1 - 1e-9):
            raise ValueError(f"the views must stay within one turn, got an arc of {covered} rad")
        if max(self.fan_angles[-1], -self.fan_angles[0]) >= math.pi / 4:
            raise ValueError(
                "the fan must be narrower than 45 degrees to either side, got "
                f"{math.degrees(self.fan_angles[0]):.1f} to {math.degrees(self.fan_angles[-1]):.1f} degrees "
                "(see cell_pitch, num_cells, source_to_detector)"
            )
        if self.image_radius >= self.source_to_center:
            raise ValueError(
                f"the source would run through the image: its corner lies {self.image_radius:.1f} mm from the "
                f"centre, source_to_center is {self.source_to_center} mm"
            )

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}")
        object.__setattr__(self, name, float(value))
        return float(value)

    def _pair(self, name: str, kind: type) -> tuple[Any, Any]:
        value = getattr(self, name)
        try:
            pair = tuple(kind(v) for v in value)
        except (TypeError, ValueError):
            pair = ()
        if len(pair) != 2 or any(p != v or not math.isfinite(p) for p, v in zip(pair, value)):
            raise ValueError(f"{name} must be two {'whole ' if kind is int else ''}numbers, got {value!r}")
        return pair

    def _check_angles(self) -> None:
        try:
            angles = tuple(float(a) for a in self.angles)
        except (TypeError, ValueError):
            raise ValueError(f"angles must be a list of numbers in radians, got {type(self.angles).__name__}") from None
        steps = np.diff(angles)
        if len(angles) != self.num_views:
            raise ValueError(f"angles must have one entry a view, got {len(angles)} for num_views = {self.num_views}")
        if not np.isfinite(angles).all() or not ((steps > 0).all() or (steps < 0).all()):
            raise ValueError("angles must be finite and strictly monotonic (radians)")
        object.__setattr__(self, "angles", angles)

    @property
    def sinogram_shape(self) -> tuple[int, int]:
        """Views, cells."""
        return self.num_views, self.num_cells

    @property
    def view_angles(self) -> np.ndarray:
        """Angle of every view, float64, radians."""
        if self.angles is not None:
            return np.asarray(self.angles, dtype=np.float64)
        return self.start_angle + self.arc * np.arange(self.num_views) / self.num_views

    @property
    def scan_arc(self) -> float:
        """Angle that the views cover, each with its own step; negative when clockwise."""
        if self.angles is None:
            return self.arc
        if self.num_views == 1:
            return 0.0
        if self.is_full_scan:
            return math.copysign(2 * math.pi, self.angles[-1] - self.angles[0])
        return (self.angles[-1] - self.angles[0]) * self.num_views / (self.num_views - 1)

    @property
    def is_full_scan(self) -> bool:
        """Whether the views cover one whole turn: to a thousandth by `arc`, without a wider gap by `angles`."""
        if self.angles is None:
            return abs(abs(self.arc) - 2 * math.pi) < 2e-3 * math.pi
        gaps = np.abs(np.diff(self.angles))
        # Angles may be uneven, so one half more than the widest gap between two views is no gap yet.
        return self.num_views > 1 and 2 * math.pi - gaps.sum() < 1.5 * gaps.max()

    @property
    def center_cell(self) -> float:
        """Cell index (fractional) that the central ray meets."""
        return (self.num_cells - 1) / 2 - self.detector_offset

    @property
    def cell_positions(self) -> np.ndarray:
        """Position of every cell on the detector, float64, mm from the central ray (arc length when equiangular)."""
        return (np.arange(self.num_cells) - self.center_cell) * self.cell_pitch

    @property
    def fan_angles(self) -> np.ndarray:
        """Angle of every cell's ray to the central ray, float64, radians."""
        if self.detector == "flat":
            return np.arctan(self.cell_positions / self.source_to_detector)
        return self.cell_positions / self.source_to_detector

    @property
    def image_radius(self) -> float:
        """Distance of the image's farthest pixel corner from the rotation centre, mm."""
        half = [n * self.pixel_size / 2 for n in self.image_shape]
        return math.hypot(half[1] + abs(self.image_center[0]), half[0] + abs(self.image_center[1]))

    @property
    def field_of_view_radius(self) -> float:
        """Radius of the circle that every view sees whole, mm."""
        half_cell = self.cell_pitch / 2
        edges = np.array([self.cell_positions[0] - half_cell, self.cell_positions[-1] + half_cell])
        fan = edges / self.source_to_detector
        fan = np.arctan(fan) if self.detector == "flat" else fan
        # An edge on the wrong side of the central ray leaves no circle.
        return float(self.source_to_center * np.sin(max(0.0, min(-fan[0], fan[1]))))

    def pixel_coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """Centres of the pixels: x of every column and y of every row, float64, mm."""
        rows, columns = self.image_shape
        x = self.image_center[0] + (np.arange(columns) - (columns - 1) / 2) * self.pixel_size
        y = self.image_center[1] + (np.arange(rows) - (rows - 1) / 2) * self.pixel_size
        return x, y

    def with_grid(self, image_shape: tuple[int, int], pixel_size: float) -> FanBeamGeometry:
        """The same scan, seen on another image grid."""
        return dataclasses.replace(self, image_shape=tuple(image_shape), pixel_size=pixel_size)

    def to_json(self) -> str:
        """The fields as a JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> FanBeamGeometry:
        """The scan that :meth:`to_json` wrote.

        Raises:
            ValueError: no JSON object, an unknown or a missing field, a value that cannot be.
        """
        try:
            fields = json.loads(text)
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"geometry is no JSON object: {error}") from None
        if not isinstance(fields, dict):
            raise ValueError(f"geometry must be a JSON object, got {type(fields).__name__}")
        known = {f.name for f in dataclasses.fields(cls)}
        needed = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        if set(fields) - known or needed - set(fields):
            raise ValueError(
                f"geometry has unknown fields {sorted(set(fields) - known)} and lacks {sorted(needed - set(fields))}; "
                f"its fields are {sorted(known)}"
            )
        return cls(**fields)
