"""A conformal threshold by a held-out half and across folds: false alarms on unseen normal images, and misses.

    python benchmarks/conformal.py --data ../shared/data --category bottle commutator

For every category, seed and number, n normal images are drawn and a ``ConformalThreshold`` is fitted on them for each
``cv``. An image is flagged at a rate if its p-value is at most the rate, so one fit serves for all rates. Unseen normal
images are those of the test set and the training images that were not drawn. "allowed" is ``false_alarm_rate_``, empty
where so few held-out images allow no threshold; "proved" is ``false_alarm_bound_``.

Rows are written to a CSV as soon as they are there, and are not computed again. The table is printed at the end.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from categories import category_root
from measure import append_rows, read_rows, table

from skpbas import PBASDetector
from skpbas._decisions.conformal import cross_bound, largest_rank
from skpbas.calibration import ConformalThreshold
from skpbas.datasets import load_mvtec

KEY = ("category", "seed", "n", "cv", "image_size")


def rows_of(model: ConformalThreshold, normal: Any, anomalous: Any, rates: list[float]) -> list[dict[str, Any]]:
    """Return a row for every rate."""
    p_normal, p_anomalous = model.p_values(normal), model.p_values(anomalous)
    n = len(model.calibration_scores_)
    rows: list[dict[str, Any]] = []
    for rate in rates:
        rank = largest_rank(rate, n)
        allowed = proved = rank / (n + 1)
        if rank and model.cv is not None:
            proved = cross_bound([len(scores) for scores in model.fold_scores_], rank)
        row: dict[str, Any] = {
            "rate": rate,
            "allowed": round(allowed, 4) if rank else "",
            "proved": round(proved, 4) if rank else "",
        }
        row |= {"flagged_normal": int((p_normal <= rate).sum()), "unseen_normal": len(normal)}
        row |= {"missed_anomalous": int((p_anomalous > rate).sum()), "unseen_anomalous": len(anomalous)}
        rows.append(row)
    return rows


def run(options: argparse.Namespace) -> None:
    """Compute the rows that are missing."""
    done = {tuple(row[k] for k in KEY) for row in read_rows(options.output)}
    for name, seed, n, cv in product(options.category, options.seeds, options.sizes, [0, options.cv]):
        labels = {"category": name, "seed": seed, "n": n, "cv": cv, "image_size": options.image_size}
        if tuple(map(str, labels.values())) in done:
            continue
        root = category_root(options.data, name)
        train, test = (load_mvtec(root, name, split) for split in ("train", "test"))
        pool = np.random.default_rng(seed).permutation(train.images).tolist()
        normal = [image for image, label in zip(test.images, test.labels, strict=True) if label == 1]
        anomalous = [image for image, label in zip(test.images, test.labels, strict=True) if label == -1]
        detector = PBASDetector(
            "embedded",
            image_size=options.image_size,
            max_epochs=options.max_epochs or "auto",
            memory=options.memory,
            device="cpu",
            random_state=seed,
        )
        model = ConformalThreshold(detector, max_false_alarm_rate=max(options.rates), cv=cv or None, random_state=seed)
        start = time.perf_counter()
        model.fit(pool[:n])
        seconds = round(time.perf_counter() - start, 1)
        rows = rows_of(model, [*normal, *pool[n:]], anomalous, options.rates)
        append_rows(options.output, [{**labels, **row, "seconds": seconds} for row in rows])
        print(f"{labels}: {seconds} s", flush=True)


def summary(rows: list[dict[str, str]]) -> str:
    """Return the table: counts summed over seeds."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["category"], int(row["n"]), row["rate"], row["cv"]].append(row)
    lines = []
    for (name, n, rate, cv), of in sorted(groups.items()):
        alarms, unseen, misses, defects = (
            sum(int(row[key]) for row in of)
            for key in ("flagged_normal", "unseen_normal", "missed_anomalous", "unseen_anomalous")
        )
        line = {"category": name, "n": n, "rate": rate, "cv": cv if cv != "0" else "None", "seeds": len(of)}
        line |= {"allowed": of[0]["allowed"], "proved": of[0]["proved"]}
        line |= {"false alarms": f"{alarms} of {unseen} ({alarms / unseen:.1%})"}
        lines.append(line | {"misses": f"{misses} of {defects} ({misses / defects:.1%})"})
    return table(lines)


def main() -> None:
    """Parse the command line, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of categories in MVTec AD's layout")
    parser.add_argument("--category", nargs="+", required=True, help="categories under --data")
    parser.add_argument("--sizes", nargs="+", type=int, default=[31, 80], help="numbers of training images")
    parser.add_argument("--rates", nargs="+", type=float, default=[0.05, 0.1])
    parser.add_argument("--cv", type=int, default=5)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--max-epochs", type=int, default=0, help='0: "auto"')
    parser.add_argument("--memory", default=None, help="folder for feature maps")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/conformal.csv"))
    options = parser.parse_args()
    run(options)
    print(summary(read_rows(options.output)))


if __name__ == "__main__":
    main()
