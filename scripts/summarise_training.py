"""Put the curves of the stages' TensorBoard logs into docs/training.md, between its markers.

    python scripts/summarise_training.py projection=output/projection autoencoder=output/autoencoder \
        diffusion=output/diffusion
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT))

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from bundle.evaluation import insert_between_markers  # noqa: E402


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", metavar="NAME=DIR", help="name of a stage and its output folder")
    parser.add_argument("--page", default=str(ROOT / "docs" / "training.md"))
    args = parser.parse_args()
    lines = [
        "| stage | steps | minutes | loss, first tenth | loss, last tenth | validation RMSE, HU (epoch) |",
        "|---|---|---|---|---|---|",
    ]
    for stage in args.stages:
        name, _, folder = stage.partition("=")
        curves = read_curves(Path(folder))
        loss, validation = curves["train_loss"], curves["rmse_hu"]
        tenth = max(1, len(loss) // 10)
        first, last = (fmean(event.value for event in part) for part in (loss[:tenth], loss[-tenth:]))
        minutes = (loss[-1].wall_time - loss[0].wall_time) / 60
        measured = ", ".join(f"{event.value:.1f} ({event.step})" for event in validation)
        lines.append(f"| {name} | {loss[-1].step} | {minutes:.0f} | {first:.3f} | {last:.3f} | {measured} |")
    text = "\n".join(lines)
    insert_between_markers(args.page, "training", text)
    print(text)


def read_curves(folder: Path) -> dict[str, list]:
    """Scalar events by tag; each handler of a run writes a file of its own."""
    curves: dict[str, list] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            curves[tag] = sorted([*curves.get(tag, []), *events.Scalars(tag)], key=lambda event: event.step)
    for tag in ("train_loss", "rmse_hu"):
        if tag not in curves:
            raise ValueError(f"{folder} has no curve {tag!r}, only {sorted(curves)}")
    return curves


if __name__ == "__main__":
    main()
