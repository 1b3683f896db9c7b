"""Measure every fan-beam operator that is installed, in one run: accuracy, adjoint, gradient, time, memory.

    OMP_WAIT_POLICY=passive python scripts/benchmark_operators.py --write --json output/results/operators.json

Rows are this project's backends, and the projectors of ASTRA and LEAP as their own calls give them where they are
installed (PYTHONPATH may name them). Every measurement runs in a process of its own, on the CPU. What is slow is timed
once, and not at all where several slices would take too long: the tables say so. --write puts them into
docs/operators.md.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[1:1] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from operators_report import GRADIENT_VIEWS, OPERATIONS, SLICES, markdown  # noqa: E402
from physics.phantoms import (  # noqa: E402
    ellipse_image,
    ellipse_sinogram,
    field_of_view,
    gaussian_image,
    gaussian_sinogram,
    rms,
)
from torch import Tensor  # noqa: E402
from torch.nn.functional import max_pool2d  # noqa: E402
from tqdm import tqdm  # noqa: E402

from bundle.physics import MU_WATER, FanBeamGeometry, FanBeamProjector, FilteredBackprojection  # noqa: E402
from bundle.physics.backends import BACKENDS, make_backend  # noqa: E402

CPU = torch.device("cpu")
SCANNER = {"source_to_center": 595.0, "source_to_detector": 1085.6}
GEOMETRIES = {
    "512": FanBeamGeometry(
        **SCANNER, num_views=1152, num_cells=736, cell_pitch=1.2858, pixel_size=0.6641, image_shape=(512, 512)
    ),
    "256": FanBeamGeometry(
        **SCANNER, num_views=576, num_cells=368, cell_pitch=2.5716, pixel_size=1.3282, image_shape=(256, 256)
    ),
}
QUICK_SECONDS = 2.0
PAGE, MARKER = ROOT / "docs" / "operators.md", "measured"


class Ours:
    """A backend of this project."""

    operations = tuple(OPERATIONS)

    def __init__(self, geometry: FanBeamGeometry, backend: str) -> None:
        self.project = FanBeamProjector(geometry, backend)
        self.adjoint = self.project.adjoint
        self.reconstruct = FilteredBackprojection(geometry, backend=backend)

    def reconstruct_and_back(self, sinogram: Tensor) -> Tensor:
        sinogram = sinogram.detach().requires_grad_()
        self.reconstruct(sinogram).sum().backward()
        return sinogram.grad


class Astra:
    """ASTRA's projector along lines."""

    operations = "project", "adjoint"
    note = (
        "ASTRA's CPU projector `line_fanflat` (Siddon's lengths) through `astra.OpTomo`, one thread, a slice at a "
        "time. ASTRA has no FBP of fan beams on the CPU, so only projection and adjoint can be compared."
    )

    def __init__(self, geometry: FanBeamGeometry) -> None:
        import astra

        g, (rows, columns) = geometry, geometry.image_shape
        half_y, half_x = rows * g.pixel_size / 2, columns * g.pixel_size / 2
        volume = astra.create_vol_geom(rows, columns, -half_x, half_x, -half_y, half_y)
        behind = g.source_to_detector - g.source_to_center
        scan = "fanflat", g.cell_pitch, g.num_cells, g.view_angles, g.source_to_center, behind
        projector = astra.create_projector("line_fanflat", astra.create_proj_geom(*scan), volume)
        self._operator = astra.OpTomo(projector)
        self._shapes = g.sinogram_shape, g.image_shape

    # Its rows grow against y.
    def project(self, image: Tensor) -> Tensor:
        slices = [self._operator.FP(one[0].numpy()[::-1].copy()) for one in image]
        return torch.from_numpy(np.stack(slices).reshape(-1, 1, *self._shapes[0]))

    def adjoint(self, sinogram: Tensor) -> Tensor:
        slices = [self._operator.BP(one[0].numpy())[::-1] for one in sinogram]
        return torch.from_numpy(np.stack(slices).reshape(-1, 1, *self._shapes[1]))


class Leap:
    """LEAP's own fan beam, its fastest form."""

    operations = "project", "adjoint", "reconstruct"
    note = (
        "`set_fanbeam` with `project`, `backproject` and `FBP` on the CPU, all slices as detector rows of one call; "
        "its FBP has its own default ramp, softer than Ram-Lak, and no exact gradient."
    )

    def __init__(self, geometry: FanBeamGeometry) -> None:
        import leapctype

        self._geometry, self._model = geometry, leapctype.tomographicModels()
        self._model.set_gpu(-1)
        self._degrees = np.degrees(geometry.view_angles).astype(np.float32)

    def project(self, image: Tensor) -> Tensor:
        return self._call("project", image)

    def adjoint(self, sinogram: Tensor) -> Tensor:
        return self._call("backproject", sinogram)

    def reconstruct(self, sinogram: Tensor) -> Tensor:
        return self._call("FBP", sinogram)

    def _call(self, name: str, value: Tensor) -> Tensor:
        g, model, slices = self._geometry, self._model, len(value)
        threads = torch.get_num_threads()
        scan = slices, g.num_cells, g.pixel_size, g.cell_pitch, (slices - 1) / 2, g.center_cell, self._degrees
        done = model.set_fanbeam(g.num_views, *scan, g.source_to_center, g.source_to_detector)
        done = done and model.set_volume(*g.image_shape[::-1], slices, g.pixel_size, g.pixel_size)
        if not done:
            raise RuntimeError("LEAP refused the scan; it printed why")
        volume, views = np.zeros((slices, *g.image_shape), np.float32), None
        if name == "project":
            volume, views = value[:, 0].numpy(), np.zeros((g.num_views, slices, g.num_cells), np.float32)
            model.project(views, volume)
        else:
            views = np.ascontiguousarray(value[:, 0].numpy().transpose(1, 0, 2))
            getattr(model, name)(views, volume)
        torch.set_num_threads(threads)
        result = views.transpose(1, 0, 2) if name == "project" else volume
        return torch.from_numpy(np.ascontiguousarray(result))[:, None]


PEERS = {"ASTRA line_fanflat": (Astra, "astra"), "LEAP's own fan beam": (Leap, "leapctype")}
BACKEND_ROWS = {f"backend {name}": name for name in BACKENDS if name != "auto"}


def make_candidate(name: str, geometry: FanBeamGeometry) -> Any:
    if name in PEERS:
        return PEERS[name][0](geometry)
    return Ours(geometry, BACKEND_ROWS[name])


def why_not(name: str) -> str | None:
    """Reason why a candidate cannot be measured here."""
    try:
        if name in PEERS:
            __import__(PEERS[name][1])
        elif BACKEND_ROWS[name] == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
            return "its kernels would run in Triton's interpreter, whose time says nothing"
        else:
            make_backend(BACKEND_ROWS[name], GEOMETRIES["256"], CPU)
    except (ImportError, OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def measure_accuracy(name: str, size: str) -> dict[str, float]:
    """Errors against closed forms, adjoint mismatch, and the FBP gradient's error against a finite difference."""
    geometry = GEOMETRIES[size]
    candidate, found = make_candidate(name, geometry), {}
    phantoms = ("smooth", "shepp_logan")
    images = torch.cat([gaussian_image(geometry), ellipse_image(geometry)])
    sinograms = torch.cat([gaussian_sinogram(geometry), ellipse_sinogram(geometry)])
    x, y = draw(1, 1, *geometry.image_shape), draw(1, 1, *geometry.sinogram_shape, seed=1)
    # One call: slow operators share their tables between slices.
    projected = candidate.project(torch.cat([images.float(), x])).double()
    for phantom, got, exact in zip(phantoms, projected, sinograms):
        found[f"projection_{phantom}"] = rms(got - exact) / rms(exact)
    left, right = (projected[2:] * y).sum(), (candidate.adjoint(y).double() * x).sum()
    found["adjoint_mismatch"] = abs(left / right - 1).item()
    if "reconstruct" in candidate.operations:
        inside = field_of_view(geometry, 0.99)
        errors = (candidate.reconstruct(sinograms.float()) - images)[:, 0] / MU_WATER * 1000
        found |= {f"fbp_{phantom}_hu": rms(error[inside]) for phantom, error in zip(phantoms, errors)}
        # Of Shepp-Logan the brain, five pixels from every edge.
        image, error = images[1:], errors[1]
        flat = (max_pool2d(image, 11, 1, 5) + max_pool2d(-image, 11, 1, 5) < 1e-9)[0, 0] & (image[0, 0] > 0) & inside
        found |= {"flat_rms_hu": rms(error[flat]), "flat_bias_hu": error[flat].mean().item()}
    if "reconstruct_and_back" in candidate.operations:
        thinned = dataclasses.replace(geometry, num_views=geometry.num_views // GRADIENT_VIEWS)
        found["gradient_error"] = gradient_error(make_candidate(name, thinned).reconstruct, thinned)
    return found


def gradient_error(fbp: FilteredBackprojection, geometry: FanBeamGeometry) -> float:
    """Relative error of a directional derivative of ``|fbp(y)|^2``, whose central difference is exact for any step."""
    # Too little at the detector's ends to be taken for truncated views.
    y, direction = (draw(1, 1, *geometry.sinogram_shape, dtype=torch.float64, seed=seed) / 20 for seed in (2, 3))
    y.requires_grad_()
    fbp(y).square().sum().backward()
    with torch.no_grad():
        difference = (fbp(y + direction / 2).square().sum() - fbp(y - direction / 2).square().sum()).item()
    return abs((y.grad * direction).sum().item() / difference - 1)


def measure_speed(name: str, size: str, operation: str, slices: int, seconds: float) -> dict[str, float]:
    """Median time a slice, in ms, of how many runs, and the peak of memory above what program and input held, in MB.

    What takes longer than `seconds` is run once.
    """
    tiny = GEOMETRIES["256"].with_grid((32, 32), GEOMETRIES["256"].pixel_size)
    for geometry in (tiny, GEOMETRIES[size]):
        phantom = gaussian_image if operation == "project" else gaussian_sinogram
        value = phantom(geometry).float().repeat(slices, 1, 1, 1)
        # Pages that are free but kept would hide what the operation takes. First on a tiny image: loading compiled code
        # is no part of the operation.
        ctypes.CDLL(None).malloc_trim(0)
        before = memory_mb("VmRSS")
        # Sets the peak back to what is held now.
        Path("/proc/self/clear_refs").write_text("5")
        work = getattr(make_candidate(name, geometry), operation)
        start = time.perf_counter()
        work(value)
        first = time.perf_counter() - start
    peak = memory_mb("VmHWM") - before
    times = []
    for _ in range(min(round(seconds / first), 15)):
        start = time.perf_counter()
        work(value)
        times.append(time.perf_counter() - start)
    return {"ms": 1000 * median(times or [first]) / slices, "runs": len(times) or 1, "extra_mb": peak}


def memory_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def alone(work: Any, *arguments: Any) -> dict[str, float]:
    """Run `work` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def machine() -> dict[str, Any]:
    versions = {"torch": torch.__version__}
    for name in ("numba", "astra-toolbox"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    with suppress(ImportError, OSError, AttributeError):
        import leapctype

        versions["LEAP"] = leapctype.tomographicModels().version()
    model = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), ":")
    return {
        "versions": versions,
        "processor": model.partition(":")[2].strip(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
    }


def measure(name: str, size: str, seconds: float, limit: float, say: Callable[[str], None]) -> dict[str, Any]:
    """A row of the tables; what several slices would presumably take longer than `limit` seconds for is left out."""
    say(f"{size}, {name}: accuracy")
    row: dict[str, Any] = alone(measure_accuracy, name, size)
    kind = PEERS[name][0] if name in PEERS else Ours
    for slices in SLICES:
        for operation in kind.operations:
            say(f"{size}, {name}: {OPERATIONS[operation]}, {slices}")
            predicted = slices * row[f"{operation}_1"]["ms"] / 1000 if slices > 1 else 0.0
            if predicted > limit:
                row[f"{operation}_{slices}"] = {"predicted_s": predicted}
            else:
                row[f"{operation}_{slices}"] = alone(measure_speed, name, size, operation, slices, seconds)
    return row


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help=f"the geometry of 256 x 256 pixels only, --seconds {QUICK_SECONDS:g}"
    )
    parser.add_argument("--only", nargs="+", metavar="ROW", help="only rows whose name holds one of these words")
    parser.add_argument("--seconds", type=float, help="aim of each timing (default 10): 1 to 15 runs after the first")
    parser.add_argument("--limit", type=float, default=120.0, help="most seconds for a call with several slices")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    args = parser.parse_args()

    seconds = args.seconds or (QUICK_SECONDS if args.quick else 10.0)
    names = [name for name in (*BACKEND_ROWS, *PEERS) if not args.only or any(word in name for word in args.only)]
    skipped = {name: reason for name in names if (reason := why_not(name))}
    results: dict[str, Any] = {"machine": machine(), "skipped": skipped, "limit_s": args.limit, "geometries": {}}
    sizes = ["256"] if args.quick else list(GEOMETRIES)
    with tqdm(total=len(sizes) * (len(names) - len(skipped)), unit="row") as progress:
        for size in sizes:
            rows = results["geometries"][size] = {}
            for name in (n for n in names if n not in skipped):
                rows[name] = measure(name, size, seconds, args.limit, progress.set_description)
                progress.update()

    notes = {name: kind.note for name, (kind, _) in PEERS.items()}
    text = markdown(results, GEOMETRIES, notes)
    print(text)
    for path, content in ((args.markdown, text), (args.json, json.dumps(results, indent=2))):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    if args.write:
        # Here, as every process that measures would import what it needs.
        from bundle.evaluation.reports import insert_between_markers

        insert_between_markers(PAGE, MARKER, text)


if __name__ == "__main__":
    main()
