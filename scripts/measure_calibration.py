"""Measure what a calibration is worth: the same weights on another scanner and kernel, before and after it.

    python scripts/measure_calibration.py --dataset_dir TEST --calibration_dir OTHERS

Two cases. Another scanner: geometry, photons and electronic noise of IPDM (1000 views of 800 cells on an arc),
calibrated on the patients of --calibration_dir, measured on those of --dataset_dir. A sharp kernel: the scanner of
configs/evaluate.json, calibrated on slices of one end of the volumes that --sharp names, measured on the other end of
the same volumes. --slices counts the slices of a patient that the first case measures; where it calibrates, and in the
second case, twice as many. Writes calibration.csv, calibration.json and calibration.md into --output, and the tables
into docs/calibration.md. Rows are kept in --store.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from measuring import (
    ROOT,
    add_arguments,
    checksum,
    code_checksum,
    load_config,
    method_versions,
    plain,
    rounded,
    say_codes,
    settle,
)
from monai.bundle import ConfigParser
from tqdm import tqdm

from bundle.evaluation import (
    RowStore,
    insert_between_markers,
    markdown_table,
    paired_gains,
    patient_means,
    score_slices,
    spread,
    write_csv,
    write_json,
)
from bundle.inference import LowDoseRestorer, calibrate_fusions, calibration_images, fusion_values
from bundle.io import find_scans
from bundle.physics import FanBeamGeometry, estimate_noise_model
from bundle.transforms import LoadScand

PAGE = ROOT / "docs" / "calibration.md"
DOSES = (0.1, 0.25, 1.0)
#: Dose of the calibration.
REFERENCE_DOSE = 0.25
#: Rows of the table: whose calibration, which image, and its title. Without the scan's photon number the output fusion
#: makes the restored image; with it, the fusion that every scan calibrates by itself.
FORMS = {
    ("shipped", "prior"): "prior",
    ("shipped", "fused"): "fused, as shipped",
    ("own", "fused"): "fused, calibrated",
    ("shipped", "restored"): "restored, as shipped",
    ("own", "restored"): "restored, calibrated",
    ("photons", "restored"): "restored, calibrated, with the photon number that calibration measured",
}
#: What a calibration is held against, and what it gives.
GAINS = (
    ("fused", "shipped", "own"),
    ("restored", "shipped", "own"),
    ("restored with photons", "shipped", "photons"),
)

#: Geometry of IPDM (TMI 2024) with its fan and field of view, but 1000 views of 800 cells in place of 2000 of 912.
IPDM = {
    "geometry": {
        "_target_": "bundle.physics.FanBeamGeometry",
        "detector": "equiangular",
        "source_to_center": 595.0,
        "source_to_detector": 1085.6,
        "num_views": 1000,
        "num_cells": 800,
        "cell_pitch": 0.0010125 * 1085.6 * 912 / 800,
        "pixel_size": 420 / 512,
        "image_shape": [512, 512],
    },
    "photons": 1.4e5,
    "electronic_variance": 5.8,
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A scanner, and which slices calibrate and which measure.

    Args:
        name: in the table of rows.
        title: in the page.
        calibration: found scans, each with the indices of its slices.
        measured: likewise.
        overrides: of evaluate.json.
    """

    name: str
    title: str
    calibration: list[tuple[dict, list[int]]]
    measured: list[tuple[dict, list[int]]]
    overrides: dict[str, Any] = field(default_factory=dict)


def spread_evenly(first: int, last: int, count: int) -> list[int]:
    """So many whole numbers from ``first`` to ``last``, both among them where there are two or more."""
    count = min(count, last - first + 1)
    step = (last - first) / max(count - 1, 1)
    return [round(first + step * k) if count > 1 else (first + last) // 2 for k in range(count)]


def find_settings(args: argparse.Namespace) -> list[Setting]:
    """Both cases, as far as there are scans for them.

    Raises:
        ValueError: no patient is left to calibrate or to measure on.
    """
    tests = [s for s in find_scans(args.dataset_dir) if not _matches(s["patient"], args.exclude)]
    others = [s for s in find_scans(args.calibration_dir) if _matches(s["patient"], args.calibrate_on)]
    tested = {scan["patient"] for scan in tests}
    others = [scan for scan in others if scan["patient"] not in tested]
    if not tests or not others:
        raise ValueError(
            f"patients to measure on ({len(tests)}, from {args.dataset_dir}) and others to calibrate on "
            f"({len(others)}, from {args.calibration_dir}) are needed"
        )

    def evenly(scan: dict, count: int) -> tuple[dict, list[int]]:
        total = _count(scan)
        count = min(count, total)
        step = total // count
        start = (total - 1 - step * (count - 1)) // 2
        return scan, [start + step * k for k in range(count)]

    settings = [
        Setting(
            "scanner",
            "Another scanner: IPDM's geometry, 140,000 photons",
            [evenly(scan, 2 * args.slices) for scan in others],
            [evenly(scan, args.slices) for scan in tests],
            IPDM,
        )
    ]
    sharp = [(scan, _count(scan)) for scan in tests if _matches(scan["patient"], args.sharp)]
    # Thirds: the one in the middle keeps calibration and measurement apart.
    ends = [
        (scan, spread_evenly(0, n // 3 - 1, 2 * args.slices), spread_evenly(n - n // 3, n - 1, 2 * args.slices))
        for scan, n in sharp
        if n >= 6
    ]
    if ends:
        settings.append(
            Setting(
                "kernel",
                "A sharp kernel: calibrated on one end of the volume, measured on the other end of the same volume",
                [(scan, first) for scan, first, _ in ends],
                [(scan, last) for scan, _, last in ends],
            )
        )
    return settings


def _matches(patient: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(patient, pattern) for pattern in patterns)


def _count(scan: Mapping[str, Any]) -> int:
    return len(LoadScand()(scan)["slice"])


class Scanner:
    """Takes chosen slices of a found scan at a dose, on the scanner of one setting."""

    def __init__(self, setting: Setting, args: argparse.Namespace) -> None:
        self.config: ConfigParser = load_config(args)
        self.config.update(setting.overrides)
        _, self._simulate = self.config.get_parsed_content("preprocessing").transforms
        self.electronic_variance = float(self.config["electronic_variance"])

    def network(self) -> LowDoseRestorer:
        """With the weights as shipped."""
        return self.config.get_parsed_content("network").eval()

    def scan(self, scan: Mapping[str, Any], slices: Sequence[int], dose: float) -> dict[str, Any]:
        """Item with ``sinogram`` ``(1, S, V, D)`` and ``reference`` ``(1, S, H, W)``."""
        item = LoadScand()(dict(scan))
        item["image_hu"], item["slice"] = item["image_hu"][:, list(slices)], item["slice"][list(slices)]
        return self._simulate({**item, "dose": dose})


def calibrate(network: LowDoseRestorer, setting: Setting, scanner: Scanner) -> Row:
    """What a calibration finds, and what the network has; the network stays as it is."""
    own, images, sinograms = copy.deepcopy(network), [], []
    for scan, slices in tqdm(setting.calibration, desc=f"{setting.name}: calibrate", unit="scan"):
        item = scanner.scan(scan, slices, REFERENCE_DOSE)
        geometry = FanBeamGeometry.from_json(item["geometry"])
        sinograms.append(item["sinogram"][0])
        images.append(
            calibration_images(own, item["sinogram"][0], geometry, item["incident_photons"], name=item["name"])
        )
    noise = estimate_noise_model(sinograms)
    found = {
        "incident_photons": float(item["incident_photons"]),
        "electronic_variance": scanner.electronic_variance,
        "estimated_photons": noise.incident_photons,
        "estimated_photons_error": noise.incident_photons_error,
        "estimated_electronic_variance": noise.electronic_variance,
        "estimated_electronic_variance_error": noise.electronic_variance_error,
    }
    values = {"shipped": fusion_values(network), "own": calibrate_fusions(own, images)}
    return {**found, "values": values}


def with_values(network: LowDoseRestorer, values: Mapping[str, Mapping[str, float]]) -> LowDoseRestorer:
    """A copy of the network whose fusions hold these values, as :func:`bundle.inference.fusion_values` gives them."""
    own = copy.deepcopy(network)
    for fusion, buffers in values.items():
        for name, value in buffers.items():
            getattr(getattr(own, fusion), name).fill_(value)
    return own


@torch.no_grad()
def measure(args: argparse.Namespace, setting: Setting, store: RowStore) -> tuple[list[Row], Row]:
    """A row a slice, dose, calibration and stage, and the row of the calibration; what the store lacks is measured."""
    code, scanner = code_checksum(), Scanner(setting, args)
    windows = {name: scanner.config["windows"][name] for name in ("abdomen", "chest")}
    fixed = {
        "setting_name": setting.name,
        "weights": method_versions(["restored"], scanner.config, args.weights)["restored"],
        "setting": checksum(
            *(Path(p) for scan, _ in setting.calibration + setting.measured for p in _paths(scan)),
            repr([[(s["name"], slices) for s, slices in setting.calibration], setting.overrides, REFERENCE_DOSE]),
        ),
    }

    def keys(scan: Mapping[str, Any], index: int, dose: float) -> list[Row]:
        head = {**fixed, "patient": scan["patient"], "case": scan["name"], "slice": index, "dose": dose}
        return [{**head, "calibration": calibration, "stage": stage} for calibration, stage in FORMS]

    calibration = {**fixed, "calibration": "values"}
    places = [(scan, slices, dose) for scan, slices in setting.measured for dose in args.doses]
    wanted = [key for scan, slices, dose in places for index in slices for key in keys(scan, index, dose)]
    if args.fresh or not store.has(**calibration) or not all(store.has(**key) for key in wanted):
        network = scanner.network()
        if args.fresh or not store.has(**calibration):
            store.add({**calibration, "code": code, **calibrate(network, setting, scanner)})
        found = store.rows(**calibration)[-1]
        own = with_values(network, found["values"]["own"])
        total = sum(len(slices) for _, slices, _ in places)
        with tqdm(total=total, desc=f"{setting.name}: measure", unit="slice") as bar:
            for scan, slices, dose in places:
                missing = [i for i in slices if args.fresh or not all(store.has(**k) for k in keys(scan, i, dose))]
                bar.update(len(slices) - len(missing))
                if not missing:
                    continue
                item = scanner.scan(scan, missing, dose)
                geometry = FanBeamGeometry.from_json(item["geometry"])
                for position, index in enumerate(missing):
                    sinogram = item["sinogram"][:, position, None].to(next(network.parameters()).device)
                    photons = found["estimated_photons"] * dose / REFERENCE_DOSE
                    results = {
                        "shipped": network.restore(sinogram, geometry),
                        "own": own.restore(sinogram, geometry),
                        "photons": own.restore(sinogram, geometry, photons),
                    }
                    for key in keys(scan, index, dose):
                        image = getattr(results[key["calibration"]], key["stage"])[:, 0].cpu()
                        (scores,) = score_slices(image, item["reference"][:, position], windows)
                        store.add({**key, "code": code, **scores})
                    bar.update()
    return [store.rows(**key)[-1] for key in wanted], store.rows(**calibration)[-1]


def _paths(scan: Mapping[str, Any]) -> list[str]:
    return list(scan["path"]) if isinstance(scan["path"], (list, tuple)) else [scan["path"]]


def section(setting: Setting, rows: Sequence[Row], found: Row, doses: Sequence[float]) -> str:
    """Markdown of one case."""
    lines = [f"**{setting.title}.**", "", _data(setting), ""]
    titles = {"rmse_hu": ("RMSE, HU", 1), "hu_bias": ("HU bias in soft tissue", 2), "ssim_chest": ("SSIM, chest", 3)}
    head = [""] + [f"{title}, {dose:.0%}" for title, _ in titles.values() for dose in doses]
    table = []
    for (calibration, stage), label in FORMS.items():
        own = [row for row in rows if (row["stage"], row["calibration"]) == (stage, calibration)]
        cells = [
            spread(patient_means([r for r in own if r["dose"] == dose], metric).values(), digits)
            for metric, (_, digits) in titles.items()
            for dose in doses
        ]
        table.append([label, *cells])
    lines += [markdown_table(head, table), ""]
    gains = []
    for title, before, after in GAINS:
        stage = title.split(" ")[0]
        for dose in doses:
            sides = (
                [r for r in rows if (r["stage"], r["calibration"], r["dose"]) == (stage, name, dose)]
                for name in (after, before)
            )
            by_patient = paired_gains(*sides).values()
            mean = sum(gain["gain_db"] for gain in by_patient) / len(by_patient)
            wins, total = sum(gain["wins"] for gain in by_patient), sum(gain["n"] for gain in by_patient)
            gains.append(f"{title} at {dose:.0%} {mean:+.2f} dB ({wins} of {total} slices better)")
    lines += [f"Gain by calibration, mean over patients: {'; '.join(gains)}.", ""]
    shipped, own = found["values"]["shipped"], found["values"]["own"]
    lines += [
        "; ".join(
            f"{name.replace('_', ' ')}: N25 {shipped[name]['noise_25']:.1f} to {own[name]['noise_25']:.1f} HU, "
            f"noise scale {shipped[name]['noise_scale']:.2f} to {own[name]['noise_scale']:.2f}"
            for name in own
        )
        + f". From their noise alone the calibration scans had {found['estimated_photons']:,.0f} ± "
        f"{found['estimated_photons_error']:,.0f} incident photons a ray (simulated: {found['incident_photons']:,.0f}) "
        f"and electronic noise of variance {found['estimated_electronic_variance']:.1f} ± "
        f"{found['estimated_electronic_variance_error']:.1f} (simulated: {found['electronic_variance']:g})."
    ]
    return "\n".join(lines)


def _data(setting: Setting) -> str:
    def named(scans: Sequence[tuple[dict, list[int]]]) -> str:
        return ", ".join(f"{scan['patient']} (slices {', '.join(map(str, slices))})" for scan, slices in scans)

    count = sum(len(slices) for _, slices in setting.measured)
    return (
        f"Calibrated at {REFERENCE_DOSE:.0%} on {named(setting.calibration)}; measured on {named(setting.measured)}: "
        f"{len(setting.measured)} patient(s), {count} slices a dose."
    )


def page(sections: Sequence[str]) -> str:
    """calibration.md."""
    lines = [
        "Reference: Ram-Lak FBP of the noise-free line integrals in the same geometry. RMSE over the whole slice, not "
        "clipped; bias over soft tissue, eroded; SSIM clipped to [-1350, 150] HU, range 1500 HU. Mean over patients, "
        "in brackets lowest and highest. All have the same networks. As shipped: N25, g25 and noise scale of the "
        "fusions belong to the scanner of training, and nobody tells the photon number of a scan. Calibrated: N25, g25 "
        "and noise scale are of this scanner. With the photon number, as estimated from the noise of the calibration "
        "scans: the bias of the logarithm is corrected, and each scan calibrates its output fusion by itself.",
        "",
        "Written by `scripts/measure_calibration.py`.",
    ]
    for text in sections:
        lines += ["", text]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, slices=1, doses=DOSES)
    parser.add_argument("--calibration_dir", required=True, help="CT images of other patients, to calibrate on")
    parser.add_argument("--calibrate_on", nargs="+", default=["*"], help="patients (patterns) of --calibration_dir")
    parser.add_argument("--sharp", nargs="*", default=["chest1mm_*"], help="patients (patterns) with a sharp kernel")
    args = settle(parser.parse_args())

    settings = find_settings(args)
    if args.quick:
        # One scan to calibrate on and one to measure on is enough to see that all works.
        settings = [Setting(s.name, s.title, s.calibration[:1], s.measured[:1], s.overrides) for s in settings]
    store, rows, sections, found = RowStore(args.store / "calibration.jsonl"), [], [], {}
    for setting in settings:
        new, found[setting.name] = measure(args, setting, store)
        rows += new
        sections.append(section(setting, new, found[setting.name], sorted(args.doses)))
    text = page(sections)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "calibration.md").write_text(f"# Calibration\n\n{text}", encoding="utf-8")
    write_csv(args.output / "calibration.csv", [plain(row) for row in rows], overwrite=True)
    content = {
        "calibrations": {name: rounded(plain(row)) for name, row in found.items()},
        "rows": [plain(r) for r in rows],
    }
    write_json(args.output / "calibration.json", content, overwrite=True)
    if not args.quick:
        insert_between_markers(PAGE, "calibration", text)
    print(text)
    if warning := say_codes(rows):
        print(warning)


if __name__ == "__main__":
    main()
