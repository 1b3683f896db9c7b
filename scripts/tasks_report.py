"""Tables and plots of what scripts/measure_tasks.py has measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measuring import plain
from methods import METHODS
from phantom_scans import Bench, Row

from bundle.evaluation import TISSUES, markdown_table, spread
from bundle.io import replace_when_complete

BASELINE, NOISE_FREE = "fbp_ram-lak", "noise_free"
TRANSFER_DOSE = 0.25
PICTURE_DOSE = 0.25
#: Of the discs' contrast: within this share of their radius; background from and to these, likewise.
DETAIL, BACKGROUND = 0.8, (1.25, 1.75)


class Report:
    """Tables and pictures of all rows."""

    def __init__(self, rows: Sequence[Row], bench: Bench) -> None:
        self.rows, self.bench, self.methods = rows, bench, bench.methods

    def of(self, part: str, **key: Any) -> list[Row]:
        """Rows of a part that hold these values."""
        return [r for r in self.rows if r["part"] == part and all(r.get(name) == v for name, v in key.items())]

    def title(self, name: str) -> str:
        return "FBP, Ram-Lak, without any noise" if name == NOISE_FREE else self.methods[name].title

    def measured(self, part: str) -> list[str]:
        """Methods in the order of scripts/methods.py."""
        return [name for name in (*METHODS, NOISE_FREE) if self.of(part, method=name)]

    def doses(self, part: str) -> list[float]:
        return sorted({row["dose"] for row in self.of(part) if row["dose"] is not None})

    def page(self, folder: str) -> str:
        """All tables, pictures looked for in `folder`."""
        parts = self.anatomy(folder), self.detectability(folder), self.transfer(), self.contrast(), self.noise(folder)
        return "\n".join(line for part in parts for line in part)

    def anatomy(self, folder: str) -> list[str]:
        rows, windows = self.of("anatomy"), self.bench.windows
        if not rows:
            return []
        phantoms = sorted({row["phantom"] for row in rows})
        noises = len({row["noise"] for row in rows if row["noise"] is not None})
        size = self.bench.geometry.image_shape
        lines = [
            "## Errors on anatomy-like phantoms",
            "",
            f"n = {len(phantoms) * noises} scans a dose: {', '.join(phantoms)}, {noises} noise realisation(s) each, "
            f"{size[0]} x {size[1]} pixels; {self.bench.scanner()}. "
            "Truth: the phantom itself, its mean over every pixel. Mean over phantoms and realisations, in brackets "
            "lowest and highest.",
        ]
        columns = {"rmse_hu": ("RMSE, HU; whole slice, not clipped", 1)}
        for window in ("abdomen", "chest", "head"):
            low, high = windows[window]
            columns[f"ssim_{window}"] = (
                f"SSIM, window {window} [{low:g}, {high:g}] HU, range its width; whole slice",
                3,
            )
            columns[f"psnr_{window}"] = (f"PSNR, dB, window {window}, likewise", 1)
        doses = self.doses("anatomy")
        for column, (title, digits) in columns.items():
            body = []
            for name in self.measured("anatomy"):
                cells = [
                    spread([r[column] for r in self.of("anatomy", method=name, dose=d)], digits)
                    for d in (doses if name != NOISE_FREE else [None])
                ]
                body.append([self.title(name), *(cells * len(doses) if name == NOISE_FREE else cells)])
            lines += ["", f"**{title}**", "", markdown_table(["", *(f"{d:.0%}" for d in doses)], body)]
        lines += ["", f"![Truth and methods at {PICTURE_DOSE:.0%} dose]({folder}tasks_anatomy.png)"]
        return lines + self.bias()

    def bias(self) -> list[str]:
        """HU bias per tissue at the dose of the pictures."""
        dose = PICTURE_DOSE if PICTURE_DOSE in self.doses("anatomy") else self.doses("anatomy")[-1]
        seen = {t: [r[f"pixels_{t}"] for r in self.of("anatomy", dose=dose) if _has(r, t)] for t in TISSUES}
        head = [f"{t.replace('_', ' ')}, {fmean(n or [0]):.0f} pixels a phantom" for t, n in seen.items()]
        body = []
        for name in self.measured("anatomy"):
            rows = self.of("anatomy", method=name, **({} if name == NOISE_FREE else {"dose": dose}))
            body.append([self.title(name), *(spread([r[f"hu_bias_{t}"] for r in rows if _has(r, t)]) for t in TISSUES)])
        ranges = ", ".join(f"{t.replace('_', ' ')} [{low:g}, {high:g}]" for t, (low, high) in TISSUES.items())
        return [
            "",
            f"**HU bias at {dose:.0%} dose**; masks: smoothed truth in {ranges} HU, eroded by 2 pixels; "
            "lung in chests alone",
            "",
            markdown_table(["", *head], body),
        ]

    def detectability(self, folder: str) -> list[str]:
        rows = self.of("rods")
        if not rows:
            return []
        one = rows[0]
        lines = [
            "",
            "## Low-contrast detectability",
            "",
            "Water disc of 200 mm with rods (diameter/contrast of the MITA phantom: 3 mm/14, 5/7, 7/5, 10/3 HU). "
            f"Channelized Hotelling observer, {one['channels']}, on {one['mask']}: {one['n']} regions with the rod, "
            f"{one['n_background']} at the same places without, each of {one['n'] // 2} noise realisations of its own. "
            "The halves of the held-out area are realisations. Area under the ROC curve (0.5: chance) with its "
            f"{one['confidence']:.0%} interval; below it the held-out area less that of "
            f"{self.title(BASELINE)} on the same noise. No window, no clipping.",
        ]
        rods = list(dict.fromkeys(row["rod"] for row in rows))
        for dose in self.doses("rods"):
            body = []
            for name in self.measured("rods"):
                by_rod = {r["rod"]: r for r in self.of("rods", dose=dose, method=name)}
                cells = [f"{by_rod[r]['auc']:.3f} ({by_rod[r]['low']:.3f} to {by_rod[r]['high']:.3f})" for r in rods]
                body.append([self.title(name), *cells])
                if name != BASELINE and all(by_rod[r].get("gain") is not None for r in rods):
                    gains = [
                        f"{by_rod[r]['gain']:+.3f} ({by_rod[r]['gain_low']:+.3f} to {by_rod[r]['gain_high']:+.3f})"
                        for r in rods
                    ]
                    body.append(["... less FBP, held out", *gains])
            lines += ["", f"**{dose:.0%} dose**", "", markdown_table(["AUC", *rods], body)]
        return [*lines, "", f"![AUC of every rod]({folder}tasks_rods.png)"]

    def transfer(self) -> list[str]:
        rows = self.of("inserts")
        if not rows:
            return []
        inserts = list(dict.fromkeys(row["insert"] for row in rows))
        base = {r["insert"]: r for r in self.of("inserts", method=BASELINE)}
        lines = [
            "",
            "## Sharpness",
            "",
            f"Task transfer of discs of 20 mm in water at {TRANSFER_DOSE:.0%} dose, mean image of {rows[0]['n']} noise "
            "realisations; ring of 2.5 to 17.5 mm around each disc's centre, no window. Frequency where the transfer "
            "falls to 50 % and 10 %, 1/mm (a dash: it does not); in brackets as a share of that of "
            f"{self.title(BASELINE)}.",
        ]
        for level in ("ttf50", "ttf10"):
            body = []
            for name in self.measured("inserts"):
                by_insert = {r["insert"]: r for r in self.of("inserts", method=name)}
                body.append(
                    [self.title(name), *(_share(by_insert[i][level], base.get(i, {}).get(level)) for i in inserts)]
                )
            lines += ["", markdown_table([level.upper(), *inserts], body)]
        return lines

    def contrast(self) -> list[str]:
        """Contrast-to-noise ratio of the same discs."""
        rows = self.of("inserts")
        if not rows:
            return []
        one = rows[0]
        body = []
        for name in self.measured("inserts"):
            by_insert = {r["insert"]: r for r in self.of("inserts", method=name)}
            body.append([self.title(name), *map(_contrast, by_insert.values())])
        return [
            "",
            "## Contrast and noise",
            "",
            f"Contrast-to-noise ratio of the same discs in the same {one['n']} scans at {TRANSFER_DOSE:.0%} dose, no "
            f"window: mean within {DETAIL:g} radii of the centre ({one['detail_pixels']} pixels in all) less that "
            f"between {BACKGROUND[0]:g} and {BACKGROUND[1]:g} ({one['background_pixels']}), by the standard deviation "
            "of these; in brackets the one and the other, HU. A method that smooths has little noise here, whatever "
            "else it smooths away.",
            "",
            markdown_table(["CNR", *dict.fromkeys(row["insert"] for row in rows)], body),
        ]

    def noise(self, folder: str) -> list[str]:
        rows = self.of("noise")
        if not rows:
            return []
        lines = [
            "",
            "## Noise texture",
            "",
            f"Noise power spectrum in the middle of the disc of 200 mm: {rows[0]['mask']}, {rows[0]['n']} realisations "
            "less their mean, no window.",
        ]
        for dose in self.doses("noise"):
            body = []
            for name in self.measured("noise"):
                (row,) = self.of("noise", dose=dose, method=name)
                cells = f"{row['variance'] ** 0.5:.1f}", f"{row['peak']:.3f}", f"{row['mean_frequency']:.3f}"
                body.append([self.title(name), *cells])
            head = [f"{dose:.0%} dose", "noise, HU", "peak, 1/mm", "mean frequency, 1/mm"]
            lines += ["", markdown_table(head, body)]
        return [*lines, "", f"![Radial noise power spectra]({folder}tasks_noise.png)"]

    def plot_rods(self, path: Path) -> None:
        """AUC with its interval, a panel a dose."""
        rows = self.of("rods")
        rods, doses = list(dict.fromkeys(row["rod"] for row in rows)), self.doses("rods")
        figure = empty_figure(5 * max(2, len(doses)), 4.5)
        for axis, dose in zip(figure.subplots(1, len(doses), sharey=True, squeeze=False)[0], doses):
            names = self.measured("rods")
            for k, name in enumerate(names):
                by_rod = {r["rod"]: r for r in self.of("rods", dose=dose, method=name)}
                auc = [by_rod[r]["auc"] for r in rods]
                error = [
                    [by_rod[r]["auc"] - by_rod[r]["low"] for r in rods],
                    [by_rod[r]["high"] - by_rod[r]["auc"] for r in rods],
                ]
                places = [i + (k - (len(names) - 1) / 2) * 0.8 / len(names) for i in range(len(rods))]
                axis.errorbar(places, auc, error, fmt="o", markersize=4, label=self.title(name))
            axis.set_xticks(range(len(rods)), rods)
            axis.set_title(f"{dose:.0%} dose", fontsize="medium")
            axis.grid(alpha=0.3, axis="y")
        figure.axes[0].set_ylabel("AUC, channelized Hotelling observer")
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small"
        )
        save_figure(figure, path)

    def plot_noise(self, path: Path) -> None:
        """Radial noise power, a panel a dose."""
        doses = self.doses("noise")
        figure = empty_figure(5 * max(2, len(doses)), 4.5)
        for axis, dose in zip(figure.subplots(1, len(doses), squeeze=False)[0], doses):
            for name in self.measured("noise"):
                (row,) = self.of("noise", dose=dose, method=name)
                axis.semilogy(row["frequency"][1:], row["radial"][1:], label=self.title(name))
            axis.set(xlabel="frequency, 1/mm", title=f"{dose:.0%} dose")
            axis.grid(alpha=0.3)
        figure.axes[0].set_ylabel("noise power, HU² mm²")
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small"
        )
        save_figure(figure, path)

    def summary(self) -> dict[str, Any]:
        """All parts, ready for JSON."""
        return {part: [plain(row) for row in self.of(part)] for part in ("anatomy", "rods", "inserts", "noise")}


def _has(row: Row, tissue: str) -> bool:
    """What little an abdomen has between air and soft tissue is edges of gas, not lung."""
    return tissue != "lung" or "chest" in row["phantom"]


def _share(value: float | None, base: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ({value / base:.0%})" if base else "")


def _contrast(row: Row) -> str:
    ratio = "-" if row["cnr"] is None else f"{row['cnr']:.1f}"
    return f"{ratio} ({row['contrast']:.1f} / {row['background_noise']:.1f})"


def empty_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    with replace_when_complete(path, overwrite=True) as unfinished:
        figure.savefig(unfinished, format="png")
