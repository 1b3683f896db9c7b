"""Measure HU bias by tissue over noise realisations, with its interval, on patients that training never saw.

    python scripts/measure_bias.py --dataset_dir DIR

A small mask has few pixels and their noise has one sign by chance: the mean error of one scan is noise, and the mean
over many scans of the same slice is bias. Writes bias.csv, bias.json and bias.md into --output. Rows are kept in
--store: a run that was stopped goes on where it was. Scanner and noise are those of configs/evaluate.json, the methods
those of scripts/methods.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from measuring import (
    SETTINGS,
    add_arguments,
    code_checksum,
    load_config,
    load_stacks,
    method_versions,
    settle,
    write_report,
)
from methods import METHODS, load_methods
from scipy.stats import t as student
from tqdm import tqdm

from bundle.evaluation import (
    TISSUES,
    RowStore,
    markdown_table,
    tissue_masks,
    tissue_statistics,
)

DOSES = (0.25,)
CHOSEN = ("fbp_ram-lak", "nlm", "prior", "fused", "restored")
CONFIDENCE = 0.95

Row = dict[str, Any]


@torch.no_grad()
def measure(args: argparse.Namespace, store: RowStore) -> tuple[list[Row], Mapping[str, Any]]:
    """A row a slice, dose, noise realisation and method, those that the store lacks added to it; and the settings."""
    config = load_config(args)
    methods = {n: m for n, m in load_methods(config, args.weights, args.methods).items() if m.skipped is None}
    versions = method_versions(list(methods), config, args.weights)
    settings = {name: config[name] for name in SETTINGS if name not in ("seed", "windows")}
    code, rows = code_checksum(), []
    with tqdm(desc="bias", unit="scan") as bar:
        for seed in range(args.seeds):
            # The noise belongs to the seed, and so does the key of a row.
            config = load_config(args)
            config["seed"] = seed
            stacks = load_stacks(args, config)
            bar.total = args.seeds * len(args.doses) * sum(len(stack.slices) for stack in stacks)
            for stack, dose in product(stacks, args.doses):
                keys = {
                    (index, name): {
                        **stack.key(index, dose),
                        "noise": seed,
                        "method": name,
                        "version": versions[name],
                    }
                    for index, name in product(stack.slices, methods)
                }
                if args.fresh or not all(store.has(**key) for key in keys.values()):
                    for case in stack.scanned(dose):
                        bar.set_postfix_str(f"{stack.name} {dose:.0%} noise {seed}")
                        masks = tissue_masks(case.reference)
                        for name, method in methods.items():
                            (found,) = tissue_statistics(method.call(case.scan)[:, 0], case.reference, masks)
                            bias = {f"hu_bias_{tissue}": one.bias for tissue, one in found.items()}
                            pixels = {f"pixels_{tissue}": one.n for tissue, one in found.items()}
                            key = keys[case.key["slice"], name]
                            store.add({**key, **bias, **pixels, "code": code})
                        bar.update()
                else:
                    bar.update(len(stack.slices))
                rows += [store.rows(**key)[-1] for key in keys.values()]
    return rows, settings


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its interval of :data:`CONFIDENCE` (Student's).

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs two noise realisations or more, got {len(values)}")
    n = len(values)
    return fmean(values), float(student.ppf((1 + CONFIDENCE) / 2, n - 1)) * stdev(values) / n**0.5


def pooled(rows: Sequence[Row], tissue: str, method: str) -> list[float]:
    """Bias over all pixels of a tissue in all slices, by noise realisation."""
    biases = []
    for noise in sorted({row["noise"] for row in rows}):
        at = [row for row in rows if (row["method"], row["noise"]) == (method, noise)]
        weights = [row[f"pixels_{tissue}"] for row in at]
        biases.append(float(np.average([row[f"hu_bias_{tissue}"] for row in at], weights=weights)))
    return biases


def page(rows: Sequence[Row], doses: Sequence[float]) -> str:
    """bias.md."""
    names = [name for name in METHODS if any(row["method"] == name for row in rows)]
    slices = list(dict.fromkeys((row["case"], row["slice"]) for row in rows))
    seeds = len({row["noise"] for row in rows})
    ranges = ", ".join(f"{tissue.replace('_', ' ')} [{low:g}, {high:g}]" for tissue, (low, high) in TISSUES.items())
    lines = [
        "# HU bias",
        "",
        f"Mean over {seeds} noise realisations of each slice, with its {CONFIDENCE:.0%} interval, HU: what is within "
        "the interval of zero is not told from chance. Patients that training never saw. Reference: Ram-Lak FBP of the "
        f"noise-free line integrals; masks: smoothed reference in {ranges} HU, eroded by 2 pixels.",
        "",
        "Written by `scripts/measure_bias.py`; every scan's row is in bias.csv.",
    ]
    for dose, tissue in product(sorted(doses), TISSUES):
        table = []
        for case, index in slices:
            at = [r for r in rows if (r["case"], r["slice"], r["dose"]) == (case, index, dose)]
            pixels = at[0][f"pixels_{tissue}"]
            values = {n: [r[f"hu_bias_{tissue}"] for r in at if r["method"] == n] for n in names}
            if any(None in biases for biases in values.values()):
                continue
            table.append([f"{case}, slice {index}, {pixels} pixels", *_cells(values)])
        if table:
            at = [r for r in rows if r["dose"] == dose and r[f"hu_bias_{tissue}"] is not None]
            pixels = sum(r[f"pixels_{tissue}"] for r in at if (r["method"], r["noise"]) == (names[0], at[0]["noise"]))
            table.append([f"all, {pixels} pixels", *_cells({name: pooled(at, tissue, name) for name in names})])
            patients = list(dict.fromkeys(row["patient"] for row in at))
            means = {name: _mean_over(patients, at, tissue, name) for name in names}
            table.append([f"mean over {len(patients)} patients", *_cells(means)])
            head = ["", *(METHODS[name][0] for name in names)]
            lines += [
                "",
                f"**{tissue.replace('_', ' ').capitalize()}, {dose:.0%} dose**",
                "",
                markdown_table(head, table),
            ]
    return "\n".join(lines) + "\n"


def _mean_over(patients: Sequence[str], rows: Sequence[Row], tissue: str, method: str) -> list[float]:
    """Mean over patients of what their pixels have together, by noise realisation."""
    of_each = [pooled([row for row in rows if row["patient"] == patient], tissue, method) for patient in patients]
    return [fmean(biases) for biases in zip(*of_each)]


def _cells(values: Mapping[str, Sequence[float]]) -> list[str]:
    return ["{:.2f} +- {:.2f}".format(*interval(biases)) for biases in values.values()]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, slices=2, doses=DOSES)
    parser.add_argument("--seeds", type=int, default=24, help="noise realisations of each slice, two or more")
    parser.add_argument("--methods", nargs="+", default=CHOSEN, choices=tuple(METHODS))
    args = settle(parser.parse_args(), quick_doses=DOSES)
    if args.seeds < 2:
        parser.error(f"--seeds must be two or more, got {args.seeds}")
    if args.quick:
        args.seeds = 2

    rows, settings = measure(args, RowStore(args.store / "bias.jsonl"))
    write_report(args.output, "bias", page(rows, args.doses), rows, settings)


if __name__ == "__main__":
    main()
