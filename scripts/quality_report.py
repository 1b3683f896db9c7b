"""Tables and plot of what scripts/measure_quality.py has measured."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measuring import without_root

from bundle.evaluation import MASKS, TISSUES, markdown_table, paired_gains, patient_means, spread
from bundle.io import replace_when_complete

if TYPE_CHECKING:
    from methods import Method

#: What README shows: at these doses, of these columns.
README_DOSES = (0.05, 0.1, 0.25, 0.5, 1.0)
README_COLUMNS = ("rmse_hu", "ssim_abdomen", "ssim_chest", "hu_bias_soft_tissue")
README_METHODS = ("fbp_ram-lak", "fbp_hann"), ("prior", "restored", "supervised")
#: Of the windows of configs/evaluate.json, those that are measured: SSIM takes as long as a method.
WINDOWS = ("abdomen", "chest", "full")
#: The method that is held against the others.
OURS = "restored"
#: What the reference of each kind is (``reference_of`` of :class:`bundle.transforms.SimulateScand`).
REFERENCES = {
    "backprojection": "Ram-Lak FBP of the noise-free line integrals",
    "object": "the image that was projected, not its FBP; what is restored is restored to the object, by the projector "
    "that made the scans (not so on the phantoms of the tasks)",
}
#: Peers that ours must beat, by group.
PEER_GROUPS = ("classical", "self-supervised")
#: How the plot tells kinds of methods apart.
LINES = {"classical": "--", "self-supervised": "-.", "supervised": ":"}

Row = dict[str, Any]


class Report:
    """Tables of measured rows.

    Args:
        rows: of :func:`measure`.
        methods: all methods, those skipped included.
        windows: low and high in HU by name.
        doses: in the order of the columns.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        methods: Mapping[str, Method],
        windows: Mapping[str, Sequence[float]],
        doses: Sequence[float],
    ) -> None:
        self.rows, self.methods, self.windows, self.doses = rows, methods, windows, sorted(doses)
        self.slices = {
            patient: len({(row["case"], row["slice"]) for row in rows if row["patient"] == patient})
            for patient in sorted({row["patient"] for row in rows})
        }
        # In the order of scripts/methods.py.
        self.measured = [name for name in methods if any(row["method"] == name for row in rows)]

    def of(self, method: str, dose: float) -> list[Row]:
        """Rows of a method at a dose."""
        return [row for row in self.rows if row["method"] == method and row["dose"] == dose]

    def columns(self) -> dict[str, tuple[str, int]]:
        """Title and digits of every column that has a table."""
        titles = {"rmse_hu": ("RMSE, HU; whole slice, not clipped", 1)}
        for name, (low, high) in self.windows.items():
            stated = f"{name} [{low:g}, {high:g}] HU, range its width"
            titles[f"ssim_{name}"] = (f"SSIM, {stated}", 3)
            titles[f"psnr_{name}"] = (f"PSNR, dB, {stated}", 2)
            titles[f"vif_{name}"] = (f"VIF, {name} [{low:g}, {high:g}] HU", 3)
        for tissue in TISSUES:
            titles[f"hu_bias_{tissue}"] = (f"HU bias, {tissue.replace('_', ' ')}", 2)
        for tissue in TISSUES:
            titles[f"hu_std_{tissue}"] = (f"Standard deviation of the error, HU, {tissue.replace('_', ' ')}", 1)
        return {
            column: title for column, title in titles.items() if any(row.get(column) is not None for row in self.rows)
        }

    def n(self) -> str:
        """Who was measured."""
        stacks = ", ".join(f"{patient}: {count}" for patient, count in self.slices.items())
        return f"{len(self.slices)} patients that training never saw (slices: {stacks})"

    def skipped(self) -> list[str]:
        """A line for every method that was not measured."""
        lines = []
        for name, method in self.methods.items():
            if method.skipped is not None:
                lines.append(f"{method.title}: skipped, {without_root(method.skipped)}")
            elif name not in self.measured:
                lines.append(f"{method.title}: skipped, too slow for a quick run")
        return lines

    def table(self, column: str, names: Sequence[str], doses: Sequence[float]) -> str:
        """Methods down, doses across, mean over patients with the lowest and the highest."""
        _, digits = self.columns()[column]
        rows = []
        for name in names:
            cells = [spread(patient_means(self.of(name, dose), column).values(), digits) for dose in doses]
            rows.append([self.methods[name].title, *cells])
        return markdown_table(["", *(f"{dose:.0%}" for dose in doses)], rows)

    def peers(self) -> list[str]:
        """Measured peers that ours has to beat."""
        return [name for name in self.measured if self.methods[name].group in PEER_GROUPS]

    def gains(self, name: str, dose: float) -> dict[str, dict[str, Any]]:
        """See :func:`bundle.evaluation.paired_gains`."""
        return paired_gains(self.of(OURS, dose), self.of(name, dose))

    def gain_table(self) -> str:
        """Gain of ours over every other method, in dB of the RMSE, and how often it wins."""
        rows = []
        for name in self.measured:
            if name == OURS:
                continue
            cells = []
            for dose in self.doses:
                gains = self.gains(name, dose).values()
                wins, n = (sum(gain[key] for gain in gains) for key in ("wins", "n"))
                cells.append(f"{spread([g['gain_db'] for g in gains])}; {wins}/{n}" if n else "-")
            rows.append([self.methods[name].title, *cells])
        return markdown_table([f"{self.methods[OURS].title} against", *(f"{dose:.0%}" for dose in self.doses)], rows)

    def best_peer(self, patient: str, dose: float) -> tuple[str, dict[str, Any]] | None:
        """The peer that ours gains least over, for one patient and dose, and that gain."""
        found = {name: self.gains(name, dose).get(patient) for name in self.peers()}
        gains = {name: gain for name, gain in found.items() if gain}
        name = min(gains, key=lambda name: gains[name]["gain_db"], default=None)
        return (name, gains[name]) if name else None

    def best_table(self) -> str:
        """Gain over the best peer, by patient and dose, and the slices won."""
        rows = []
        for patient in self.slices:
            cells = []
            for best in (self.best_peer(patient, dose) for dose in self.doses):
                if best:
                    name, gain = best
                    cells.append(f"{gain['gain_db']:+.2f}; {gain['wins']}/{gain['n']} ({self.methods[name].title})")
                else:
                    cells.append("-")
            rows.append([patient, *cells])
        return markdown_table(["patient", *(f"{dose:.0%}" for dose in self.doses)], rows)

    def best_of(self, group: str, doses: Sequence[float]) -> str | None:
        """The method of a group that has the least RMSE over these doses."""
        names = [name for name in self.measured if self.methods[name].group == group]

        def error(name: str) -> float:
            return fmean(math.log(fmean(row["rmse_hu"] for row in self.of(name, dose))) for dose in doses)

        return min(names, key=error, default=None)

    def short(self) -> str:
        """What README shows."""
        doses = [dose for dose in README_DOSES if dose in self.doses]
        strongest = {best[0] for dose in doses for patient in self.slices if (best := self.best_peer(patient, dose))}
        strongest |= {self.best_of(group, doses) for group in PEER_GROUPS}
        peers = [name for name in self.methods if name in strongest]
        chosen = [
            name for name in dict.fromkeys((*README_METHODS[0], *peers, *README_METHODS[1])) if name in self.measured
        ]
        lines = [
            f"{self.n()}; reference: {REFERENCES['backprojection']}. Mean over patients, in brackets "
            "lowest and highest. Of the classical and self-supervised peers those are shown that are the best of their "
            "kind, or the hardest to beat for a patient at a dose; all methods, "
            "doses and metrics, and which peers were skipped: [docs/results/quality.md](docs/results/quality.md).",
        ]
        for column in README_COLUMNS:
            if column in self.columns():
                lines += ["", f"**{self.columns()[column][0]}**", "", self.table(column, chosen, doses)]
        gains = [[self.best_peer(patient, dose) for patient in self.slices] for dose in doses]
        cells = [spread([best[1]["gain_db"] for best in at if best]) for at in gains]
        lines += [
            "",
            "**Gain over each patient's best peer, dB of the RMSE**",
            "",
            markdown_table(["", *(f"{dose:.0%}" for dose in doses)], [[self.methods[OURS].title, *cells]]),
        ]
        return "\n".join(lines)

    def page(self, args: argparse.Namespace, figure: bool) -> str:
        """quality.md."""
        lines = [
            "# Quality" if args.restore_to == "backprojection" else "# Quality, measured by the object",
            "",
            f"{self.n()}; every slice is scanned in simulation at each dose, with the scanner and the noise of "
            f"`configs/evaluate.json`. Reference: {REFERENCES[args.restore_to]}. Numbers are means over "
            "patients, a patient's being the mean over slices; in brackets the lowest and the highest patient.",
            "",
            "Where each is measured:",
            "",
            *(f"- `{columns}`: {where}" for columns, where in MASKS.items()),
            "",
            "Each slice has one noise realisation at a dose; the bias of a small mask is mostly its chance: "
            "[bias.md](bias.md) has many.",
            "",
            f"Written by `scripts/measure_quality.py`; every slice's row is in {args.name}.csv.",
            "",
            "## Methods",
            "",
            markdown_table(
                ["", "kind", "slices a dose"],
                [
                    [method.title, method.group, str(sum(self.slices.values())) if name in self.measured else "none"]
                    for name, method in self.methods.items()
                ],
            ),
        ]
        lines += ["", *(f"- {line}" for line in self.skipped())] if self.skipped() else []
        lines += ["", f"![RMSE against dose]({args.name}_rmse.png)"]
        if figure:
            low, high = self.windows[args.figure_window]
            lines += [
                "",
                f"![One slice by every method at {args.figure_dose:.0%} dose]({args.name}_slice.png)",
                "",
                f"One slice at {args.figure_dose:.0%} dose, window {args.figure_window} [{low:g}, {high:g}] HU. "
                f"Image: {args.figure_credit}.",
            ]
        if OURS in self.measured:
            lines += [
                "",
                f"## {self.methods[OURS].title} against its peers",
                "",
                "Gain in dB, 20 log10 of the ratio of the RMSEs, on the slices that both were measured on: mean over "
                "patients (lowest to highest); slices won of slices compared.",
                "",
                self.gain_table(),
                "",
                "Against each patient's best peer, classical or self-supervised (chosen by the result, in the peers' "
                "favour), dB; slices won of slices compared:",
                "",
                self.best_table(),
            ]
        for column, (title, _) in self.columns().items():
            lines += ["", f"## {title}", "", self.table(column, self.measured, self.doses)]
        return "\n".join(lines) + "\n"

    def summary(self) -> dict[str, Any]:
        """Mean, lowest and highest patient by method, dose and column, and their number."""
        result: dict[str, Any] = {}
        for name, dose in product(self.measured, self.doses):
            rows = self.of(name, dose)
            for column in self.columns() if rows else ():
                values = [value for value in patient_means(rows, column).values() if value is not None]
                if values:
                    result.setdefault(name, {}).setdefault(f"{dose:g}", {})[column] = {
                        "mean": fmean(values),
                        "lowest": min(values),
                        "highest": max(values),
                        "patients": len(values),
                        "slices": sum(row.get(column) is not None for row in rows),
                    }
        return result

    def plot(self, path: Path) -> None:
        """RMSE against dose, mean over patients, of every method."""
        figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        for position, name in enumerate(self.measured):
            doses = [dose for dose in self.doses if self.of(name, dose)]
            errors = [fmean(patient_means(self.of(name, dose), "rmse_hu").values()) for dose in doses]
            group = self.methods[name].group
            axis.plot(
                [100 * dose for dose in doses],
                errors,
                label=self.methods[name].title,
                color=f"C{position % 10}",
                linestyle=LINES.get(group, "-"),
                marker="o",
                markersize=3,
                linewidth=3 if name == OURS else 1.2,
            )
        axis.set(xscale="log", yscale="log", xlabel="dose, % of normal", ylabel="RMSE, HU (whole slice)")
        axis.set_xticks([100 * dose for dose in self.doses], [f"{100 * dose:g}" for dose in self.doses])
        axis.set_yticks(ticks := [10, 20, 50, 100, 200, 500], [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.set_title(f"mean over {len(self.slices)} patients", fontsize="medium")
        axis.legend(fontsize="small", ncols=2)
        with replace_when_complete(path, overwrite=True) as unfinished:
            figure.savefig(unfinished, format="png")
