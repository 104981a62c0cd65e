"""The command line: ``python -m skpbas`` and ``skpbas``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from skpbas import __version__
from skpbas._cli import benchmark, demo, evaluate, exporting, fit, info, predict, report
from skpbas._cli.console import run_safely
from skpbas._cli.options import CommandParser

COMMANDS = (fit, predict, evaluate, report, exporting, info, benchmark, demo)
"""Modules, each with ``add_parser(commands)`` and ``run(arguments)``, which returns the exit code."""

_EXAMPLES = """\
examples:
  skpbas demo
  skpbas fit parts/good -o part.skpbas
  skpbas predict part.skpbas parts/today --csv today.csv --maps today-maps
  skpbas report part.skpbas parts/today -o today.html
  skpbas COMMAND --help
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="skpbas",
        description="Detect and localize anomalies in images, trained on normal images only.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"skpbas {__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND", parser_class=CommandParser)
    for module in COMMANDS:
        module.add_parser(commands)
        of_command = list(commands.choices.values())[-1]
        of_command.set_defaults(run=module.run)
        of_command.add_argument("--version", action="version", version=version)
        of_command.add_argument(
            "-v", "--verbose", dest="with_traceback", action="store_true", help="print the traceback of an error"
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str or None
        Arguments; None: ``sys.argv[1:]``.

    Returns
    -------
    int
        Exit code: 0 done, 1 anomalies found (only if asked for), 2 wrong use, 3 some images could not be read.
    """
    parser, arguments = make_parser(), argparse.Namespace()

    def parse() -> int:
        parser.parse_args(argv, arguments)
        return 0

    given = sys.argv[1:] if argv is None else argv
    command = given[0] if given and not given[0].startswith("-") else ""
    if code := run_safely(command, parse, with_traceback="-v" in given):
        return code
    if arguments.command is None:
        parser.print_help()
        return 0
    run = partial(arguments.run, arguments)
    return run_safely(arguments.command, run, with_traceback=arguments.with_traceback, given=vars(arguments))


if __name__ == "__main__":
    sys.exit(main())
