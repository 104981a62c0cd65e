"""Throughput and memory of ``skpbas.distributed.score_images``, and of one process without Dask for comparison.

    python benchmarks/cluster.py                          # the embedded backbone, 1 and 2 workers
    python benchmarks/cluster.py --workers 1 2 4 8 --images 1000 10000

Images are generated once and written to PNG files, whose paths are passed repeatedly. Every process computes with one
thread. Starting the cluster is not timed; sending the detector and loading it on the workers is. Memory is the peak of
a process: for the largest worker since its start, for the client beyond what it held before.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import joblib
import torch
from distributed import Client, LocalCluster
from measure import PeakMemory, in_child, report
from scaling import write_images

from skpbas import PBASDetector
from skpbas.distributed import score_images

N_WARMUP = 8  # images scored before the timing starts


def repeated(paths: list[Path], n: int) -> Iterator[Path]:
    """Yield n paths by repeating the given ones."""
    return islice(cycle(paths), n)


def peak_bytes() -> int:
    """Return the peak memory of this process; except on Linux, it includes what its parent held when it started."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_one_process(saved: Path, paths: list[Path], n: int) -> tuple[float, float, int]:
    """Return seconds, and bytes of client and worker, of one process without Dask."""
    torch.set_num_threads(1)
    detector = joblib.load(saved)
    detector.score_samples(paths[:N_WARMUP])
    start = time.perf_counter()
    detector.score_samples(list(repeated(paths, n)))
    return time.perf_counter() - start, 0.0, peak_bytes()


def on_cluster(
    saved: Path, paths: list[Path], n: int, n_workers: int, batch_size: int, output: Path | None
) -> tuple[float, float, int]:
    """Return seconds, and bytes of client and worker, on a new cluster of ``n_workers`` processes."""
    detector = joblib.load(saved)
    cluster = LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address="127.0.0.1:0")
    with cluster, Client(cluster) as client:
        deque(score_images(detector, paths[:N_WARMUP], client=client, batch_size=1), maxlen=0)
        with PeakMemory() as peak:
            start = time.perf_counter()
            images = repeated(paths, n)
            if output is None:
                done = sum(1 for _ in score_images(detector, images, client=client, batch_size=batch_size))
            else:
                target = output / f"{n_workers}-{n}"
                summary = score_images(detector, images, client=client, batch_size=batch_size, output=target)
                done = summary.n_images - summary.n_failed
            seconds = time.perf_counter() - start
        assert done == n
        return seconds, peak.bytes, max(client.run(peak_bytes).values())


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--weights", default="none", help='"imagenet", a state-dict file, or "none"')
    parser.add_argument("--image-side", type=int, default=512, help="side of the image files in pixels")
    parser.add_argument("--image-size", type=int, default=256, help="side of the network's input in pixels")
    parser.add_argument("--images", nargs="+", type=int, default=[500, 2000], help="numbers of images")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2], help="numbers of workers")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    weights = None if options.weights == "none" else options.weights
    rows: list[dict[str, Any]] = []

    def add(setup: str, n: int, n_processes: int, measured: tuple[float, float, int]) -> None:
        seconds, client, worker = measured
        baseline = next((row["images/s"] for row in rows if row["images"] == n), f"{n / seconds:.1f}")
        rows.append(
            {
                "setup": setup,
                "images": n,
                "seconds": f"{seconds:.1f}",
                "images/s": f"{n / seconds:.1f}",
                "images/s per process": f"{n / seconds / n_processes:.1f}",
                "speedup over one process": f"{n / seconds / float(baseline):.2f}",
                "added client MiB": f"{client / 2**20:.0f}",
                "largest process MiB": f"{worker / 2**20:.0f}",
            }
        )
        print(rows[-1], flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths, saved = write_images(folder, options.image_side), folder / "detector.joblib"
        detector = PBASDetector(
            options.backbone, weights=weights, image_size=options.image_size, max_epochs=2, contamination=0.1,
            device="cpu", random_state=0,
        )  # fmt: skip
        joblib.dump(detector.fit(paths[:16]), saved)
        print(f"the detector is {saved.stat().st_size / 2**20:.1f} MiB")
        for n in options.images:
            add("one process, no Dask", n, 1, in_child(in_one_process, saved, paths, n))
            for n_workers in options.workers:
                for output in (None, folder / "parquet"):
                    setup = f"{n_workers} worker{'s' * (n_workers > 1)}, {'stream' if output is None else 'Parquet'}"
                    measured = on_cluster(saved, paths, n, n_workers, options.batch_size, output)
                    add(setup, n, n_workers, measured)
    report(f"cluster-{options.backbone}", rows, options.output)


if __name__ == "__main__":
    main()
