"""The command ``skpbas export``: a detector as one ONNX file."""

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

Needs the extra onnx: pip install "skpbas[onnx]". The machine that inspects
parts needs only ONNX Runtime or OpenVINO, numpy and Pillow.
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the parser of this command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "export",
        help="write a detector as ONNX, which runs without torch",
        description="Write a detector as one ONNX file, from images to scores and anomaly maps.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("detector", type=Path, metavar="DETECTOR", help="a file that skpbas fit wrote")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="file to write, such as part.onnx"
    )
    parser.add_argument(
        "--opset", type=int, metavar="N", help="version of the ONNX operators (default: the exporter's choice)"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its exit code."""
    console.check_output(arguments.output, "--output")
    if arguments.output.suffix.lower() != ".onnx":
        raise UsageError(f"--output {arguments.output}: give a name that ends in .onnx, which skpbas predict opens")
    if not arguments.detector.is_file():
        raise UsageError(f"{arguments.detector} is no file: give a detector that skpbas fit wrote")
    import skpbas
    from skpbas.export import to_onnx

    to_onnx(skpbas.load(arguments.detector, device="cpu"), arguments.output, opset=arguments.opset)
    console.echo(f"wrote {arguments.output} ({arguments.output.stat().st_size / 1e6:.1f} MB)")
    return console.DONE
