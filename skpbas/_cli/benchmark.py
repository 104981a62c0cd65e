"""The command ``skpbas benchmark``: data sets and studies of the paper to tables beside its figures.

Heavy modules are imported inside functions, so that ``--help`` is fast.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from skpbas._cli import console

_TABLES = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "fig12", "fig13")
_OF_DATA_SET = {"mvtec": ("I", "II"), "visa": ("III",), "mpdd": ("IV",), "folder": ()}


_EXAMPLES = """\
examples:
  skpbas benchmark --dataset folder --root parts -o measured
  skpbas benchmark --dataset mvtec --root mvtec --preset paper -o paper
  skpbas benchmark --dataset mvtec --root mvtec --categories screw --table VI

Exit codes: 0 done, 2 wrong use, 3 some runs failed, which the files list.
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the parser of this command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "benchmark",
        help="measure on a data set, beside the paper's figures",
        description="Fit and measure on every category of a data set, and write tables beside the paper's figures: "
        "CSV, JSON, Markdown and one HTML page. The same command goes on where an interrupted one ended.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--dataset",
        required=True,
        choices=tuple(_OF_DATA_SET),
        help="layout of --root; folder: train/good, test/good, test/<defect>, and ground_truth if there are masks",
    )
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder that holds the categories")
    parser.add_argument(
        "--categories",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="categories (default: all of the data set that are there)",
    )
    parser.add_argument(
        "--table",
        nargs="+",
        action="extend",
        type=_table,
        choices=_TABLES,
        metavar="TABLE",
        help=f"tables and figures of the paper: {', '.join(_TABLES)} (default: those of the data set)",
    )
    parser.add_argument(
        "--preset",
        default="default",
        choices=("default", "thorough", "paper", "reference"),
        help="parameters of the detector: its defaults, or a set of skpbas.presets (default: %(default)s)",
    )
    parser.add_argument(
        "--backbone", metavar="NAME", help="embedded, resnet18, resnet50, resnet101, wide_resnet50_2 or timm:NAME"
    )
    parser.add_argument("--weights", metavar="WHICH", help="imagenet, the path of a state dict, or none (random)")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        metavar="NAME=VALUE",
        help="other parameters of the detector, such as image_size=320 alpha=0.5",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        action="extend",
        type=int,
        metavar="N",
        help="random seeds (default: 0; 0 to 4 for Table VIII)",
    )
    parser.add_argument(
        "--best-epoch",
        action="store_true",
        help="also show the epoch that is best on the test set, as published figures do: selected by test labels, for "
        "comparison only, and slow",
    )
    parser.add_argument(
        "--dilated-pro",
        action="store_true",
        help="also show the PRO of the authors' code, for comparison only",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... or mps (default: %(default)s)")
    parser.add_argument("--n-jobs", type=int, metavar="N", help="threads that decode images (default: 1)")
    parser.add_argument(
        "--memory",
        metavar="DIR",
        help="folder that keeps feature maps, which runs share; none: no such folder (default: features in --output)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("benchmark"),
        metavar="DIR",
        help="folder of the results (default: %(default)s)",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its exit code."""
    from skpbas._benchmark.outputs import write_outputs
    from skpbas._benchmark.runs import FOLDER, execute

    plan = _plan(arguments)
    console.made_folder(arguments.output / FOLDER, "--output")
    if (memory := plan.runtime["memory"]) is not None:
        console.made_folder(Path(memory), "--memory")
    outcome = execute(
        plan,
        arguments.output,
        lambda line: console.note(console.printable(line)),
        lambda outcome: write_outputs(plan, outcome, arguments.output),
    )
    written = write_outputs(plan, outcome, arguments.output)
    for path in written:
        console.echo(str(path))
    if outcome.failures:
        failed = sorted({one.category for one in outcome.failures})
        console.echo(f"{len(outcome.failures)} failed, in {', '.join(failed)}; the same command tries them again.")
    return console.UNREADABLE if outcome.failures else console.DONE


def _plan(arguments: argparse.Namespace) -> Any:
    from skpbas._benchmark.measuring import Protocol
    from skpbas._benchmark.runs import Plan
    from skpbas._benchmark.sources import DATA_SETS
    from skpbas._benchmark.studies import STUDIES, base_parameters

    data_set = DATA_SETS[arguments.dataset]
    if data_set.name == "folder":
        data_set = dataclasses.replace(data_set, title=arguments.root.resolve().name)
    names = dict.fromkeys(arguments.table or _OF_DATA_SET[arguments.dataset])
    studies = tuple(STUDIES[name] for name in names)
    for study in studies:
        if study.data_set not in (None, data_set.name):
            raise ValueError(f"--table {study.name} is about {study.data_set}: use --dataset {study.data_set}")
    if not arguments.root.is_dir():
        raise ValueError(f"--root {arguments.root}: no such folder")
    categories = map(os.path.normpath, arguments.categories or data_set.categories(arguments.root))
    memory = arguments.memory or str(arguments.output / "features")
    return Plan(
        data_set,
        arguments.root,
        tuple(dict.fromkeys(categories)),
        arguments.preset,
        base_parameters(arguments.preset, _changes(arguments)),
        studies,
        tuple(dict.fromkeys(arguments.seeds)) if arguments.seeds else None,
        Protocol(arguments.best_epoch, arguments.dilated_pro),
        {
            "device": arguments.device,
            "n_jobs": arguments.n_jobs,
            "memory": None if memory.lower() == "none" else memory,
        },
    )


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for text in arguments.set or ():
        name, separator, value = text.partition("=")
        if not separator:
            raise ValueError(f"--set {text}: expected NAME=VALUE, such as image_size=320")
        if name in changes or (name in ("backbone", "weights") and getattr(arguments, name) is not None):
            raise ValueError(f"--set {text}: {name} is given twice")
        try:
            changes[name] = ast.literal_eval(value)
            json.dumps(changes[name])
        except (ValueError, SyntaxError):  # a word, such as kmeans
            changes[name] = value
        except (TypeError, RecursionError, MemoryError) as error:
            raise ValueError(f"--set {text}: expected a number, a word, or a list of these ({error})") from error
    if arguments.backbone is not None:
        changes["backbone"] = arguments.backbone
    if arguments.weights is not None:
        changes["weights"] = None if arguments.weights.lower() == "none" else arguments.weights
    return changes


def _table(text: str) -> str:
    """Return the name of a table, however it is written: "v", "V", "Fig12"."""
    return text.lower() if text.lower().startswith("fig") else text.upper()
