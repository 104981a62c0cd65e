"""Kill a benchmark at random times, resume it each time, and compare its files with those of one that was let alone.

    python tools/kill_benchmark.py --n 5 -- --dataset folder --root parts --backbone embedded --table V

The arguments after ``--`` are those of ``skpbas benchmark``, without ``--output``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FILES = ["results.csv", "tables.csv", "results.md", "results.json", "results.html"]


def comparable(path: Path) -> str:
    """Return the text of a file of results, the page without its section of times."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r'<section id="times">.*?</section>', "", text, flags=re.DOTALL)


def main() -> None:
    """Parse the command line, run one benchmark whole and one with interruptions, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5, help="how often to kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("arguments", nargs="+", help="of skpbas benchmark")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as name:
        whole, killed = Path(name) / "whole", Path(name) / "killed"
        command = [sys.executable, "-m", "skpbas", "benchmark", *options.arguments, "-o"]
        start = time.monotonic()
        subprocess.run([*command, str(whole)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        duration = time.monotonic() - start
        kept, n_killed = [], 0
        for _ in range(options.n):
            process = subprocess.Popen([*command, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                process.wait(timeout=float(rng.uniform(0, 1.5 * duration / options.n)))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                n_killed += 1
            kept.append(len(list(killed.glob("runs/*.json"))))
        subprocess.run([*command, str(killed)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        different = [file for file in FILES if comparable(whole / file) != comparable(killed / file)]
        left = [str(path.relative_to(killed)) for path in killed.rglob("*") if path.name.startswith(".")]
    print(
        f"an uninterrupted benchmark took {duration:.0f} s; {n_killed} were killed, then so many runs were done: {kept}"
    )
    print(f"files that differ: {', '.join(different) or 'none'}; hidden files left: {', '.join(left) or 'none'}")
    if different:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
