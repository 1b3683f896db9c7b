"""Put the trained stages together into the one weight file that inference reads, and calibrate its fusion.

    python scripts/assemble_model.py --projection output/projection/projection.pt \
        --diffusion output/diffusion/diffusion.pt --dataset_dir DIR --output models/model.pt

The fusion's N25 and noise scale are measured on low-dose scans of the training patients (--exclude the others), at the
scanner and dose that configs/calibrate.json names, which does the same for weights that are together already. No clean
image is needed. What was measured is written to calibration.json beside the weights.
"""

from __future__ import annotations

import argparse
import sys
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT))

from monai.bundle import ConfigParser  # noqa: E402
from monai.data import Dataset  # noqa: E402

from bundle.inference import RestorerCalibration, load_weights  # noqa: E402
from bundle.io import find_scans  # noqa: E402


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--projection", required=True, help="weights of stage 1")
    parser.add_argument("--diffusion", required=True, help="weights of stage 3 (they hold the autoencoder)")
    parser.add_argument("--dataset_dir", required=True, help="CT images or measured sinograms to calibrate on")
    parser.add_argument("--exclude", nargs="*", default=[], help="patients (patterns) to leave out")
    parser.add_argument("--slices", type=int, default=4, help="slices of each scan to calibrate on")
    parser.add_argument("--config", default=str(ROOT / "configs" / "calibrate.json"))
    parser.add_argument("--output", required=True)
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()

    config = ConfigParser(ConfigParser.load_config_file(args.config))
    config["slices"] = args.slices
    network = config.get_parsed_content("restorer_def")
    load_weights(network.projection, args.projection)
    load_weights(network.refiner, args.diffusion)

    scans = [s for s in find_scans(args.dataset_dir) if not any(fnmatchcase(s["patient"], p) for p in args.exclude)]
    if not scans:
        parser.error(f"--exclude {args.exclude} leaves no scan of {args.dataset_dir}")
    dataset = Dataset(scans, config.get_parsed_content("preprocessing"))
    electronic_variance = config["electronic_variance"]
    calibration = RestorerCalibration(
        network, dataset, args.output, overwrite=args.overwrite, electronic_variance=electronic_variance
    )
    for name, values in calibration.run()["after"].items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in values.items()))
    size = Path(args.output).stat().st_size / 1e6
    print(f"{args.output}: {sum(p.numel() for p in network.parameters())} parameters, {size:.1f} MB")


if __name__ == "__main__":
    main()
