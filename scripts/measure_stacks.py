"""Measure what the slices above and below are worth to a restored slice, on patients that training never saw.

    python scripts/measure_stacks.py --dataset_dir DIR --adjacent PATTERN

Evenly spaced slices of the images whose slices lie side by side (--adjacent), each restored alone and with its
neighbours, as a stack is by default (configs/inference.json, neighbours). Writes stacks.csv, stacks.json and stacks.md
into --output. Rows are kept in --store: a run that was stopped goes on where it was. Scanner, noise and windows are
those of configs/evaluate.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

import torch
from measuring import (
    SETTINGS,
    Case,
    Stack,
    add_arguments,
    code_checksum,
    load_config,
    load_stacks,
    method_versions,
    settle,
    write_report,
)
from tqdm import tqdm

from bundle.evaluation import (
    RowStore,
    markdown_table,
    paired_gains,
    patient_means,
    score_slices,
    spread,
    tissue_masks,
)
from bundle.inference import LowDoseRestorer, Prepared

DOSES = (0.05, 0.1, 0.25, 0.5, 1.0)
WINDOWS = ("abdomen", "chest")
#: How a slice is restored, and how the page calls it.
FORMS = {"alone": "each slice alone", "neighbours": "with the slices above and below"}

Row = dict[str, Any]


def with_neighbours(stack: Stack, whole: Stack, dose: float) -> Iterator[tuple[Case, Case, Case]]:
    """The slice below, the slice itself and the one above, for every chosen slice of a stack.

    Args:
        stack: with the chosen slices.
        whole: the same image with all its slices; those that no chosen one needs are not scanned.
        dose: of all.

    Raises:
        ValueError: a chosen slice is at an end of the image.
    """
    for index in stack.slices:
        if not {index - 1, index + 1} <= set(whole.slices):
            raise ValueError(f"{stack.name}: slice {index} lacks a neighbour, the image has {len(whole.slices)} slices")
        below, own, above = whole.scanned(dose, (index - 1, index, index + 1))
        yield below, own, above


def restore_both(network: LowDoseRestorer, cases: Sequence[Case]) -> dict[str, tuple[torch.Tensor, float]]:
    """The middle one of three slices alone and with the others: image ``(1, H, W)`` in HU, seconds of this slice."""
    device = next(network.parameters()).device
    prepared: list[Prepared] = []
    for case in cases:
        start = time.perf_counter()
        scan = case.scan
        prepared.append(
            network.prepare(scan.sinogram.to(device), scan.geometry, scan.incident_photons, scan.electronic_variance)
        )
        preparing = time.perf_counter() - start
    below, own, above = prepared
    results = {}
    for form, around in (("alone", None), ("neighbours", (below, above))):
        start = time.perf_counter()
        image = network.finish(own, around).restored[:, 0].cpu()
        # Each slice of a stack is prepared once, whatever its neighbours want of it.
        results[form] = image, preparing + time.perf_counter() - start
    return results


@torch.no_grad()
def measure(args: argparse.Namespace, store: RowStore) -> tuple[list[Row], Mapping[str, Any]]:
    """A row a slice, dose and form, those that the store lacks measured and added to it; and the settings."""
    config = load_config(args)
    windows = {name: config["windows"][name] for name in WINDOWS}
    version = method_versions(["restored"], config, args.weights)["restored"]
    settings = {name: config[name] for name in SETTINGS}
    chosen = load_stacks(args, config)
    config["slices"] = None
    config.ref_resolver.reset()
    stacks = [
        (stack, whole)
        for stack, whole in zip(chosen, load_stacks(args, config))
        if any(fnmatchcase(stack.patient, pattern) for pattern in args.adjacent)
    ]
    if not stacks:
        raise ValueError(f"--adjacent {' '.join(args.adjacent)}: no patient of {args.dataset_dir} is called so")
    network = config.get_parsed_content("network").eval()
    code, rows = code_checksum(), []
    total = sum(len(stack.slices) for stack, _ in stacks) * len(args.doses)
    with tqdm(total=total, desc="stacks", unit="slice") as bar:
        for (stack, whole), dose in product(stacks, args.doses):
            keys = {
                (index, form): {**stack.key(index, dose), "weights": version, "form": form}
                for index, form in product(stack.slices, FORMS)
            }
            if args.fresh or not all(store.has(**key) for key in keys.values()):
                for cases in with_neighbours(stack, whole, dose):
                    own = cases[1]
                    bar.set_postfix_str(f"{stack.name} {dose:.0%}")
                    masks = tissue_masks(own.reference)
                    for form, (image, seconds) in restore_both(network, cases).items():
                        (scores,) = score_slices(image, own.reference, windows, masks)
                        key = keys[own.key["slice"], form]
                        store.add({**key, "code": code, "seconds": seconds, **scores})
                    bar.update()
            else:
                bar.update(len(stack.slices))
            rows += [store.rows(**key)[-1] for key in keys.values()]
    return rows, settings


def of(rows: Sequence[Row], form: str, dose: float) -> list[Row]:
    """Rows of a form at a dose."""
    return [row for row in rows if row["form"] == form and row["dose"] == dose]


def page(rows: Sequence[Row], doses: Sequence[float], settings: Mapping[str, Any]) -> str:
    """stacks.md."""
    patients = sorted({row["patient"] for row in rows})
    slices = {p: len({(row["case"], row["slice"]) for row in rows if row["patient"] == p}) for p in patients}
    named = ", ".join(f"{patient}: {count}" for patient, count in slices.items())
    lines = [
        "# Stacks",
        "",
        f"Patients that training never saw and whose slices lie side by side (slices: {named}), each slice restored "
        "alone, as the other pages of results have it, and with the slices above and below at the same dose, as a "
        "stack is by default. Reference: Ram-Lak FBP of the noise-free line integrals. Mean over patients, in brackets "
        "lowest and highest.",
        "",
        "Written by `scripts/measure_stacks.py`; every slice's row is in stacks.csv.",
    ]
    low_high = {name: settings["windows"][name] for name in WINDOWS}
    columns = {"rmse_hu": ("RMSE, HU; whole slice, not clipped", 1)}
    for name, (low, high) in low_high.items():
        columns[f"ssim_{name}"] = (f"SSIM, {name} [{low:g}, {high:g}] HU, range its width", 3)
    columns["hu_bias_soft_tissue"] = ("HU bias, soft tissue", 2)
    head = ["", *(f"{dose:.0%}" for dose in doses)]
    for column, (title, digits) in columns.items():
        table = [
            [label, *(spread(patient_means(of(rows, form, d), column).values(), digits) for d in doses)]
            for form, label in FORMS.items()
        ]
        lines += ["", f"**{title}**", "", markdown_table(head, table)]
    cells = []
    for dose in doses:
        gains = paired_gains(of(rows, "neighbours", dose), of(rows, "alone", dose)).values()
        wins, total = (sum(gain[key] for gain in gains) for key in ("wins", "n"))
        cells.append(f"{spread([gain['gain_db'] for gain in gains])}; {wins}/{total}")
    lines += [
        "",
        "**Gain by the slices above and below, dB of the RMSE; slices that are better**",
        "",
        markdown_table(head, [["neighbours", *cells]]),
    ]
    seconds = {form: sum(row["seconds"] for row in rows if row["form"] == form) for form in FORMS}
    lines += ["", f"A slice takes {seconds['neighbours'] / seconds['alone']:.1f} times as long with its neighbours."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, slices=4, doses=DOSES)
    parser.add_argument("--adjacent", nargs="+", required=True, help="patients (patterns) with slices side by side")
    args = settle(parser.parse_args())

    rows, settings = measure(args, RowStore(args.store / "stacks.jsonl"))
    write_report(args.output, "stacks", page(rows, sorted(args.doses), settings), rows, settings)


if __name__ == "__main__":
    main()
