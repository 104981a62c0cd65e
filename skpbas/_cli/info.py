"""The command ``skpbas info``: what a file of a detector holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from skpbas._cli import console
from skpbas._cli.console import UsageError

_EXAMPLES = """\
examples:
  skpbas info part.skpbas
  skpbas info part.onnx
  skpbas info part.skpbas --json - | jq .threshold

Nothing in the file is executed, and a damaged one is refused.
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the parser of this command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "info",
        help="show what a detector is",
        description="Show settings, versions, sizes and thresholds of a detector.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("detector", type=Path, metavar="DETECTOR", help="a file such as part.skpbas or part.onnx")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it as JSON; - is standard output")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its exit code."""
    path: Path = arguments.detector
    if not path.is_file():
        raise UsageError(f"{path} is no file: give a detector that skpbas fit or skpbas export wrote")
    if arguments.json is not None and str(arguments.json) != "-":
        console.check_output(arguments.json, "--json", inputs=[path])
    about = _of_onnx(path) if path.suffix.lower() == ".onnx" else _of_saved(path)
    about = {"file": str(path), "bytes": path.stat().st_size} | about
    if str(arguments.json) != "-":
        for line in _lines(about):
            console.echo(line)
    if arguments.json is not None:
        console.write_json(arguments.json, about)
    return console.DONE


def _of_saved(path: Path) -> dict[str, Any]:
    """Return what a file of ``save`` says, without building its networks, which may need other files."""
    from skpbas._training.container import read
    from skpbas._training.document import check_document
    from skpbas.errors import FileFormatError

    try:
        document, tensors = read(path)
        check_document(document)
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error
    network, reading, fitted = (document[name] for name in ("network", "reading", "fitted"))
    good = document["good_statistics"]
    return {
        "format": "skpbas",
        "backbone": network["backbone"],
        "weights": network["weights"],
        "n_images": fitted["n_samples_fit"],
        "n_left_out": len(tensors["training_outliers"]),
        "image_heights": good["heights"],
        "image_widths": good["widths"],
        "input_shape": network["input_shape"],
        "map_shape": reading["view_shape"],
        "resize": reading["resize"],
        "threshold": fitted["offset"],
        "map_threshold": fitted["map_threshold"],
        "n_exemplars": sum(len(value) for name, value in tensors.items() if name.endswith("coreset.exemplars")),
        "versions": document["versions"],
        "settings": document["parameters"],
    }


def _of_onnx(path: Path) -> dict[str, Any]:
    from skpbas.runtime import OnnxDetector

    metadata = OnnxDetector(path).metadata_
    tiles = metadata.get("tiles")
    return {
        "format": "onnx",
        "backbone": metadata["settings"]["backbone"],
        "n_images": len(metadata["normal_scores"]),
        "input_shape": tiles["shape"] if tiles else metadata["map_shape"],
        "map_shape": metadata["map_shape"],
        "resize": metadata["resize"],
        "dtype": metadata["dtype"],
        "threshold": metadata["offset"],
        "map_threshold": metadata["map_threshold"],
        "versions": metadata["versions"],
        "settings": metadata["settings"],
    }


def _lines(about: dict[str, Any]) -> list[str]:
    kind = "an exported detector (ONNX)" if about["format"] == "onnx" else "a detector"
    weights = f", weights: {about['weights']}" if "weights" in about else ""
    left_out = f"; {about['n_left_out']} left out" if about.get("n_left_out") else ""
    rows = [
        ("backbone", f"{about['backbone']}{weights}"),
        ("images learned", f"{about['n_images']}{left_out}"),
        *([("  of", _range(about))] if "image_heights" in about else []),
        ("network's input", f"{_by(about['input_shape'])} pixels"),
        ("anomaly maps", f"{_by(about['map_shape'])} pixels; resize: {about['resize']}"),
        ("threshold", f"{about['threshold']:.6g} on score_samples, {about['map_threshold']:.6g} on anomaly maps"),
        *([("exemplars", str(about["n_exemplars"]))] if about.get("n_exemplars") else []),
        ("versions", ", ".join(f"{name} {version}" for name, version in about["versions"].items())),
    ]
    settings = [(name, _plain(value)) for name, value in sorted(about["settings"].items())]
    return [
        f"{about['file']}: {kind}, {about['bytes'] / 1e6:.1f} MB",
        *console.aligned(rows),
        "settings:",
        *console.aligned(settings),
    ]


def _by(shape: Any) -> str:
    return f"{shape[0]:.0f} x {shape[1]:.0f}"


def _range(about: dict[str, Any]) -> str:
    """Return the sizes of the images learned: smallest, median and largest heights and widths."""
    (low, middle, high), (narrow, usual, wide) = about["image_heights"], about["image_widths"]
    if low == high and narrow == wide:
        return f"{_by((middle, usual))} pixels (height x width)"
    return f"{_by((low, narrow))} to {_by((high, wide))} pixels (height x width), median {_by((middle, usual))}"


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
