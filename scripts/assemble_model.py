"""Put the trained stages together into the one weight file that inference reads, and calibrate its fusion.

    python scripts/assemble_model.py --projection output/projection/projection.pt \
        --diffusion output/diffusion/diffusion.pt --dataset_dir DIR --output models/model.pt

The fusion's N25 and noise scale are measured on low-dose scans of the training patients (--exclude the others), at the
scanner and dose that configs/inference.json names. A part of the photons is kept apart for the noise scale: no clean
image is needed.
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

from bundle.inference import LowDoseRestorer, load_weights  # noqa: E402
from bundle.io import find_scans, replace_when_complete  # noqa: E402
from bundle.physics import (  # noqa: E402
    FanBeamGeometry,
    FilteredBackprojection,
    attenuation_to_hu,
    thin_line_integrals,
)
from bundle.transforms import ReconstructPaird, noise_seed  # noqa: E402


def calibration_pair(
    item: dict, network: LowDoseRestorer, config: ConfigParser, fraction: float = 0.8
) -> tuple[torch.Tensor, ...]:
    """Low-dose image, its prior, and the image of the photons that were kept apart, ``(S, 1, H, W)`` in HU."""
    generator = torch.Generator().manual_seed(noise_seed(0, item["name"], 0, fraction))
    kept, rest = thin_line_integrals(
        item["sinogram"], config["photons"], fraction, dose=config["dose"], generator=generator
    )
    item = ReconstructPaird(network.projection, network.window)({**item, "sinogram": kept})
    geometry = FanBeamGeometry.from_json(item["geometry"])
    independent = FilteredBackprojection(geometry, network.window)(rest.transpose(0, 1))
    # (1, S, H, W) -> (S, 1, H, W)
    return item["fbp"].transpose(0, 1), item["prior"].transpose(0, 1), attenuation_to_hu(independent)


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
    pairs = [calibration_pair(simulate(scan), network, config) for scan in tqdm(scans, desc="calibrate", unit="scan")]
    low_dose, priors, independent = zip(*pairs)
    network.fusion.calibrate(low_dose, priors, independent)
    if network.output_fusion is not None:
        fused = [network.fusion(*pair) for pair in zip(low_dose, priors)]
        with torch.no_grad():
            refined = [torch.cat([network.refiner(part) for part in stack.split(1)]) for stack in fused]
        network.output_fusion.calibrate(low_dose, refined, independent, fused)
    print({name: round(value.item(), 3) for name, value in network.state_dict().items() if "fusion." in name})
    with replace_when_complete(args.output, overwrite=args.overwrite) as unfinished:
        torch.save(network.state_dict(), unfinished)
    size = Path(args.output).stat().st_size / 1e6
    print(f"{args.output}: {sum(p.numel() for p in network.parameters())} parameters, {size:.1f} MB")


if __name__ == "__main__":
    main()
