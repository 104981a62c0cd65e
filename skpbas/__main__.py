"""The command line: ``python -m skpbas`` and ``skpbas``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from skpbas import __version__
from skpbas._cli.demo import DEFAULT_NETWORK, GENERATED_EPOCHS, PICTURE_NAME, DemoOptions, run_demo
from skpbas.errors import SkpbasError


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="skpbas", description="Detect and localize anomalies in images, trained on normal images only."
    )
    parser.add_argument("--version", action="version", version=f"skpbas {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands")
    demo = commands.add_parser(
        "demo",
        help="fit a detector and draw its anomaly maps",
        description="Generate or load images, fit a detector, print five metrics and draw a picture.",
    )
    _add_demo_arguments(demo)
    return parser


def _add_demo_arguments(demo: argparse.ArgumentParser) -> None:
    default = DemoOptions()
    demo.add_argument("--version", action="version", version=f"skpbas {__version__}")
    demo.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="a category in MVTec AD's layout (train/good, test, ground_truth), or a folder of normal images "
        "together with --check (default: generate images)",
    )
    demo.add_argument(
        "--check",
        type=Path,
        nargs="+",
        default=(),
        metavar="IMAGE",
        help="images to score with a detector fitted to --data",
    )
    demo.add_argument(
        "--kind",
        default=default.kind,
        help="product to generate: fabric, brushed_metal, wood, hex_nut, screw or printed_board (default: %(default)s)",
    )
    demo.add_argument(
        "--backbone",
        metavar="NAME",
        help="embedded, resnet18, resnet50, resnet101, wide_resnet50_2 or timm:NAME "
        f"(default: {DEFAULT_NETWORK['backbone']}"
        + (", with random weights)" if DEFAULT_NETWORK["weights"] is None else ")"),
    )
    demo.add_argument(
        "--weights",
        metavar="WHICH",
        help="weights of --backbone: imagenet (downloaded once by torchvision or timm), the path of a state dict, "
        "or none for random weights (default: imagenet)",
    )
    demo.add_argument(
        "--image-size",
        type=int,
        default=default.image_size,
        metavar="PIXELS",
        help="side of the network's input (default: %(default)s)",
    )
    demo.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help=f"training epochs (default: {GENERATED_EPOCHS} for generated images, otherwise 'auto')",
    )
    demo.add_argument(
        "--device", default=default.device, help="auto, cpu, cuda, cuda:1, ... or mps (default: %(default)s)"
    )
    demo.add_argument(
        "--seed",
        type=int,
        default=default.seed,
        metavar="N",
        help="random seed for images and training (default: %(default)s)",
    )
    demo.add_argument(
        "--output",
        type=Path,
        default=default.output,
        metavar="DIR",
        help=f"folder for the picture, {PICTURE_NAME} (default: %(default)s)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str or None
        Arguments; None: ``sys.argv[1:]``.

    Returns
    -------
    int
        Exit code: 0, or 2 for a user error.
    """
    parser = make_parser()
    arguments = vars(parser.parse_args(argv))
    if arguments.pop("command") is None:
        parser.print_help()
        return 0
    try:
        run_demo(DemoOptions(**{**arguments, "check": tuple(arguments["check"])}))
    except (SkpbasError, ValueError) as error:
        print(f"skpbas demo: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
