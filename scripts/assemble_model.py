"""Put the trained stages together into the one weight file that inference reads, and calibrate its fusion.

    python scripts/assemble_model.py --projection output/projection/projection.pt \
        --diffusion output/diffusion/diffusion.pt --dataset_dir DIR --output models/model.pt

The fusion's N25 is measured on low-dose scans of the training patients (--exclude the others), at the dose, scanner
and windows that configs/inference.json names.
"""

from __future__ import annotations

import argparse
import sys
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT))

import torch  # noqa: E402
from monai.bundle import ConfigParser  # noqa: E402
from tqdm import tqdm  # noqa: E402

from bundle.inference import load_weights  # noqa: E402
from bundle.io import find_scans, replace_when_complete  # noqa: E402
from bundle.transforms import ReconstructPaird  # noqa: E402


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--projection", required=True, help="weights of stage 1")
    parser.add_argument("--diffusion", required=True, help="weights of stage 3 (they hold the autoencoder)")
    parser.add_argument("--dataset_dir", required=True, help="CT images or measured sinograms to calibrate on")
    parser.add_argument("--exclude", nargs="*", default=[], help="patients (patterns) to leave out")
    parser.add_argument("--slices", type=int, default=4, help="slices of each scan to calibrate on")
    parser.add_argument("--config", default=str(ROOT / "configs" / "inference.json"))
    parser.add_argument("--output", required=True)
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()

    config = ConfigParser(ConfigParser.load_config_file(args.config))
    config["slices"] = args.slices
    network = config.get_parsed_content("restorer_def")
    load_weights(network.projection, args.projection)
    load_weights(network.refiner, args.diffusion)
    network.eval()

    scans = [s for s in find_scans(args.dataset_dir) if not any(fnmatchcase(s["patient"], p) for p in args.exclude)]
    if not scans:
        parser.error(f"--exclude {args.exclude} leaves no scan of {args.dataset_dir}")
    simulate = config.get_parsed_content("preprocessing")
    reconstruct = ReconstructPaird(network.projection, network.window)
    pairs = [reconstruct(simulate(scan)) for scan in tqdm(scans, desc="calibrate", unit="scan")]
    # (1, S, H, W) -> (S, 1, H, W)
    network.fusion.calibrate(*([pair[key].transpose(0, 1) for pair in pairs] for key in ("fbp", "prior")))
    print(f"N25 {network.fusion.noise_25:.2f} HU, g25 {network.fusion.gradient_25:.2f} HU/pixel")
    with replace_when_complete(args.output, overwrite=args.overwrite) as unfinished:
        torch.save(network.state_dict(), unfinished)
    size = Path(args.output).stat().st_size / 1e6
    print(f"{args.output}: {sum(p.numel() for p in network.parameters())} parameters, {size:.1f} MB")


if __name__ == "__main__":
    main()
