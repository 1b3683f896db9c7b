"""Measure what goes wrong: each artefact of a scan at a quarter of the dose, against the noise-free truth.

    python scripts/measure_robustness.py

Writes into --output: robustness.csv (a row a scan and method), robustness.json, robustness.md and robustness.png, and
puts the tables into docs/robustness.md. Scanner, noise and networks are those of configs/evaluate.json. Rows and
pictures are kept in --store: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measuring import ROOT, checksum, code_checksum, plain, rounded, say_codes
from methods import Method
from phantom_scans import Bench, Kept, Row, add_arguments
from torch import Tensor
from tqdm import tqdm

from bundle.evaluation import (
    LIMITS,
    RowStore,
    insert_between_markers,
    markdown_table,
    measure_restoration,
    tissue_masks,
    tissue_statistics,
    write_csv,
    write_json,
)
from bundle.io import replace_when_complete
from bundle.physics import (
    FanBeamGeometry,
    FilteredBackprojection,
    Phantom,
    TwoEnergyBeam,
    abdomen_phantom,
    attenuation_to_hu,
    breathe,
    chest_phantom,
    detector_gain,
    metal_inserts,
    scan_with_two_energies,
    shoulders,
    truncate_detector,
)

DOSE = 0.25
#: Doses of the scans without an artefact, which no alarm shall be raised for.
CLEAN_DOSES = (0.1, 0.25, 1.0)
METHODS = ("fbp_ram-lak", "nlm", "prior", "fused", "restored")
FBP, OURS = "fbp_ram-lak", "restored"
TISSUES = ("soft_tissue", "lung", "bone")
#: Around metal nothing is judged, mm; of a short detector's field of view, this share of the radius is.
METAL_MARGIN, SEEN = 3.0, 0.95
BEAM = TwoEnergyBeam()

Made = tuple[Tensor, FanBeamGeometry, Tensor]


@dataclass(frozen=True)
class Case:
    """A way in which a scan goes wrong.

    Args:
        name: of the artefact.
        text: what was done, in words.
        phantom: that it is done to.
        make: the phantom and the bench to line integrals, the geometry they are reconstructed in, and the truth.
    """

    name: str
    text: str
    phantom: Phantom
    make: Callable[[Phantom, Bench], Made]


def clean(phantom: Phantom, bench: Bench) -> Made:
    """Nothing goes wrong."""
    return bench.line_integrals(phantom, bench.geometry), bench.geometry, phantom.image_hu(bench.geometry)


def metal(phantom: Phantom, bench: Bench) -> Made:
    """Two titanium rods beside the spine, a beam of two energies, corrected for water."""
    rods = metal_inserts([(-34, 72), (34, 72)], radius=4)
    p, geometry, truth = hardened(phantom.with_ellipses(*rods), bench)
    # The rods' own edges would outweigh all that they do to the rest.
    for rod in rods:
        truth[..., _distance(geometry, rod.x, rod.y) < rod.reach + METAL_MARGIN] = torch.nan
    return p, geometry, truth


def hardened(phantom: Phantom, bench: Bench) -> Made:
    """A beam of two energies, corrected for water as scanners do."""
    p = scan_with_two_energies(phantom, bench.geometry, BEAM, mu_water=bench.mu_water)
    return p, bench.geometry, phantom.image_hu(bench.geometry)


def uncorrected(phantom: Phantom, bench: Bench) -> Made:
    """The same beam, not corrected."""
    p = scan_with_two_energies(phantom, bench.geometry, BEAM, corrected=False, mu_water=bench.mu_water)
    return p, bench.geometry, phantom.image_hu(bench.geometry)


def starved(phantom: Phantom, bench: Bench) -> Made:
    """Shoulders beside the image grid."""
    return clean(phantom.with_ellipses(*shoulders(inner=178)), bench)


def moving(phantom: Phantom, bench: Bench) -> Made:
    """One breath in a turn."""
    p = breathe(phantom, bench.geometry, (1.0, 3.0), mu_water=bench.mu_water)
    return p, bench.geometry, phantom.image_hu(bench.geometry)


def truncated(phantom: Phantom, bench: Bench) -> Made:
    """A detector for 136 mm to either side; the truth outside is not asked for."""
    p, geometry, truth = clean(phantom, bench)
    p, short = truncate_detector(p, geometry, 272)
    truth[..., _distance(geometry, 0, 0) > SEEN * short.field_of_view_radius] = torch.nan
    return p, short, truth


def _distance(geometry: FanBeamGeometry, x: float, y: float) -> Tensor:
    """Distance of every pixel from a point, ``(H, W)``, mm."""
    columns, rows = (torch.from_numpy(c) for c in geometry.pixel_coordinates())
    return torch.hypot(columns[None] - x, rows[:, None] - y)


def ringing(gain: float) -> Callable[[Phantom, Bench], Made]:
    """Two cells whose gain is off."""

    def make(phantom: Phantom, bench: Bench) -> Made:
        p, geometry, truth = clean(phantom, bench)
        return detector_gain(p, [300, 400], gain), geometry, truth

    return make


CASES = (
    Case("metal", "two titanium rods of 8 mm, two energies, corrected for water", abdomen_phantom(0), metal),
    Case("starvation", "shoulders of 110 mm on either side of the image", chest_phantom(0), starved),
    Case("motion", "breathing, 3 mm to and fro in one turn", abdomen_phantom(0), moving),
    Case("truncation", "detector of 272 cells, field of view 136 mm in radius", abdomen_phantom(0), truncated),
    Case("ring", "gain of two cells 5 % off", abdomen_phantom(0), ringing(1.05)),
    Case("faint ring", "gain of two cells 2 % off", abdomen_phantom(0), ringing(1.02)),
    Case("bone hardening", "two energies, corrected for water", abdomen_phantom(0), hardened),
    Case("hardening", "two energies, not corrected", abdomen_phantom(0), uncorrected),
)


def measure(bench: Bench, kept: Kept, args: argparse.Namespace) -> list[Row]:
    """A row a scan and method; the row of ours holds what every check measured."""
    plan = [(case, DOSE) for case in args.cases]
    plan += [
        (Case("none", "", phantom, clean), dose)
        for phantom in args.clean
        for dose in (CLEAN_DOSES if not args.quick else (DOSE,))
    ]
    code, rows = code_checksum(), []
    methods = bench.usable()
    with tqdm(plan, desc="robustness", unit="scan") as bar:
        for case, dose in bar:
            bar.set_postfix_str(f"{case.name}, {case.phantom.name}")
            key = {
                "artefact": case.name,
                "phantom": case.phantom.name,
                "dose": dose,
                "setting": bench.setting(case.phantom, case.text, sorted(LIMITS.items())),
            }
            found = {name: kept.find({**key, **bench.key(method)}) for name, method in methods.items()}
            pictures = _pictures(args, key, case, bench, methods)
            if not all(found.values()) or not all(path.is_file() for path in pictures.values()):
                line_integrals, geometry, truth = case.make(case.phantom, bench)
                scan = bench.scan(f"{case.phantom.name} {case.name}", line_integrals, geometry, dose, [0])
                images = {name: method.call(scan)[:, 0] for name, method in methods.items()}
                noise_free = attenuation_to_hu(FilteredBackprojection(geometry)(line_integrals), bench.mu_water)[:, 0]
                for name, image in images.items():
                    if not found[name]:
                        row = {**key, **bench.key(methods[name]), **errors(image, truth[0], noise_free)}
                        if name == OURS:
                            # As it came: our own FBP, not that of the peer, whose window may differ.
                            checks = measure_restoration(
                                images[FBP], image, scan.sinogram, scan.incident_photons, scan.geometry
                            )
                            row["checks"] = [[c.name, c.value, c.limit, c.raised] for c in checks]
                        found[name] = [kept.add({**row, "code": code})]
                for name, path in pictures.items():
                    image = truth[0] if name == "truth" else images[name]
                    with replace_when_complete(path, overwrite=True) as unfinished:
                        torch.save(image[0].half().clone(), unfinished)
            rows += [known[-1] for known in found.values()]
    return rows


def errors(image: Tensor, truth: Tensor, noise_free: Tensor) -> Row:
    """Errors where the truth is known, the smallest possible ones of an FBP, and HU bias per tissue."""
    known = torch.isfinite(truth)
    image, noise_free = (torch.where(known, i, truth.nan_to_num(-1000.0)) for i in (image, noise_free))
    truth = truth.nan_to_num(-1000.0)
    masks = {name: mask & known for name, mask in tissue_masks(truth).items()}
    (statistics,) = tissue_statistics(image, truth, masks)
    return {
        "rmse_hu": _rms((image - truth)[known]),
        "noise_free_rmse_hu": _rms((noise_free - truth)[known]),
        "pixels": int(known.sum()),
        **{f"hu_bias_{t}": statistics[t].bias for t in TISSUES},
        **{f"pixels_{t}": statistics[t].n for t in TISSUES},
    }


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


def _pictures(
    args: argparse.Namespace, key: Row, case: Case, bench: Bench, methods: dict[str, Method]
) -> dict[str, Path]:
    """Where the images are kept that the picture needs, in its order."""
    if case.name == "none":
        return {}
    chosen = ["truth", *(name for name in (FBP, "prior", OURS) if name in methods)]
    versions = {name: bench.versions[name] for name in methods}
    return {
        name: args.store / "pictures" / f"robustness_{checksum(repr(key), name, str(versions.get(name)))}.pt"
        for name in chosen
    }


class Report:
    """Tables and the picture of all rows."""

    def __init__(self, rows: Sequence[Row], bench: Bench, args: argparse.Namespace) -> None:
        self.rows, self.bench, self.args = rows, bench, args
        self.names = list(bench.usable())

    def row(self, artefact: str, phantom: str, method: str) -> Row:
        """The row of one scan at :data:`DOSE`."""
        key = {"artefact": artefact, "phantom": phantom, "method": method, "dose": DOSE}
        return next(r for r in self.rows if all(r[name] == value for name, value in key.items()))

    def page(self, folder: str) -> str:
        """Tables, the picture looked for in `folder`."""
        size = self.bench.geometry.image_shape
        titles = [self.bench.methods[name].title for name in self.names]
        lines = [
            f"Anatomy-like phantoms at {DOSE:.0%} dose, one scan each (n = 1), {size[0]} x {size[1]} pixels; "
            f"{self.bench.scanner()}. Truth: the phantom itself, its mean over every pixel. No window, "
            "no clipping; whole slice, but for truncation, where it is 95 % of the field of view's radius.",
            "",
            "**RMSE, HU**; in brackets that of the same phantom without the artefact, over the whole slice. Last "
            "column: FBP of the artefact without any noise.",
            "",
        ]
        body = []
        for case in self.args.cases:
            cells = []
            for name in self.names:
                row, without = self.row(case.name, case.phantom.name, name), self.row("none", case.phantom.name, name)
                cells.append(f"{row['rmse_hu']:.1f} ({without['rmse_hu']:.1f})")
            cells.append(f"{row['noise_free_rmse_hu']:.1f} ({without['noise_free_rmse_hu']:.1f})")
            body.append([f"{case.name}: {case.text}; {case.phantom.name}", *cells])
        lines.append(markdown_table(["", *titles, "FBP, no noise"], body))
        for tissue in TISSUES:
            body = []
            for case in self.args.cases:
                rows = [self.row(case.name, case.phantom.name, name) for name in self.names]
                without = [self.row("none", case.phantom.name, name) for name in self.names]
                # What little an abdomen has between air and soft tissue is edges of gas.
                if rows[0][f"hu_bias_{tissue}"] is None or (tissue == "lung" and "chest" not in case.phantom.name):
                    continue
                pairs = zip((r[f"hu_bias_{tissue}"] for r in rows), (w[f"hu_bias_{tissue}"] for w in without))
                cells = [f"{bias:+.1f}" + (f" ({was:+.1f})" if was is not None else "") for bias, was in pairs]
                body.append([case.name, f"{rows[0][f'pixels_{tissue}']}", *cells])
            if body:
                text = f"**HU bias, {tissue.replace('_', ' ')}** (mask: smoothed truth, eroded by 2 pixels)"
                lines += ["", text, "", markdown_table(["", "pixels", *titles], body)]
        if OURS in self.names:
            lines += ["", *self.alarms()]
        return "\n".join([*lines, "", f"![Artefacts]({folder}robustness.png)"])

    def alarms(self) -> list[str]:
        """Which check is raised for which artefact, and how near the others come to their limits."""
        body = []
        for case in self.args.cases:
            row = self.row(case.name, case.phantom.name, OURS)
            body.append([case.name, _raised(row), _nearest(row)])
        for row in self.rows:
            if row["artefact"] == "none" and row["method"] == OURS:
                body.append([f"none, {row['phantom']}, {row['dose']:.0%} dose", _raised(row), _nearest(row)])
        return [
            "**Alarms** (`bundle.evaluation.check_restoration`): value and limit of those that are raised, and the one "
            "of the others that comes nearest to its limit.",
            "",
            markdown_table(["", "raised", "next"], body),
        ]

    def plot(self, path: Path) -> None:
        """A row an artefact: truth, FBP, prior, restored, and what restored makes of it."""
        cases = self.args.cases
        figure = Figure(figsize=(13, 2.75 * len(cases)), dpi=80, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(cases), 5, squeeze=False)
        for line, case in zip(axes, cases):
            row = self.row(case.name, case.phantom.name, FBP)
            key = {name: row[name] for name in ("artefact", "phantom", "dose", "setting")}
            pictures = _pictures(self.args, key, case, self.bench, self.bench.usable())
            images = {name: torch.load(path, weights_only=True).float() for name, path in pictures.items()}
            window = "chest" if "chest" in case.phantom.name else "abdomen"
            low, high = self.bench.windows[window]
            reach = (high - low) / 4
            for axis in line:
                axis.set_axis_off()
            for axis, (name, image) in zip(line, images.items()):
                axis.imshow(image.nan_to_num(-1000.0).numpy(), cmap="gray", vmin=low, vmax=high)
                title = f"{case.name}: truth" if name == "truth" else self.bench.methods[name].title
                axis.set_title(f"{title}\n{window} [{low:g}, {high:g}] HU", fontsize="small")
            if OURS in images:
                error = (images[OURS] - images["truth"]).nan_to_num(0.0)
                line[len(images)].imshow(error.numpy(), cmap="gray", vmin=-reach, vmax=reach)
                line[len(images)].set_title(f"restored - truth\n[{-reach:g}, {reach:g}] HU", fontsize="small")
        with replace_when_complete(path, overwrite=True) as unfinished:
            figure.savefig(unfinished, format="png")


def _raised(row: Row) -> str:
    raised = [f"{name} {value:.3g} (limit {limit:g})" for name, value, limit, up in row["checks"] if up]
    return ", ".join(raised) or "none"


def _nearest(row: Row) -> str:
    quiet = [(abs(value) / limit, name, value, limit) for name, value, limit, up in row["checks"] if not up]
    if not quiet:
        return "-"
    _, name, value, limit = max(quiet)
    return f"{name} {value:.3g} (limit {limit:g})"


@torch.no_grad()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "robustness.md", help="with marker 'robustness'")
    args = parser.parse_args()
    args.cases = CASES[:2] if args.quick else CASES
    args.clean = list(dict.fromkeys(case.phantom for case in args.cases))
    if not args.quick:
        args.clean += [abdomen_phantom(1), chest_phantom(1)]

    bench = Bench(args, METHODS)
    if FBP not in bench.usable():
        parser.error(f"--methods must hold {FBP}, which all others are held beside")
    rows = measure(bench, Kept(RowStore(args.store / "robustness.jsonl"), args.fresh), args)
    report = Report(rows, bench, args)
    report.plot(bench.output / "robustness.png")
    skipped = "\n".join(f"- {line}" for line in bench.skipped())
    head = "# Artefacts\n\nWritten by `scripts/measure_robustness.py`; what it means: "
    (bench.output / "robustness.md").write_text(
        f"{head}[docs/robustness.md](../robustness.md).\n\n{report.page('')}\n\n{skipped}".strip() + "\n",
        encoding="utf-8",
    )
    write_csv(
        bench.output / "robustness.csv",
        [{name: value for name, value in plain(row).items() if name != "checks"} for row in rows],
        overwrite=True,
    )
    content = {
        "artefacts": {case.name: case.text for case in args.cases},
        "code": sorted({row["code"] for row in rows}),
        "rows": rounded([plain(row) for row in rows]),
    }
    write_json(bench.output / "robustness.json", content, overwrite=True)
    if not args.quick and args.methods is None:
        insert_between_markers(args.page, "robustness", f"{report.page('results/')}\n\n{skipped}")
    print(f"{len(rows)} rows; written to {bench.output}")
    for line in [*bench.skipped(), say_codes(rows)]:
        if line:
            print(line)


if __name__ == "__main__":
    main()
