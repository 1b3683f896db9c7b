"""Measure every stage and its baselines on patients that training never saw, at every dose.

    python scripts/measure_quality.py --dataset_dir DIR --slices 8 --output docs/results

Writes quality.csv (a row a slice stack, dose and method), quality.json and quality.md, and puts the table into
README.md. Scanner, doses, windows and weights are those of configs/evaluate.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT))

import torch  # noqa: E402
from monai.bundle import ConfigParser  # noqa: E402
from tqdm import tqdm  # noqa: E402

from bundle.evaluation import mean_and_std, score_slices, write_csv, write_json  # noqa: E402
from bundle.inference import load_weights  # noqa: E402
from bundle.physics import FanBeamGeometry, FilteredBackprojection, attenuation_to_hu  # noqa: E402

METHODS = {
    "fbp_ram-lak": "FBP, Ram-Lak",
    "fbp_hann": "FBP, Hann",
    "neighbor2neighbor": "Neighbor2Neighbor (stage 1 with e = 0), FBP",
    "prior": "prior (stage 1, FBP)",
    "fused": "fused",
    "restored": "restored",
}
MARKERS = "<!-- results -->", "<!-- /results -->"


@torch.no_grad()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True, help="CT images of patients that training never saw")
    parser.add_argument("--slices", type=int, default=8, help="evenly spaced slices of each scan")
    parser.add_argument("--weights", default=str(ROOT / "models" / "model.pt"))
    parser.add_argument("--neighbor2neighbor", help="stage 1 weights trained with --loss#tau '$None'")
    parser.add_argument("--output", default=str(ROOT / "docs" / "results"))
    parser.add_argument("--readme", default=str(ROOT / "README.md"))
    args = parser.parse_args()

    config = ConfigParser(ConfigParser.load_config_file(str(ROOT / "configs" / "evaluate.json")))
    config.update({"dataset_dir": args.dataset_dir, "slices": args.slices, "weights": args.weights})
    network = config.get_parsed_content("network").eval()
    dataset, windows = config.get_parsed_content("dataset"), config.get_parsed_content("windows")
    twin = None
    if args.neighbor2neighbor:
        config.ref_resolver.reset()
        twin = load_weights(config.get_parsed_content("projection_def"), args.neighbor2neighbor).eval()

    rows = []
    for item in tqdm(dataset, desc="measure", unit="case"):
        geometry = FanBeamGeometry.from_json(item["geometry"])
        stacks: dict[str, list[torch.Tensor]] = {}
        for sinogram in item["sinogram"][0, :, None].split(2):
            result = network.restore(sinogram, geometry)._asdict()
            result.pop("seconds")
            result["fbp_ram-lak"] = result.pop("fbp")
            hann = FilteredBackprojection(geometry, "hann")
            result["fbp_hann"] = attenuation_to_hu(hann(sinogram))
            if twin is not None:
                ram_lak = FilteredBackprojection(geometry)
                result["neighbor2neighbor"] = attenuation_to_hu(ram_lak(twin(sinogram)))
            for name, image in result.items():
                stacks.setdefault(name, []).append(image[:, 0])
        for name in (m for m in METHODS if m in stacks):
            scores = mean_and_std(score_slices(torch.cat(stacks[name]), item["reference"][0], windows))["mean"]
            head = {"patient": item["patient"], "dose": item["dose"], "method": name, "n": len(item["reference"][0])}
            rows.append({**head, **scores})

    output = Path(args.output)
    text = markdown(rows, windows)
    write_csv(output / "quality.csv", rows, overwrite=True)
    write_json(output / "quality.json", {"windows": windows, "rows": rows}, overwrite=True)
    (output / "quality.md").write_text(text, encoding="utf-8")
    put_into(Path(args.readme), text)
    print(text)


def markdown(rows: list[dict], windows: dict) -> str:
    """Tables by metric: methods down, doses across, mean (and spread) over patients."""
    doses = sorted({row["dose"] for row in rows})
    patients = sorted({row["patient"] for row in rows})
    slices = {row["patient"]: row["n"] for row in rows}
    named = {"rmse_hu": "RMSE, HU (whole slice, not clipped)", "hu_bias": "HU bias in soft tissue"}
    for window, (low, high) in windows.items():
        if window in ("abdomen", "chest"):
            named[f"ssim_{window}"] = f"SSIM, {window} [{low:g}, {high:g}] HU, range its width"
    stacks = ", ".join(f"{patient}: {slices[patient]} slices" for patient in patients)
    lines = [
        f"{len(patients)} patients that training never saw ({stacks});",
        "reference: Ram-Lak FBP of the noise-free line integrals; mean over patients, in brackets lowest and highest.",
    ]
    for metric, title in named.items():
        lines += ["", f"**{title}**", "", "| | " + " | ".join(f"{d:.0%}" for d in doses) + " |"]
        lines.append("|---|" + "---|" * len(doses))
        digits = 3 if metric.startswith("ssim") else 1 if metric == "rmse_hu" else 2
        for method, label in METHODS.items():
            cells = []
            for dose in doses:
                found = [r[metric] for r in rows if r["method"] == method and r["dose"] == dose]
                found = [value for value in found if value is not None]
                spread = f" ({min(found):.{digits}f} to {max(found):.{digits}f})" if len(found) > 1 else ""
                cells.append(f"{fmean(found):.{digits}f}{spread}" if found else "")
            if any(cells):
                lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def put_into(readme: Path, text: str) -> None:
    """Replace what stands between the markers."""
    page = readme.read_text(encoding="utf-8")
    before, found, rest = page.partition(MARKERS[0])
    _, closed, after = rest.partition(MARKERS[1])
    if not (found and closed):
        raise ValueError(f"{readme} must hold the markers {MARKERS[0]} and {MARKERS[1]}")
    readme.write_text(f"{before}{MARKERS[0]}\n{text}{MARKERS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
