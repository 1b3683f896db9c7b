"""Measure what every part of the method is worth: each ablation of configs/ablations against the whole.

    python scripts/measure_ablations.py --dataset_dir DIR --trained output/ablations

An ablation of inference alone is an override of configs/evaluate.json and needs no training. One that must be trained
is looked for in --trained: <name>/model.pt (all stages, calibrated), or <name>/projection.pt or <name>/diffusion.pt,
which then take the place of that stage in --weights and keep its calibration; without any it is listed as skipped.
Writes ablations.csv, ablations.json and ablations.md into --output. Rows are kept in --store.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import (
    OUR_ROOMS,
    ROOT,
    Case,
    add_arguments,
    checksum,
    code_checksum,
    load_config,
    load_stacks,
    plain,
    rounded,
    say_codes,
    settle,
)
from tqdm import tqdm

from bundle.evaluation import (
    RowStore,
    markdown_table,
    paired_gains,
    patient_means,
    score_slices,
    spread,
    write_csv,
    write_json,
)
from bundle.inference import read_weights
from bundle.io import replace_when_complete

CONFIGS = ROOT / "configs" / "ablations"
EVALUATE = ROOT / "configs" / "evaluate.json"
DOSES = (0.1, 0.25, 1.0)
#: What the others are held against: all parts, as shipped.
WHOLE = "whole"
#: Stage that an ablation is about, by the config that trains it, and the prefix of its weights in the model.
STAGES = {
    "train_projection.json": ("projection", "projection."),
    "train_autoencoder.json": ("diffusion", "refiner."),
    "train_diffusion.json": ("diffusion", "refiner."),
}
#: Forms that are no override of configs/ablations, by the config that trains them (scripts/train_ablations.py).
FORMS = {
    "short_projection": ("train_projection.json", "stage 1 in the paper's form, with the budget of this table"),
    "thinned_projection": ("train_projection.json", "stage 1 from thinned photons in place of sub-sinograms"),
    "short": ("train_diffusion.json", "stage 3 as shipped, with the budget of this table"),
    "plain": (
        "train_diffusion.json",
        "stages 2 and 3 in the paper's form: input and target from the same photons, without cross_fit.json",
    ),
}
#: What the trained forms of a stage are held against: as much training, nothing taken away.
BASES = {"inference": WHOLE, "projection": "short_projection", "diffusion": "short"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Ablation:
    """One form of the method.

    Args:
        name: of its config.
        about: what is taken away.
        kind: ``inference``, or the stage that has to be trained anew.
        config: its override of evaluate.json, if any.
        weights: file with all stages.
        stages: images of the pipeline that are measured.
        skipped: why it is not measured; None where it is.
    """

    name: str
    about: str
    kind: str
    config: Path | None = None
    weights: Path | None = None
    stages: tuple[str, ...] = ("restored",)
    skipped: str | None = None

    @property
    def version(self) -> str:
        """Checksum of its weights, of the config, of its override and of the code."""
        return checksum(self.weights, EVALUATE, *([self.config] if self.config else []), code_checksum(OUR_ROOMS))


def find_ablations(weights: Path, trained: Path | None, scratch: Path) -> list[Ablation]:
    """The whole method first, then every ablation; models put together from stages are written to ``scratch``."""
    found = [
        Ablation(WHOLE, "the whole method, as shipped", "inference", None, weights, ("prior", "fused", "restored"))
    ]
    for path in sorted(CONFIGS.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        about = content["_about_"].removeprefix("Ablation: ").rstrip(".")
        trains = [name for name in content["_for_"] if name in STAGES]
        # The part of an ablation that only trains a stage before: another one measures it.
        if any(path.stem == f"{other.stem}_autoencoder" for other in CONFIGS.glob("*.json")):
            continue
        override = path if "evaluate.json" in content["_for_"] else None
        if not trains:
            found.append(Ablation(path.stem, about, "inference", override, weights))
        else:
            found.append(_trained(path.stem, about, *STAGES[trains[-1]], override, weights, trained, scratch))
    for name, (config, about) in FORMS.items():
        found.append(_trained(name, about, *STAGES[config], None, weights, trained, scratch))
    order = list(BASES)
    return sorted(found, key=lambda ablation: (order.index(ablation.kind), ablation.name != BASES[ablation.kind]))


def _trained(
    name: str,
    about: str,
    stage: str,
    prefix: str,
    override: Path | None,
    weights: Path,
    trained: Path | None,
    scratch: Path,
) -> Ablation:
    stages = ("prior", "restored") if stage == "projection" else ("restored",)
    if trained is None:
        return Ablation(
            name, about, stage, override, None, stages, "no folder of trained weights was given (--trained)"
        )
    model, part = trained / name / "model.pt", trained / name / f"{stage}.pt"
    if model.is_file():
        return Ablation(name, about, stage, override, model, stages)
    if not part.is_file():
        return Ablation(name, about, stage, override, None, stages, f"no weights: {name}/{stage}.pt was not trained")
    path = scratch / f"{name}-{checksum(weights, part)}.pt"
    # Not written twice: the bytes would differ, and with them the version that rows are kept by.
    if not path.is_file():
        kept = {key: value for key, value in read_weights(weights).items() if not key.startswith(prefix)}
        joined = {**kept, **{prefix + key: value for key, value in read_weights(part).items()}}
        with replace_when_complete(path, overwrite=True) as unfinished:
            torch.save(joined, unfinished)
    return Ablation(name, about, stage, override, path, stages)


def row_key(case_key: Mapping[str, Any], ablation: Ablation, stage: str) -> Row:
    """What a stored row must agree in to be taken for this measurement."""
    return {**case_key, "ablation": ablation.name, "stage": stage, "weights": ablation.version}


@torch.no_grad()
def measure(args: argparse.Namespace, ablations: Sequence[Ablation], store: RowStore) -> list[Row]:
    """A row a slice, dose, ablation and stage; what the store lacks is measured and added to it."""
    config = load_config(args)
    windows, code = config.get_parsed_content("windows"), code_checksum()
    stacks = load_stacks(args, config)
    keys = [stack.key(index, dose) for stack in stacks for dose in args.doses for index in stack.slices]
    kept: list[Case] = []

    def cases() -> Iterator[Case]:
        # Scanned when the first ablation needs them, then kept: every ablation sees the same.
        if not kept:
            kept.extend(case for stack in stacks for dose in args.doses for case in stack.scanned(dose))
        yield from kept

    rows = []
    chosen = [ablation for ablation in ablations if ablation.skipped is None]
    with tqdm(total=len(chosen) * len(keys), desc="ablations", unit="slice") as bar:
        for ablation in chosen:
            bar.set_postfix_str(ablation.name)
            wanted = [row_key(key, ablation, stage) for key in keys for stage in ablation.stages]
            known = {} if args.fresh else {_place(key): store.rows(**key)[-1:] for key in wanted}
            if not all(known.get(_place(key)) for key in wanted):
                own = load_config(args, *([ablation.config] if ablation.config else []))
                own["weights"] = str(ablation.weights)
                network = own.get_parsed_content("network").eval()
                device = next(network.parameters()).device
                for case in cases():
                    places = [row_key(case.key, ablation, stage) for stage in ablation.stages]
                    if not all(known.get(_place(key)) for key in places):
                        scan = case.scan
                        result = network.restore(scan.sinogram.to(device), scan.geometry, scan.incident_photons)
                        for key in places:
                            (scores,) = score_slices(getattr(result, key["stage"])[:, 0], case.reference, windows)
                            row = {**key, "code": code, **scores}
                            store.add(row)
                            known[_place(key)] = [row]
                    bar.update()
            else:
                bar.update(len(keys))
            rows += [known[_place(key)][0] for key in wanted]
    return rows


def _place(key: Mapping[str, Any]) -> tuple:
    return tuple(key[name] for name in ("case", "slice", "dose", "stage"))


def page(rows: Sequence[Row], ablations: Sequence[Ablation], doses: Sequence[float], slices: Mapping[str, int]) -> str:
    """ablations.md."""
    stacks = ", ".join(f"{patient}: {count}" for patient, count in slices.items())
    lines = [
        "# Ablations",
        "",
        f"{len(slices)} patients that training never saw (slices: {stacks}), scanned as for [quality](quality.md). "
        "Every form is an override in `configs/ablations`, given after a config. In the first table, RMSE in HU over "
        "the whole slice, mean over patients, and in brackets how much worse than the first row of the table with "
        "this image, in dB of the RMSE (mean over patients; negative: better).",
        "",
        "Written by `scripts/measure_ablations.py`.",
    ]
    for kind, title in (
        ("inference", "The same weights, another inference"),
        ("projection", "Stage 1 trained otherwise"),
        ("diffusion", "Stages 2 and 3 trained otherwise"),
    ):
        errors, others = [], []
        for ablation in ablations:
            if ablation.kind != kind or ablation.skipped is not None:
                continue
            for stage in ablation.stages:
                own = [row for row in rows if (row["ablation"], row["stage"]) == (ablation.name, stage)]
                label = ablation.about if stage == "restored" else _stage_label(ablation, stage)
                base = WHOLE if kind == "inference" else BASES[kind]
                image = "restored" if kind == "inference" else stage
                against = [row for row in rows if (row["ablation"], row["stage"]) == (base, image)]
                errors.append([label, *(_error(against, own, dose) for dose in doses)])
                others.append([label, *_others(own, doses)])
        skipped = [ablation for ablation in ablations if ablation.kind == kind and ablation.skipped is not None]
        if errors or skipped:
            lines += ["", f"## {title}"]
        if errors and kind != "inference":
            lines += [
                "",
                "Trained by `scripts/train_ablations.py`, each with the same small budget, so to be held against one "
                "another and not against the whole method. A stage took the place of the shipped one, the others and "
                "their calibration stayed.",
            ]
        if errors:
            heads = ["", *(f"{dose:.0%}" for dose in doses)]
            more = ["", *(f"{name}, {dose:.0%}" for name in _OTHERS for dose in _other_doses(doses))]
            lines += ["", markdown_table(heads, errors), "", markdown_table(more, others)]
        if skipped:
            lines += ["", "Not measured:", "", *(f"- {a.name} ({a.about}): {a.skipped}" for a in skipped)]
    return "\n".join(lines) + "\n"


#: Columns of the second tables: title, column, digits.
_OTHERS = {"SSIM abdomen": ("ssim_abdomen", 3), "HU bias, soft tissue": ("hu_bias_soft_tissue", 2)}


def _other_doses(doses: Sequence[float]) -> list[float]:
    return [dose for dose in doses if dose <= 0.25]


def _others(own: Sequence[Row], doses: Sequence[float]) -> list[str]:
    return [
        spread(patient_means([row for row in own if row["dose"] == dose], column).values(), digits).split(" ")[0]
        for column, digits in _OTHERS.values()
        for dose in _other_doses(doses)
    ]


def _stage_label(ablation: Ablation, stage: str) -> str:
    what = {"prior": "projection only: the prior", "fused": "fusion only: nothing is refined"}[stage]
    return what if ablation.name == WHOLE else f"{ablation.about}; the prior"


def _error(against: Sequence[Row], own: Sequence[Row], dose: float) -> str:
    """RMSE at this dose, and how much worse it is than that of the rows `against`, if those are others."""
    own, against = ([row for row in part if row["dose"] == dose] for part in (own, against))
    values = [value for value in patient_means(own, "rmse_hu").values() if value is not None]
    if not values:
        return "-"
    text = f"{sum(values) / len(values):.1f}"
    if not against or own == against:
        return text
    gains = [gain["gain_db"] for gain in paired_gains(against, own).values()]
    return f"{text} ({sum(gains) / len(gains):+.2f})"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, slices=1, doses=DOSES)
    parser.add_argument("--trained", type=Path, help="folder with the weights of ablations that were trained")
    parser.add_argument("--only", nargs="+", help="names of ablations; default all")
    args = settle(parser.parse_args())

    ablations = find_ablations(args.weights, args.trained, args.store / "ablations")
    if args.only:
        unknown = sorted(set(args.only) - {ablation.name for ablation in ablations})
        if unknown:
            parser.error(f"--only: no ablation is called {unknown[0]}; there are {[a.name for a in ablations]}")
        ablations = [ablation for ablation in ablations if ablation.name in (WHOLE, *args.only)]
    rows = measure(args, ablations, RowStore(args.store / "ablations.jsonl"))
    slices = {
        patient: len({(row["case"], row["slice"]) for row in rows if row["patient"] == patient})
        for patient in sorted({row["patient"] for row in rows})
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "ablations.md").write_text(page(rows, ablations, sorted(args.doses), slices), encoding="utf-8")
    write_csv(args.output / "ablations.csv", [plain(row) for row in rows], overwrite=True)
    content = {
        "ablations": {
            a.name: {
                "about": a.about,
                "kind": a.kind,
                "skipped": a.skipped,
                "weights": None if a.skipped else a.version,
            }
            for a in ablations
        },
        "slices": slices,
        "code": sorted({row["code"] for row in rows}),
        "rmse_hu": {
            a.name: {
                stage: {
                    f"{dose:g}": rounded(
                        patient_means(
                            [r for r in rows if (r["ablation"], r["stage"], r["dose"]) == (a.name, stage, dose)],
                            "rmse_hu",
                        )
                    )
                    for dose in sorted(args.doses)
                }
                for stage in a.stages
            }
            for a in ablations
            if a.skipped is None
        },
    }
    write_json(args.output / "ablations.json", content, overwrite=True)
    print(f"{len(rows)} rows; written to {args.output}")
    for ablation in ablations:
        if ablation.skipped is not None:
            print(f"{ablation.name}: skipped, {ablation.skipped}")
    if warning := say_codes(rows):
        print(warning)


if __name__ == "__main__":
    main()
