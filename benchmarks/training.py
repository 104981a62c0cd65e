"""Time training and a plain loop that recomputes its features, unfolds them and uses every patch.

    python benchmarks/training.py            # single steps
    python benchmarks/training.py --fit 209  # and a whole default fit on 209 generated images
    python benchmarks/training.py --compile  # and steps under torch.compile, with the time that compiling takes

Weights are random: time does not depend on them. A step takes 8 images; the kinds of steps are measured in turn. The
plain loop's 400 epochs are extrapolated from its steps.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from inference import new_backbone, plain_method
from measure import in_turn, report
from skorch import NeuralNet

from skpbas import PBASDetector
from skpbas._features.extraction import LevelMaps
from skpbas._features.sampling import TrainingFeatures
from skpbas._inputs.images import ImageSequence
from skpbas._training.loop import new_net, new_objective
from skpbas._training.settings import TrainingSettings
from skpbas.core.backbones import FeatureExtractor
from skpbas.datasets import make_inspection_images

BATCH, PAPER_EPOCHS = 8, 400
PLAIN = "step of the plain loop"


def settings_of(detector: PBASDetector) -> TrainingSettings:
    """Return the settings that the detector's training would read."""
    return detector._training_settings()


class Steps:
    """Optimization steps as in ``fit``, one per call.

    Parameters
    ----------
    features : TrainingFeatures
    settings : TrainingSettings
    bare : bool, default=False
        Without skorch.
    compiled : bool, default=False
        Without skorch, and compiled by torch.
    """

    def __init__(
        self, features: TrainingFeatures, settings: TrainingSettings, *, bare: bool = False, compiled: bool = False
    ) -> None:
        self.objective = new_objective(features, settings)
        self.net: NeuralNet = new_net(self.objective, settings, features.n_images, "")
        self.net.initialize()
        self.net.notify("on_train_begin")
        self.net.history.new_epoch()
        self.net.notify("on_epoch_begin")
        self.features, self.settings, self.bare = features, settings, bare or compiled
        self.total = torch.compile(self._total) if compiled else self._total

    def __call__(self) -> None:
        """Draw patches and take one step with them."""
        drawn = next(iter(self.features.patch_batches(self.settings.batch_size, self.settings.patches_per_step)))
        if self.bare:
            self.net.optimizer_.zero_grad()
            self.total(drawn).backward()
            self.net.optimizer_.step()
        else:
            batch = (drawn, torch.empty(0))
            self.net.run_single_epoch([batch], training=True, prefix="train", step_fn=self.net.train_step)

    def _total(self, drawn: torch.Tensor) -> torch.Tensor:
        return self.objective(drawn).total


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="wide_resnet50_2")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile, which needs a C++ compiler")
    parser.add_argument("--fit", type=int, default=0, help="number of images of a whole fit; 0: no fit")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()

    size = options.image_size
    generated = make_inspection_images(n_normal=16, n_anomalous=0, size=size, random_state=0).images
    extractor = FeatureExtractor(new_backbone(options.backbone), image_size=(size, size))
    images = ImageSequence(generated, image_size=(size, size), resize="stretch", smallest=extractor.stride)
    store = LevelMaps(images, extractor, 1, None).store(range(16), torch.float16, show_progress=False)
    features = TrainingFeatures(
        store, torch.arange(16), extractor.aggregator, torch.device("cpu"), torch.Generator().manual_seed(0)
    )
    plain = plain_method(options.backbone, size)
    batch = torch.stack([images.load(i)[0] for i in range(BATCH)])
    default = PBASDetector(options.backbone, weights=None, image_size=size, random_state=0)
    every_patch = PBASDetector(options.backbone, weights=None, image_size=size, random_state=0, patches_per_step=None)
    jobs = {
        PLAIN: lambda: plain.step(batch),
        "step with every patch": Steps(features, settings_of(every_patch)),
        "step of the default recipe": Steps(features, settings_of(default)),
        "step of the default recipe, without skorch": Steps(features, settings_of(default), bare=True),
    }
    if options.compile:
        compiled = Steps(features, settings_of(default), compiled=True)
        start = time.perf_counter()
        compiled()
        seconds_compiling = time.perf_counter() - start
        jobs[f"step of the default recipe, compiled in {seconds_compiling:.0f} s, without skorch"] = compiled
    seconds = in_turn(jobs, options.rounds)
    rows: list[dict[str, Any]] = [
        {
            "workload": name,
            "ms": f"{1e3 * value:.0f}",
            "ms per image": f"{1e3 * value / BATCH:.1f}",
            "speedup over the plain loop": f"{seconds[PLAIN] / value:.1f}",
        }
        for name, value in seconds.items()
    ]
    if options.fit:
        generated = make_inspection_images(n_normal=options.fit, n_anomalous=0, size=size, random_state=0).images
        start = time.perf_counter()
        detector = default.fit(generated)
        fit = time.perf_counter() - start
        extrapolated = PAPER_EPOCHS * math.ceil(options.fit / BATCH) * seconds[PLAIN]
        rows.append(
            {
                "workload": f"whole default fit, {options.fit} images, {detector.n_iter_} epochs, with the threshold",
                "ms": f"{1e3 * fit:.0f}",
                "ms per image": f"{1e3 * fit / options.fit:.1f}",
                "speedup over the plain loop": f"{extrapolated / fit:.0f} ({PAPER_EPOCHS} epochs, extrapolated)",
            }
        )
    report(f"training-{options.backbone}", rows, options.output)


if __name__ == "__main__":
    main()
