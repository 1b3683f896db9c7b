"""Measure seconds and peak memory of every stage, against FBP followed by each post-processing peer.

    OMP_WAIT_POLICY=passive python scripts/measure_profile.py --dataset_dir DIR

One slice of 512 x 512 on the scanner of configs/evaluate.json; every method in a process of its own, one after the
other, on the CPU and on CUDA where there is one. Writes profile.csv, profile.json and profile.md into --output.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import ROOT, SLOW, Stack, checksum, load_config, rounded, without_root
from methods import METHODS, load_methods
from torch import nn
from tqdm import tqdm

from bundle.evaluation import markdown_table, write_csv, write_json
from bundle.io import find_scans
from bundle.peers import Scan
from bundle.physics import FilteredBackprojection

#: The method whose stages are measured one by one, and the one that all are compared with.
OURS, BASE = "restored", "fbp_ram-lak"
#: What else is ours is a stage on the way, and comes out of the same call; the object takes more.
DEFAULT = tuple(name for name, (_, group) in METHODS.items() if group != "ours" or name in (OURS, "object"))
MOST_REPEATS = 5

Row = dict[str, Any]


class Meter:
    """Seconds and peak memory between :meth:`start` and :meth:`stop`, the device's work included.

    Memory is what the peak lies above that held at the start, in MB: of the process on the CPU (Linux only, None
    elsewhere), of torch's allocator on CUDA.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self) -> None:
        self._before = self._reset_peak()
        self._synchronise()
        self._start = time.perf_counter()

    def stop(self) -> tuple[float, float | None]:
        self._synchronise()
        seconds = time.perf_counter() - self._start
        if self.device.type == "cuda":
            return seconds, (torch.cuda.max_memory_allocated(self.device) - self._before) / 2**20
        return seconds, None if self._before is None else _status_mb("VmHWM") - self._before

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _reset_peak(self) -> float | None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return float(torch.cuda.memory_allocated(self.device))
        if not Path("/proc/self/clear_refs").exists():
            return None
        # Pages that are free but kept would hide what the work takes.
        ctypes.CDLL(None).malloc_trim(0)
        # Sets the peak back to what is held now.
        Path("/proc/self/clear_refs").write_text("5")
        return _status_mb("VmRSS")


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def measure_method(name: str, arguments: dict[str, Any], device: str, scan: Scan, seconds: float) -> Row:
    """A whole method, from sinogram to image; the first call, which compiles and builds tables, apart."""
    config = load_config(argparse.Namespace(**arguments))
    config["device"] = torch.device(device)
    method = load_methods(config, arguments["weights"], [name])[name]
    # A new scan each time: our own stages keep the last one's images.
    return {"method": name, **_repeated(lambda: method.call(replace(scan)), torch.device(device), seconds)}


def measure_stages(arguments: dict[str, Any], device: str, scan: Scan, seconds: float) -> list[Row]:
    """Every stage of the restorer alone, and the whole."""
    config = load_config(argparse.Namespace(**arguments))
    config["device"] = torch.device(device)
    network = config.get_parsed_content("network").eval()
    sinogram = scan.sinogram.to(device)
    whole = _repeated(
        lambda: network.restore(sinogram, scan.geometry, scan.incident_photons), torch.device(device), seconds
    )
    parts = {
        "denoiser": network.projection,
        "fusion": network.fusion,
        "refiner": network.refiner,
        "output fusion": network.output_fusion,
        "held-out fusion": network.held_out_fusion,
    }
    named = {module: name for name, module in parts.items() if module is not None}
    found: dict[str, list[tuple[float, float | None]]] = {}
    meter = Meter(torch.device(device))

    def name_of(module: nn.Module) -> str | None:
        return "backprojection" if isinstance(module, FilteredBackprojection) else named.get(module)

    def before(module: nn.Module, _: Any) -> None:
        if name_of(module):
            meter.start()

    def after(module: nn.Module, _: Any, __: Any) -> None:
        if name_of(module):
            found.setdefault(name_of(module), []).append(meter.stop())

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            meter.start()
            result = work(*given, **more)
            found.setdefault(name, []).append(meter.stop())
            return result

        return call

    steps = {"photons parted": "part", "weights of held-out fusion": "weights"}
    if network.held_out_fusion is not None:
        for name, step in steps.items():
            setattr(network.held_out_fusion, step, timed(name, getattr(network.held_out_fusion, step)))
    hooks = (
        nn.modules.module.register_module_forward_pre_hook(before),
        nn.modules.module.register_module_forward_hook(after),
    )
    try:
        runs = whole["repeats"]
        start = time.perf_counter()
        for _ in range(runs):
            network.restore(sinogram, scan.geometry, scan.incident_photons)
        total = (time.perf_counter() - start) / runs
    finally:
        for hook in hooks:
            hook.remove()
    rows = []
    for name in ("backprojection", *named.values(), *steps):
        measured = found.get(name, [])
        if measured:
            calls = len(measured) // runs
            peaks = [peak for _, peak in measured if peak is not None]
            row = {"stage": name, "calls": calls, "seconds": sum(taken for taken, _ in measured) / runs}
            rows.append({**row, "peak_mb": max(peaks, default=None)})
    rest = total - sum(row["seconds"] for row in rows)
    rows.append({"stage": "everything between", "calls": None, "seconds": rest, "peak_mb": None})
    return [*rows, {"stage": "whole", "calls": 1, "seconds": total, "peak_mb": whole["peak_mb"]}]


@torch.no_grad()
def _repeated(work: Callable[[], Any], device: torch.device, seconds: float) -> Row:
    meter = Meter(device)
    meter.start()
    work()
    first, _ = meter.stop()
    times, peaks = [], []
    for _ in range(min(max(round(seconds / first), 1), MOST_REPEATS)):
        meter.start()
        result = work()
        took, peak = meter.stop()
        times.append(took)
        peaks.append(peak)
        del result
    known = [peak for peak in peaks if peak is not None]
    return {
        "seconds": median(times),
        "first_seconds": first,
        "peak_mb": max(known, default=None),
        "repeats": len(times),
    }


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run ``work`` in a process of its own: no memory and no warm cache of another method."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def machine() -> dict[str, Any]:
    """What the times depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
    }


def page(content: Mapping[str, Any]) -> str:
    """profile.md."""
    m = content["machine"]
    lines = [
        "# Seconds and memory",
        "",
        f"One slice, {content['slice']}. {m['cores']} cores ({m['processor']}), {m['threads']} threads, load "
        f"{m['load_at_start']} at start, Python {m['python']}, torch {m['torch']}, OMP_WAIT_POLICY "
        f"{m['omp_wait_policy']}; CUDA: {m['cuda'] or 'none here, so not measured'}. All rows of one run, every method "
        "in a process of its own; times are medians (of stages, means) after a first call that compiles and builds "
        "tables. Memory: the peak above what program, weights, tables and input hold.",
        "",
        "Written by `scripts/measure_profile.py`.",
    ]
    for device, part in content["devices"].items():
        base = next((row["seconds"] for row in part["methods"] if row["method"] == BASE), None)
        lines += ["", f"## {device.upper()}", "", "From sinogram to image:", ""]
        rows = [
            [
                content["titles"][row["method"]],
                f"{row['seconds']:.2f}",
                f"{row['seconds'] / base:.1f}" if base else "-",
                _mb(row["peak_mb"]),
                f"{row['first_seconds']:.1f}",
                str(row["repeats"]),
            ]
            for row in part["methods"]
        ]
        lines.append(markdown_table(["", "seconds", "times FBP", "peak MB", "first call, seconds", "n"], rows))
        whole = part["stages"][-1]["seconds"]
        lines += ["", f"The stages of {content['titles'][OURS]}:", ""]
        rows = [
            [
                row["stage"] + (f" ({row['calls']} calls)" if (row["calls"] or 1) > 1 else ""),
                f"{row['seconds']:.3f}",
                f"{row['seconds'] / whole:.0%}",
                _mb(row["peak_mb"]),
            ]
            for row in part["stages"]
        ]
        lines.append(markdown_table(["", "seconds", "share", "peak MB"], rows))
    if content["skipped"]:
        lines += ["", *(f"- {name}: skipped, {reason}" for name, reason in content["skipped"].items())]
    return "\n".join(lines) + "\n"


def _mb(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True, help="CT images; the middle slice of the first is measured")
    parser.add_argument("--weights", type=Path, default=ROOT / "models" / "model.pt")
    parser.add_argument("--dose", type=float, default=0.25)
    parser.add_argument("--seconds", type=float, default=10.0, help="time to spend on the repeats of one method")
    parser.add_argument("--methods", nargs="+", default=DEFAULT, choices=tuple(METHODS), help="default: peers and ours")
    parser.add_argument("--output", type=Path, help="folder of the report (default docs/results; quick: output/quick)")
    parser.add_argument("--quick", action="store_true", help="every method once, slow ones not at all")
    args = parser.parse_args()
    output = args.output or (ROOT / "output" / "quick" if args.quick else ROOT / "docs" / "results")

    arguments = {"dataset_dir": args.dataset_dir, "weights": str(args.weights), "slices": 1}
    config = load_config(argparse.Namespace(**arguments))
    methods = load_methods(config, args.weights, args.methods)
    stack = Stack(find_scans(args.dataset_dir)[0], config)
    case = next(stack.scanned(args.dose))
    rows, columns = case.scan.geometry.image_shape
    skipped = {method.title: without_root(method.skipped) for method in methods.values() if method.skipped is not None}
    chosen = [name for name, method in methods.items() if method.skipped is None]
    if args.quick:
        skipped |= {methods[name].title: "too slow for a quick run" for name in chosen if name in SLOW}
        chosen = [name for name in chosen if name not in SLOW]
    seconds = 0.0 if args.quick else args.seconds
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    content = {
        "machine": machine(),
        "slice": f"{stack.name}, {rows} x {columns} pixels, {args.dose:.0%} dose",
        "titles": {name: method.title for name, method in methods.items()},
        "weights": checksum(args.weights),
        "skipped": skipped,
        "devices": {},
    }
    with tqdm(total=len(devices) * (len(chosen) + 1), desc="profile", unit="method") as bar:
        for device in devices:
            part: dict[str, list[Row]] = {"methods": [], "stages": []}
            for name in chosen:
                bar.set_postfix_str(f"{device} {name}")
                part["methods"].append(alone(measure_method, name, arguments, device, case.scan, seconds))
                bar.update()
            bar.set_postfix_str(f"{device} stages")
            part["stages"] = alone(measure_stages, arguments, device, case.scan, seconds)
            bar.update()
            content["devices"][device] = part
    everything = [
        {"device": device, "method": OURS if kind == "stages" else None, **row}
        for device, part in content["devices"].items()
        for kind, table in part.items()
        for row in table
    ]
    write_csv(output / "profile.csv", rounded(everything, 4), overwrite=True)
    write_json(output / "profile.json", rounded(content, 4), overwrite=True)
    (output / "profile.md").write_text(page(content), encoding="utf-8")
    print(f"written to {output}")
    for name, reason in skipped.items():
        print(f"{name}: skipped, {reason}")


if __name__ == "__main__":
    main()
