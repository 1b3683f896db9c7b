"""Measure on phantoms, against the noise-free truth: errors, detectability, sharpness, contrast, noise texture, HU.

    python scripts/measure_tasks.py

Writes into --output: tasks.csv (errors of every scan), tasks.json (all figures), tasks.md, and four pictures, and puts
the tables into docs/tasks.md. Scanner, noise, windows and networks are those of configs/evaluate.json, the methods
those of scripts/methods.py. Rows are kept in --store: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from measuring import ROOT, SLOW, code_checksum, plain, rounded, say_codes
from methods import METHODS
from phantom_scans import Bench, Kept, Row, add_arguments
from tasks_report import (
    BACKGROUND,
    BASELINE,
    DETAIL,
    NOISE_FREE,
    PICTURE_DOSE,
    TRANSFER_DOSE,
    Report,
    empty_figure,
    save_figure,
)
from torch import Tensor
from tqdm import tqdm

from bundle.evaluation import (
    RowStore,
    auc_difference,
    contrast_to_noise,
    hotelling_auc,
    insert_between_markers,
    noise_power_spectrum,
    score_slices,
    task_transfer,
    tissue_masks,
    write_csv,
    write_json,
)
from bundle.physics import (
    FilteredBackprojection,
    Phantom,
    abdomen_phantom,
    attenuation_to_hu,
    chest_phantom,
    insert_phantom,
    low_contrast_phantom,
    rod_places,
)

DOSES = (0.05, 0.1, 0.25, 1.0)
TASK_DOSES = (0.1, 0.25)
#: Methods of the tasks, which need hundreds of scans: ours, and the peers that take little time.
TASK_METHODS = ("fbp_ram-lak", "fbp_hann", "nlm", "tv", "prior", "fused", "restored", "object")
#: Middle of the image that the disc phantoms of 200 mm are seen on, and cells that see all of the disc.
SIZE, CELLS = 256, 224
#: Sides of the regions that the observer is shown, and that noise power is measured on, pixels.
REGION, NOISE_REGION = 29, 64
SCANS_AT_ONCE = 5

BODIES: dict[str, Callable[[int], Phantom]] = {"abdomen": abdomen_phantom, "chest": chest_phantom}


# Anatomy-like phantoms: errors -------------------------------------------------------------------------------------


def measure_anatomy(bench: Bench, kept: Kept, args: argparse.Namespace) -> list[Row]:
    """A row a phantom, dose, noise realisation and method."""
    plan = list(product(args.bodies, args.doses, range(args.seeds)))
    methods = bench.usable()
    code, rows = code_checksum(), []
    with tqdm(total=len(plan), desc="anatomy", unit="scan") as bar:
        for (body, seed), group in _grouped(plan):
            phantom = BODIES[body](seed)
            setting = bench.setting(phantom)
            made: list[Any] = []
            for dose, noise in group:
                key = {"part": "anatomy", "phantom": phantom.name, "dose": dose, "noise": noise, "setting": setting}
                found = {
                    name: kept.find({**key, **bench.key(method)})
                    for name, method in methods.items()
                    if not (args.quick and name in SLOW)
                }
                if not all(found.values()):
                    made = made or _truth(bench, phantom)
                    clean, truth, masks = made
                    scan = bench.scan(phantom.name, clean, bench.geometry, dose, [noise])
                    for name in (n for n, known in found.items() if not known):
                        bar.set_postfix_str(f"{phantom.name} {dose:.0%} {name}")
                        start = time.perf_counter()
                        image = methods[name].call(scan)
                        seconds = time.perf_counter() - start
                        (scores,) = score_slices(image[:, 0], truth, bench.windows, masks)
                        row = {**key, **bench.key(methods[name]), "seconds": seconds, **scores, "code": code}
                        found[name] = [kept.add(row)]
                rows += [known[-1] for known in found.values()]
                bar.update()
            # What a scan without noise leaves: the price of resolution, which every method pays.
            key = {"part": "anatomy", "phantom": phantom.name, "method": NOISE_FREE, "setting": setting}
            if not kept.find(key):
                clean, truth, masks = made or _truth(bench, phantom)
                image = attenuation_to_hu(FilteredBackprojection(bench.geometry)(clean), bench.mu_water)
                (scores,) = score_slices(image[:, 0], truth, bench.windows, masks)
                kept.add({**key, "weights": None, "dose": None, "noise": None, **scores, "code": code})
            rows.append(kept.find(key)[-1])
    return rows


def _grouped(plan: Sequence[tuple]) -> list[tuple[tuple, list[tuple]]]:
    groups: dict[tuple, list[tuple]] = {}
    for body, dose, noise in plan:
        groups.setdefault(body, []).append((dose, noise))
    return list(groups.items())


def _truth(bench: Bench, phantom: Phantom) -> list[Any]:
    truth = phantom.image_hu(bench.geometry)[0]
    return [bench.line_integrals(phantom, bench.geometry), truth, tissue_masks(truth)]


# Low-contrast rods: detectability and noise power --------------------------------------------------------------------


def measure_rods(bench: Bench, kept: Kept, args: argparse.Namespace) -> list[Row]:
    """A row a dose, method and rod (``part`` rods), and a row a dose and method (``part`` noise)."""
    phantom, empty, rows, code = low_contrast_phantom(), low_contrast_phantom(()), [], code_checksum()
    geometry = bench.zoomed(SIZE, CELLS)
    names = [e.name for e in phantom.ellipses if e.name.startswith("rod")]
    names = list(dict.fromkeys(names))
    places = rod_places(len(names))
    setting = bench.setting(phantom, empty, geometry, args.realisations, REGION, NOISE_REGION)
    methods = bench.usable(args.task_methods)
    with tqdm(total=len(args.task_doses) * args.realisations, desc="rods", unit="scan") as bar:
        clean = None
        for dose in args.task_doses:
            key = {"dose": dose, "setting": setting}
            found = {
                name: {
                    **{rod: kept.find({"part": "rods", "rod": rod, **key, **bench.key(m)}) for rod in names},
                    "noise": kept.find({"part": "noise", **key, **bench.key(m)}),
                }
                for name, m in methods.items()
            }
            lacking = [name for name, known in found.items() if not all(known.values())]
            if lacking:
                clean = clean or [bench.line_integrals(disc, geometry) for disc in (phantom, empty)]
                # All others are compared with the baseline on the same noise, so it is always in the run.
                running = [name for name in methods if name in lacking or name == BASELINE]
                taken: dict[str, list[Any]] = {name: [] for name in running}
                for first in range(0, args.realisations, SCANS_AT_ONCE):
                    seeds = range(first, min(first + SCANS_AT_ONCE, args.realisations))
                    # Names of their own: noise with and without rods is independent.
                    scans = [
                        bench.scan(f"{phantom.name} {what}", one, geometry, dose, seeds)
                        for what, one in zip(("rods", "empty"), clean)
                    ]
                    images: dict[str, list[Tensor]] = {name: [] for name in running}
                    # Scan by scan: our stages share one restoration as long as they are asked for the same scan.
                    for scan, name in product(scans, running):
                        images[name].append(methods[name].call(scan)[:, 0])
                    for name in running:
                        taken[name].append(_regions(images[name], geometry.pixel_size, places))
                    bar.update(len(seeds))
                judged: dict[str, Any] = {}
                for name in sorted(running, key=lambda n: n != BASELINE):
                    present, absent, middle = (torch.cat(parts) for parts in zip(*taken[name]))
                    judged[name] = observed = _observe(present, absent, names)
                    if name not in lacking:
                        continue
                    for rod, result in observed.items():
                        row = {"part": "rods", "rod": rod, **key, **bench.key(methods[name]), **_told(result)}
                        if BASELINE in judged:
                            paired = auc_difference(result, judged[BASELINE][rod])
                            row |= {"gain": paired.difference, "gain_low": paired.low, "gain_high": paired.high}
                        found[name][rod] = [kept.add({**row, "code": code})]
                    power = noise_power_spectrum(middle, geometry.pixel_size).row()
                    del power["power"]
                    row = {"part": "noise", **key, **bench.key(methods[name]), **power, "code": code}
                    found[name]["noise"] = [kept.add(row)]
            else:
                bar.update(args.realisations)
            rows += [known[-1] for by_part in found.values() for known in by_part.values()]
    return rows


def _regions(images: Sequence[Tensor], pixel: float, places: Sequence[tuple[float, float]]) -> tuple[Tensor, ...]:
    """Regions around the places with rods and without, ``(N, P, h, w)`` each, and the middle of the
    images without, ``(N, h, w)``."""
    present, absent = (torch.stack([_around(image, x, y, pixel) for x, y in places], 1) for image in images)
    first = (images[0].shape[-1] - NOISE_REGION) // 2
    middle = slice(first, first + NOISE_REGION)
    return present.clone(), absent.clone(), images[1][:, middle, middle].clone()


def _around(images: Tensor, x: float, y: float, pixel: float) -> Tensor:
    column, row = (
        round(c / pixel + (n - 1) / 2) - REGION // 2 for c, n in ((x, images.shape[-1]), (y, images.shape[-2]))
    )
    return images[:, row : row + REGION, column : column + REGION]


def _observe(present: Tensor, absent: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Detectability by rod: its places in every realisation, with it and without it.

    Regions are ordered by place, then by realisation: the halves of the held-out area are realisations, and hold every
    place. A template never tells a place from another.
    """
    return {
        name: hotelling_auc(
            *(regions[:, k :: len(names)].transpose(0, 1).flatten(0, 1) for regions in (present, absent))
        )
        for k, name in enumerate(names)
    }


def _told(result: Any) -> Row:
    row = result.row()
    del row["placements"]
    return row


# High-contrast inserts: task transfer ---------------------------------------------------------------------------------


def measure_inserts(bench: Bench, kept: Kept, args: argparse.Namespace) -> list[Row]:
    """A row a method and insert."""
    phantom, code = insert_phantom(), code_checksum()
    geometry = bench.zoomed(SIZE, CELLS)
    inserts = [e for e in phantom.ellipses if e.name.startswith("insert")]
    setting = bench.setting(phantom, geometry, args.averaged, DETAIL, *BACKGROUND)
    key = {"part": "inserts", "dose": TRANSFER_DOSE, "setting": setting}
    methods = bench.usable(args.task_methods)
    found = {
        name: {e.name: kept.find({**key, "insert": e.name, **bench.key(m)}) for e in inserts}
        for name, m in methods.items()
    }
    lacking = [name for name, known in found.items() if not all(known.values())]
    with tqdm(total=args.averaged, desc="inserts", unit="scan") as bar:
        if lacking:
            clean = bench.line_integrals(phantom, geometry)
            images: dict[str, list[Tensor]] = {name: [] for name in lacking}
            for first in range(0, args.averaged, SCANS_AT_ONCE):
                seeds = range(first, min(first + SCANS_AT_ONCE, args.averaged))
                scan = bench.scan(phantom.name, clean, geometry, TRANSFER_DOSE, seeds)
                for name in lacking:
                    images[name].append(methods[name].call(scan)[:, 0].clone())
                bar.update(len(seeds))
            for name, e in product(lacking, inserts):
                seen, pixel = torch.cat(images[name]), geometry.pixel_size
                center = tuple(c / pixel + (SIZE - 1) / 2 for c in (e.y, e.x))
                result = {
                    **task_transfer(seen, pixel, center, e.half_x).row(),
                    **_contrast(seen, center, e.half_x / pixel),
                }
                row = {**key, "insert": e.name, **bench.key(methods[name]), **result, "code": code}
                found[name][e.name] = [kept.add(row)]
        else:
            bar.update(args.averaged)
    return [known[-1] for by_insert in found.values() for known in by_insert.values()]


def _contrast(images: Tensor, center: Sequence[float], radius: float) -> Row:
    """Contrast and noise of a disc in ``(N, H, W)``, over all pixels of all images; lengths in pixels."""
    rows, columns = (torch.arange(n, dtype=torch.float64) - c for n, c in zip(images.shape[-2:], center))
    distance = torch.hypot(rows[:, None], columns[None]) / radius
    around = (distance > BACKGROUND[0]) & (distance < BACKGROUND[1])
    found = contrast_to_noise(images, *(mask.expand_as(images) for mask in (distance < DETAIL, around)))
    told = {"cnr": found.cnr, "contrast": found.contrast, "background_noise": found.noise}
    return {**told, "detail_pixels": found.n, "background_pixels": found.n_background}


def draw_anatomy(bench: Bench, args: argparse.Namespace, path: Path) -> None:
    """One scan of each phantom by the methods of the tasks; made anew each time, without slow ones."""
    chosen = bench.usable(args.task_methods)
    windows = {"abdomen": bench.windows["abdomen"], "chest": bench.windows["chest"]}
    rows = []
    for body, seed in tqdm(args.bodies[:2], desc="picture", unit="phantom"):
        phantom = BODIES[body](seed)
        clean, truth, _ = _truth(bench, phantom)
        scan = bench.scan(phantom.name, clean, bench.geometry, PICTURE_DOSE, [0])
        images = {"truth": truth[0], **{m.title: m.call(scan)[0, 0] for m in chosen.values()}}
        rows.append((phantom.name, body, images))
    figure = empty_figure(2.6 * len(rows[0][2]), 3.3 * len(rows))
    axes = figure.subplots(len(rows), len(rows[0][2]), squeeze=False)
    for line, (name, window, images) in zip(axes, rows):
        low, high = windows[window]
        for axis, (title, image) in zip(line, images.items()):
            axis.set_axis_off()
            axis.imshow(image.numpy(), cmap="gray", vmin=low, vmax=high)
            error = (image - images["truth"]).square().mean().sqrt()
            text = f"{name}\n{window} [{low:g}, {high:g}] HU" if title == "truth" else f"{title}\nRMSE {error:.1f} HU"
            axis.set_title(text, fontsize="small")
    save_figure(figure, path)


def methods_told(bench: Bench) -> dict[str, Any]:
    """Titles, weights and reasons, for JSON."""
    return {
        name: {"title": m.title, "group": m.group, "weights": bench.versions[name], "skipped": m.skipped}
        for name, m in bench.methods.items()
    }


@torch.no_grad()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--doses", type=float, nargs="+", default=DOSES, help="of the anatomy-like phantoms")
    parser.add_argument("--task_doses", type=float, nargs="+", default=TASK_DOSES, help="of the low-contrast rods")
    parser.add_argument(
        "--task_methods", nargs="+", default=TASK_METHODS, choices=tuple(METHODS), help="of rods and inserts"
    )
    parser.add_argument("--phantoms", type=int, default=2, help="anatomy-like phantoms of each kind")
    parser.add_argument("--seeds", type=int, default=2, help="noise realisations of each anatomy-like phantom")
    parser.add_argument("--realisations", type=int, default=200, help="scans of the low-contrast rods, two of each rod")
    parser.add_argument("--averaged", type=int, default=40, help="scans of the inserts")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "tasks.md", help="page with the marker 'tasks'")
    args = parser.parse_args()
    args.bodies = [(body, seed) for seed in range(args.phantoms) for body in BODIES]
    if args.quick:
        args.doses, args.task_doses, args.seeds, args.realisations, args.averaged = [0.25], [0.25], 1, 15, 5
        args.bodies = args.bodies[:1]

    bench = Bench(args)
    kept = Kept(RowStore(args.store / "tasks.jsonl"), args.fresh)
    rows = [
        *measure_anatomy(bench, kept, args),
        *measure_rods(bench, kept, args),
        *measure_inserts(bench, kept, args),
    ]
    report = Report(rows, bench)
    report.plot_rods(bench.output / "tasks_rods.png")
    report.plot_noise(bench.output / "tasks_noise.png")
    draw_anatomy(bench, args, bench.output / "tasks_anatomy.png")
    skipped = "\n".join(f"- {line}" for line in bench.skipped())
    head = "# Phantoms, measured\n\nWritten by `scripts/measure_tasks.py`; what it means: [docs/tasks.md](../tasks.md)."
    (bench.output / "tasks.md").write_text(f"{head}\n\n{report.page('')}\n\n{skipped}\n", encoding="utf-8")
    write_csv(bench.output / "tasks.csv", [plain(r) for r in report.of("anatomy")], overwrite=True)
    content = {
        "methods": methods_told(bench),
        "windows": bench.windows,
        "code": sorted({row["code"] for row in rows}),
        **rounded(report.summary()),
    }
    write_json(bench.output / "tasks.json", content, overwrite=True)
    if not args.quick and args.methods is None:
        insert_between_markers(args.page, "tasks", f"{report.page('results/')}\n\n{skipped}")
    print(f"{len(rows)} rows; written to {bench.output}")
    for line in [*bench.skipped(), say_codes(rows)]:
        if line:
            print(line)


if __name__ == "__main__":
    main()
