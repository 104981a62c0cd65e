"""Send images to the service of serve.py and measure how fast it answers.

    python load_test.py http://127.0.0.1:8000/predict images --requests 200

Images of the folder are sent in turn, over ``--clients`` connections, until
``--requests`` are answered or ``--seconds`` are over. Only a service on this
machine is measured: others share a network with somebody. The exit status is
0 if all answers were verdicts, 1 if some were not, and 2 if none was asked.
"""

from __future__ import annotations

import argparse
import http.client
import ipaddress
import itertools
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

MOST_REQUESTS, MOST_CLIENTS, MOST_SECONDS = 100_000, 64, 600
SECONDS_OF_SILENCE = 60.0  # of the service, for which an answer is awaited


@dataclass
class Answers:
    """What came back: the seconds of each verdict, and other outcomes."""

    seconds: list[float] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def main(arguments: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(arguments)
    try:
        host, port, path = on_this_machine(args.url)
        files = sorted(file for file in args.images.iterdir())
        bodies = [file.read_bytes() for file in files if file.is_file()]
        if not bodies:
            raise ValueError(f"{args.images} has no file")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    turns = itertools.islice(itertools.cycle(bodies), args.requests)
    started = time.perf_counter()
    answers = asked(
        turns, host, port, path, args.clients, started + args.seconds
    )
    report(answers, time.perf_counter() - started)
    if not answers.seconds and not answers.others:
        return 2
    return 1 if answers.others else 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the service.")
    parser.add_argument("url", help="such as http://127.0.0.1:8000/predict")
    parser.add_argument("images", type=Path, help="folder with image files")
    for name, default, most in (
        ("requests", 200, MOST_REQUESTS),
        ("clients", 4, MOST_CLIENTS),
        ("seconds", 60, MOST_SECONDS),
    ):
        parser.add_argument(
            f"--{name}",
            type=partial(whole, most=most),
            default=default,
            metavar="N",
            help=f"1 to {most} (default: {default})",
        )
    return parser


def whole(text: str, most: int) -> int:
    number = int(text)
    if not 1 <= number <= most:
        raise argparse.ArgumentTypeError(f"{text} is not in 1 to {most}")
    return number


def on_this_machine(url: str) -> tuple[str, int, str]:
    """Return host, port and path of a URL, which must be of this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if parts.scheme != "http" or not local:
        raise ValueError(f"{url} is not http://127.0.0.1:<port>/predict")
    return host, parts.port or 80, parts.path or "/"


def asked(
    bodies: Iterator[bytes],
    host: str,
    port: int,
    path: str,
    n_clients: int,
    end: float,
) -> Answers:
    """Return the answers to all bodies, from clients that work in turn."""
    answers, lock = Answers(), threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection(
            host, port, timeout=SECONDS_OF_SILENCE
        )
        while time.perf_counter() < end:
            with lock:
                body = next(bodies, None)
            if body is None:
                break
            started = time.perf_counter()
            try:
                connection.request("POST", path, body)
                answer = connection.getresponse()
                answer.read()
                outcome = f"{answer.status} {answer.reason}"
            except (OSError, http.client.HTTPException) as error:
                connection.close()  # the next request opens it again
                outcome = type(error).__name__
            seconds = time.perf_counter() - started
            with lock:
                if outcome == "200 OK":
                    answers.seconds.append(seconds)
                else:
                    answers.others[outcome] += 1
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(n_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def report(answers: Answers, seconds: float) -> None:
    """Print requests per second, and the latencies of verdicts."""
    n = len(answers.seconds)
    print(f"{n} verdicts in {seconds:.2f} s: {n / seconds:.1f} requests/s")
    for outcome, count in answers.others.most_common():
        print(f"{count} without a verdict: {outcome}")
    if n:
        ordered = sorted(answers.seconds)
        for percent in (50, 90, 99, 100):
            slowest = ordered[math.ceil(percent / 100 * n) - 1]
            print(f"{percent} % within {1000 * slowest:.1f} ms")


if __name__ == "__main__":
    sys.exit(main())
