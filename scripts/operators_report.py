"""Tables of what scripts/benchmark_operators.py has measured. Imports little: every process that measures loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bundle.physics import FanBeamGeometry

#: Slices at once.
SLICES = (1, 8)
#: The gradient is checked in float64 on every so manieth view.
GRADIENT_VIEWS = 8
OPERATIONS = {
    "project": "projection",
    "adjoint": "adjoint",
    "reconstruct": "FBP",
    "reconstruct_and_back": "FBP and its gradient",
}
ACCURACY = {
    "projection_smooth": "projection, smooth",
    "projection_shepp_logan": "projection, Shepp-Logan",
    "fbp_smooth_hu": "FBP, smooth, HU",
    "fbp_shepp_logan_hu": "FBP, Shepp-Logan, HU",
    "flat_rms_hu": "its flat areas, HU",
    "flat_bias_hu": "bias there, HU",
    "adjoint_mismatch": "adjoint mismatch",
    "gradient_error": "FBP gradient",
}


def markdown(results: Mapping[str, Any], geometries: Mapping[str, FanBeamGeometry], notes: Mapping[str, str]) -> str:
    """The tables as part of a page, from all figures, the geometries by name and what is to be said of peers."""
    m = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in m["versions"].items())
    lines = [
        "Made by `scripts/benchmark_operators.py`; every row in the same run, every measurement in its own process, on "
        f"the CPU. {m['cores']} cores ({m['processor']}), {m['threads']} threads, load {m['load_at_start']} at start, "
        f"Python {m['python']}, {versions}, OMP_WAIT_POLICY {m['omp_wait_policy']}.",
    ]
    for size, rows in results["geometries"].items():
        g = geometries[size]
        lines += [
            "",
            f"### {size}",
            "",
            f"Flat fan, {g.image_shape[0]} x {g.image_shape[1]} pixels of {g.pixel_size} mm, {g.num_cells} cells of "
            f"{g.cell_pitch} mm, {g.num_views} views over 360 degrees, source to centre {g.source_to_center} mm, to "
            f"detector {g.source_to_detector} mm.",
            "",
            "Errors against exact line integrals: of the projection relative RMS; of the FBP RMS in the field of view. "
            "Adjoint: relative gap of <Ax, y> and <x, A'y>, float32. Gradient: directional derivative of |FBP(y)|^2 "
            f"against a central difference, float64 (LEAP computes in float32), every {GRADIENT_VIEWS}th view.",
            "",
            *table(["", *ACCURACY.values()], [[n, *(number(r.get(k)) for k in ACCURACY)] for n, r in rows.items()]),
        ]
        for slices in SLICES:
            head = [f"ms a slice, {slices} at once", *OPERATIONS.values(), "gradient with FBP / FBP"]
            lines += ["", "In brackets: times the fastest.", "", *table(head, time_rows(rows, slices))]
        lines += ["", *remarks(rows, results["limit_s"])]
        head = ["extra MB at the peak, result included"]
        head += [f"{label}, {slices}" for slices in SLICES for label in OPERATIONS.values()]
        keys = [f"{key}_{slices}" for slices in SLICES for key in OPERATIONS]
        body = [
            [n, *(f"{r[k]['extra_mb']:.0f}" if "ms" in r.get(k, {}) else "-" for k in keys)] for n, r in rows.items()
        ]
        lines += ["", *table(head, body)]
    measured = {name for rows in results["geometries"].values() for name in rows}
    said = [f"- {name}: {note}" for name, note in notes.items() if name in measured]
    lines += ["", "The peers' own calls:", "", *said] if said else []
    if results["skipped"]:
        lines += ["", "Not measured:", "", *(f"- {name}: {reason}" for name, reason in results["skipped"].items())]
    return "\n".join(lines) + "\n"


def remarks(rows: Mapping[str, Any], limit: float) -> list[str]:
    """What the marks in a size's time tables mean, where there are any."""
    timings = [value for row in rows.values() for value in row.values() if isinstance(value, Mapping)]
    said = []
    if any(timing.get("runs") == 1 for timing in timings):
        said.append("\\*: a single run.")
    if any("predicted_s" in timing for timing in timings):
        said.append(f"over: not run, as that many times the time of one slice is more than {limit:g} s.")
    return [" ".join(said)] if said else []


def time_rows(rows: Mapping[str, Any], slices: int) -> list[list[str]]:
    def cell(row: Mapping[str, Any], operation: str) -> str:
        timing = row.get(key := f"{operation}_{slices}")
        if timing is None:
            return "-"
        if "ms" not in timing:
            return "over"
        fastest = min(other[key]["ms"] for other in rows.values() if "ms" in other.get(key, {}))
        return f"{timing['ms']:.1f} ({timing['ms'] / fastest:.1f})" + ("\\*" if timing["runs"] == 1 else "")

    body = []
    for name, row in rows.items():
        both, single = (row.get(f"{key}_{slices}", {}).get("ms") for key in ("reconstruct_and_back", "reconstruct"))
        cells = (cell(row, operation) for operation in OPERATIONS)
        body.append([name, *cells, f"{both / single:.2f}" if both and single else "-"])
    return body


def table(head: list[str], body: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) >= 0.001 else f"{value:.1e}"
