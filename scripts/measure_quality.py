"""Measure every method on patients that training never saw, at every dose.

    python scripts/measure_quality.py --dataset_dir DIR
    python scripts/measure_quality.py --dataset_dir DIR --restore_to object   # by the images that were projected

Writes into --output: quality.csv (a row a slice, dose and method), quality.json (means over patients, and what they
were measured with), quality.md, quality_rmse.png and quality_slice.png, and puts the short table into README.md. With
--restore_to object the files are called objects, and README stays. Scanner, windows and networks are those of
configs/evaluate.json, the methods those of scripts/methods.py. Rows are kept in --store: a run that was stopped goes on
where it was.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measuring import (
    ROOT,
    SETTINGS,
    SLOW,
    Stack,
    add_arguments,
    checksum,
    code_checksum,
    load_config,
    load_stacks,
    method_versions,
    plain,
    rounded,
    say_codes,
    settle,
    without_root,
)
from methods import METHODS, Method, load_methods
from quality_report import REFERENCES, WINDOWS, Report
from scipy.ndimage import find_objects, label
from tqdm import tqdm

from bundle.evaluation import (
    RowStore,
    insert_between_markers,
    score_slices,
    tissue_masks,
    write_csv,
    write_json,
)
from bundle.io import replace_when_complete

BACKPROJECTION = "backprojection"
#: What the files are called, by what the reference is.
NAMES = {BACKPROJECTION: "quality", "object": "objects"}
DOSES = (0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0)

Row = dict[str, Any]


def row_key(case_key: Mapping[str, Any], method: Method, versions: Mapping[str, str]) -> Row:
    """What a stored row must agree in to be taken for this measurement."""
    return {**case_key, "method": method.name, "version": versions[method.name]}


def measure(
    methods: Mapping[str, Method],
    versions: Mapping[str, str],
    stacks: Sequence[Stack],
    args: argparse.Namespace,
    store: RowStore,
    windows: Mapping[str, Sequence[float]],
) -> list[Row]:
    """Rows of the whole plan; those that the store lacks are measured and added to it."""
    code, rows = code_checksum(), []
    usable = [m for name, m in methods.items() if m.skipped is None and not (args.quick and name in SLOW)]
    total = sum(len(stack.slices) for stack in stacks) * len(args.doses) * len(usable)
    with tqdm(total=total, desc="quality", unit="image") as bar:
        for stack, dose in product(stacks, args.doses):
            found: dict[tuple, Row | None] = {}
            for index in stack.slices:
                for method in usable:
                    known = [] if args.fresh else store.rows(**row_key(stack.key(index, dose), method, versions))
                    found[index, method.name] = known[-1] if known else None
            bar.update(sum(row is not None for row in found.values()))
            if None in found.values():
                for case in stack.scanned(dose):
                    index, masks = case.key["slice"], tissue_masks(case.reference)
                    for method in usable:
                        if found[index, method.name] is None:
                            bar.set_postfix_str(f"{stack.name} {dose:.0%} {method.name}")
                            image = method.call(case.scan)
                            (scores,) = score_slices(image[:, 0], case.reference, windows, masks)
                            row = {**row_key(case.key, method, versions), "code": code, **scores}
                            store.add(row)
                            found[index, method.name] = row
                            bar.update()
            rows += found.values()
    return rows


def body_box(reference: torch.Tensor, margin: int = 6) -> tuple[slice, slice]:
    """Rows and columns around the body of an image ``(H, W)`` in HU: the largest thing that is denser than lung."""
    parts, count = label(reference.numpy() > -300)
    if not count:
        return slice(0, reference.shape[0]), slice(0, reference.shape[1])
    # The first count is that of what lies around the parts.
    body = find_objects(parts)[int(torch.bincount(torch.from_numpy(parts).flatten().long())[1:].argmax())]
    rows, columns = (slice(max(s.start - margin, 0), min(s.stop + margin, n)) for s, n in zip(body, reference.shape))
    return rows, columns


def draw_slice(
    methods: Mapping[str, Method],
    versions: Mapping[str, str],
    stacks: Sequence[Stack],
    args: argparse.Namespace,
    windows: Mapping[str, Sequence[float]],
) -> bool:
    """Write the picture, one slice by every method; False where no scan may be shown.

    Images are kept in --store, so that a report made again needs no method to run.
    """
    stack = next((stack for stack in stacks if fnmatchcase(stack.name, args.figure_case)), None)
    if stack is None:
        return False
    index = stack.slices[len(stack.slices) // 2]
    case = next(case for case in stack.scanned(args.figure_dose) if case.key["slice"] == index)
    shown = [m for name, m in methods.items() if m.skipped is None and not (args.quick and name in SLOW)]
    images = {"reference": case.reference[0]}
    for method in tqdm(shown, desc="picture", unit="image"):
        kept = args.store / "pictures" / f"{checksum(repr(row_key(case.key, method, versions)))}.pt"
        if args.fresh or not kept.is_file():
            with replace_when_complete(kept, overwrite=True) as unfinished:
                torch.save(method.call(case.scan)[0, 0].float().cpu().clone(), unfinished)
        images[method.title] = torch.load(kept, weights_only=True)
    low, high = windows[args.figure_window]
    rows, columns = body_box(images["reference"])
    across = 4
    down = math.ceil(len(images) / across)
    aspect = (rows.stop - rows.start) / (columns.stop - columns.start)
    figure = Figure(figsize=(3.2 * across, (3.2 * aspect + 0.4) * down), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(down, across).flat)
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, image) in zip(axes, images.items()):
        axis.imshow(image[rows, columns].clamp(low, high).numpy(), cmap="gray", vmin=low, vmax=high)
        error = float((image - images["reference"]).square().mean().sqrt())
        axis.set_title(f"{title}\n" + (f"RMSE {error:.1f} HU" if title != "reference" else ""), fontsize="small")
    figure.suptitle(
        f"{stack.name}, slice {index}, {args.figure_dose:.0%} dose, "
        f"window {args.figure_window} [{low:g}, {high:g}] HU, cut to the body; RMSE: whole slice; {args.figure_credit}",
        fontsize="small",
    )
    with replace_when_complete(args.output / f"{args.name}_slice.png", overwrite=True) as unfinished:
        figure.savefig(unfinished, format="png")
    return True


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, slices=2, doses=DOSES)
    parser.add_argument(
        "--methods", nargs="+", help="names in scripts/methods.py; default all that aim at the reference"
    )
    parser.add_argument(
        "--restore_to",
        default=BACKPROJECTION,
        choices=tuple(REFERENCES),
        help="what the reference is, and what is restored to; README shows the first",
    )
    parser.add_argument("--figure_case", default="*lidc*", help="scan (pattern) that may be shown: an open licence")
    parser.add_argument("--figure_credit", default="LIDC-IDRI, The Cancer Imaging Archive, CC BY 3.0")
    parser.add_argument("--figure_dose", type=float, default=0.1)
    parser.add_argument("--figure_window", default="abdomen", choices=WINDOWS)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="page with the marker 'results'")
    args = settle(parser.parse_args())

    config = load_config(args)
    config["restore_to"] = args.restore_to
    args.name = NAMES[args.restore_to]
    windows = {name: config["windows"][name] for name in WINDOWS}
    # Restored to the object is what "restored" is where that is the reference, and off the mark where it is not.
    methods = load_methods(config, args.weights, args.methods or [name for name in METHODS if name != "object"])
    versions = method_versions(list(methods), config, args.weights)
    stacks = load_stacks(args, config)
    rows = measure(methods, versions, stacks, args, RowStore(args.store / "quality.jsonl"), windows)
    report = Report(rows, methods, windows, args.doses)
    report.plot(args.output / f"{args.name}_rmse.png")
    figure = draw_slice(methods, versions, stacks, args, windows)
    (args.output / f"{args.name}.md").write_text(report.page(args, figure), encoding="utf-8")
    write_csv(args.output / f"{args.name}.csv", [plain(row) for row in rows], overwrite=True)
    content = {
        "methods": {
            name: {
                "title": m.title,
                "group": m.group,
                "version": versions[name],
                "skipped": m.skipped and without_root(m.skipped),
            }
            for name, m in methods.items()
        },
        "settings": {name: config[name] for name in SETTINGS},
        "slices": report.slices,
        "code": sorted({row["code"] for row in rows}),
        "summary": rounded(report.summary()),
    }
    write_json(args.output / f"{args.name}.json", content, overwrite=True)
    if not args.quick and args.methods is None and args.restore_to == BACKPROJECTION:
        insert_between_markers(args.readme, "results", report.short())
    print(f"{len(rows)} rows; written to {args.output}")
    for line in [*report.skipped(), say_codes(rows)]:
        if line:
            print(line)
    if not figure:
        print(f"{args.name}_slice.png: skipped, no scan is called {args.figure_case}")


if __name__ == "__main__":
    main()
