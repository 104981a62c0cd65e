"""The command ``skpbas export``: a detector as one ONNX file, or as a program of torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from skpbas._cli import console
from skpbas._cli.console import UsageError

_EXAMPLES = """\
examples:
  skpbas export part.skpbas -o part.onnx
  skpbas predict part.onnx parts/today
  skpbas export part.skpbas -o part.pt2

ONNX needs the extra onnx: pip install "skpbas[onnx]". The machine that inspects
parts needs only ONNX Runtime or OpenVINO, numpy and Pillow.
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the parser of this command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "export",
        help="write a detector as ONNX, which runs without torch",
        description="Write a detector as one file, from images to scores and anomaly maps: ONNX, or a program of "
        "torch.export if its name ends in .pt2.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("detector", type=Path, metavar="DETECTOR", help="a file that skpbas fit wrote")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="file to write, part.onnx or part.pt2"
    )
    parser.add_argument(
        "--opset", type=int, metavar="N", help="version of the ONNX operators (default: the exporter's choice)"
    )
    parser.add_argument(
        "--unsure-rate",
        type=float,
        metavar="RATE",
        help="share of good images that are not called normal (default: 0.05)",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its exit code."""
    console.check_output(arguments.output, "--output", inputs=[arguments.detector], text=False)
    kind = arguments.output.suffix.lower()
    if kind not in (".onnx", ".pt2"):
        raise UsageError(
            f"--output {arguments.output}: give a name that ends in .onnx, which skpbas predict opens, or .pt2"
        )
    if kind == ".pt2" and arguments.opset is not None:
        raise UsageError(f"--opset {arguments.opset} is of ONNX: leave it out for {arguments.output}")
    if not arguments.detector.is_file():
        raise UsageError(f"{arguments.detector} is no file: give a detector that skpbas fit wrote")
    import skpbas
    from skpbas.export import to_onnx, to_torch

    detector = skpbas.load(arguments.detector, device="cpu")
    options = {} if arguments.unsure_rate is None else {"unsure_rate": arguments.unsure_rate}
    if kind == ".pt2":
        to_torch(detector, arguments.output, **options)
    else:
        to_onnx(detector, arguments.output, opset=arguments.opset, **options)
    console.echo(f"wrote {arguments.output} ({arguments.output.stat().st_size / 1e6:.1f} MB)")
    return console.DONE
