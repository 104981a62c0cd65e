"""Methods of anomalib, fitted as its Lightning modules do, without the trainer around them.

Images are read and brought to their shape by anomalib's own functions, in batches of 32 in random order, as its data
modules do. The ResNet18 is timm's, with the weights of a file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data.utils.image import read_image
from anomalib.models.components.sampling.k_center_greedy import KCenterGreedy
from anomalib.models.image.dfm.torch_model import DFMModel
from anomalib.models.image.mh_patchcore.torch_model import MHPatchcoreModel
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.lightning_model import Patchcore
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from greedy_coreset import greedy_coreset
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import resnet18

_BATCH = 32
_CORESET_RATIO = 0.1
_TIMED_STEPS = 5
_LARGEST_DIFFERENCE = 1e-5


class AnomalibMethod:
    """A method of anomalib on images of files.

    Parameters
    ----------
    weights : Path
        State dict of torchvision's ResNet18, as far as the layers in use.
    shape : (int, int)
        Height and width that images are brought to.

    Attributes
    ----------
    saved_seconds : float
        CPU time that anomalib alone would have taken longer in ``fit``; an estimate.
    """

    model: nn.Module
    saved_seconds = 0.0

    def __init__(self, weights: Path, shape: tuple[int, int]) -> None:
        self.transform = Patchcore.configure_pre_processor(shape).transform  # the same for every method here
        self.model = self.build()
        timm_network(self.model).load_state_dict(torch.load(weights, weights_only=True))

    def build(self) -> nn.Module:
        """Return the model with random weights of the backbone."""
        raise NotImplementedError

    def fit(self, paths: Sequence[Path]) -> None:
        """Fit to good images."""
        self.model.train()
        with torch.no_grad():
            for batch in self.batches(paths):
                self.model(batch)
            self.finish()
        self.model.eval()

    def finish(self) -> None:
        """Compute what follows from the features of all images."""
        self.model.fit()

    def batches(self, paths: Sequence[Path]) -> Iterator[Tensor]:
        """Yield batches of images (B, 3, H, W) in random order."""
        for rows in torch.randperm(len(paths)).split(_BATCH):
            yield torch.stack([self.read(paths[row]) for row in rows.tolist()])

    def read(self, path: Path) -> Tensor:
        """Return an image as the network sees it, (3, H, W)."""
        return self.transform(read_image(path, as_tensor=True))

    @torch.no_grad()
    def predict(self, path: Path) -> tuple[float, NDArray[np.float32]]:
        """Return the score and the anomaly map of an image; higher is more anomalous."""
        image = self.read(path)
        result = self.model(image[None])
        return float(result.pred_score), result.anomaly_map.reshape(image.shape[1:]).numpy()

    def save(self, path: Path) -> None:
        """Write what prediction needs."""
        torch.save(self.model.state_dict(), path)


class PatchCore(AnomalibMethod):
    """PatchCore: layers 2 and 3, a tenth of the patches, 9 neighbors."""

    exact_coreset = False  # whether anomalib's own selection runs

    def build(self) -> nn.Module:
        """Return the model with random weights of the backbone."""
        return PatchcoreModel(layers=["layer2", "layer3"], backbone="resnet18", pre_trained=False, num_neighbors=9)

    def finish(self) -> None:
        """Select the patches that are kept."""
        if self.exact_coreset:
            self.model.subsample_embedding(_CORESET_RATIO)
            return
        start = time.process_time()
        sampler = SoonerKCenterGreedy(torch.vstack(self.model.embedding_store), _CORESET_RATIO)
        self.model.embedding_store.clear()
        self.model.memory_bank = sampler.sample_coreset()
        taken = time.process_time() - start
        self.saved_seconds = sampler.seconds_of_anomalib() - taken


class UnmodifiedPatchCore(PatchCore):
    """PatchCore with anomalib's own selection, which takes an hour or more on one thread."""

    exact_coreset = True


class PaDiM(AnomalibMethod):
    """PaDiM: layers 1 to 3, 100 of 448 dimensions drawn at random."""

    def build(self) -> nn.Module:
        """Return the model with random weights of the backbone."""
        return PadimModel(backbone="resnet18", layers=["layer1", "layer2", "layer3"], pre_trained=False)


class DFM(AnomalibMethod):
    """DFM: what a PCA of layer 3, averaged over 4 x 4 positions, does not explain."""

    def build(self) -> nn.Module:
        """Return the model with random weights of the backbone."""
        return DFMModel(backbone="resnet18", layer="layer3", pre_trained=False)


class MHPatchCore(AnomalibMethod):
    """MH-PatchCore: PatchCore of 1,000 whitened patches, selected batch by batch, in three passes over the images."""

    def build(self) -> nn.Module:
        """Return the model with random weights of the backbone."""
        return MHPatchcoreModel(backbone="resnet18", pre_trained=False)

    def fit(self, paths: Sequence[Path]) -> None:
        """Fit to good images."""
        model: Any = self.model
        model.train()
        passes = (
            (model.pca, lambda embedding: embedding),
            (model.covariance, model.pca),
            (model.memory_bank, lambda embedding: model.covariance(model.pca(embedding))),
        )
        with torch.no_grad():
            for part, prepared in passes:
                for batch in self.batches(paths):
                    part.update(prepared(model(batch)))
                part.finalize()
        model.eval()


class SoonerKCenterGreedy(KCenterGreedy):
    """anomalib's selection of a coreset by :func:`greedy_coreset`: the same draws, the same patches."""

    def select_coreset_idxs(self) -> list[int]:
        """Return the indices of the selected patches."""
        self.model.fit(self.embedding)
        self.features = self.model.transform(self.embedding)
        first = int(torch.randint(high=self.n_observations, size=(1,)))
        return greedy_coreset(self.features, self.coreset_size, first).tolist()

    def seconds_of_anomalib(self) -> float:
        """Return the CPU time that anomalib's selection would take, from a few of its steps."""
        self.reset_distances()
        self.update_distances(torch.tensor(0))
        start = time.process_time()
        for index in range(_TIMED_STEPS):
            self.update_distances(torch.tensor(index))
            self.get_new_idx()
        return (time.process_time() - start) / _TIMED_STEPS * self.coreset_size


def timm_network(model: nn.Module) -> nn.Module:
    """Return the network of timm that a model of anomalib takes its features from."""
    return model.feature_extractor.feature_extractor


def check_features(weights: Path) -> float:
    """Return the largest difference between the features of torchvision's network and those that anomalib uses.

    Raises
    ------
    RuntimeError
        It is above 1e-5.
    """
    state = torch.load(weights, weights_only=True)
    network = resnet18(weights=None).eval()
    network.load_state_dict(state, strict=False)
    images = torch.randn(2, 3, 128, 96, generator=torch.Generator().manual_seed(0))
    of_anomalib = PaDiM(weights, (128, 96)).model.eval().feature_extractor(images)
    largest = 0.0
    with torch.no_grad():
        features = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        for name in ("layer1", "layer2", "layer3"):
            features = network.get_submodule(name)(features)
            largest = max(largest, float((features - of_anomalib[name]).abs().max()))
    if not largest <= _LARGEST_DIFFERENCE:
        raise RuntimeError(f"--weights {weights}: torchvision's features and those of anomalib differ by {largest}")
    return largest


def check_coreset(paths: Sequence[Path], weights: Path, shape: tuple[int, int]) -> int:
    """Return how many patches of images anomalib's selection and the sooner one take; they are the same.

    Raises
    ------
    RuntimeError
        They are not.
    """
    method = PatchCore(weights, shape)
    method.model.train()
    with torch.no_grad():
        for batch in method.batches(paths):
            method.model(batch)
    embedding = torch.vstack(method.model.embedding_store)
    selections = []
    for sampler in (KCenterGreedy(embedding, _CORESET_RATIO), SoonerKCenterGreedy(embedding, _CORESET_RATIO)):
        sampler.model.random_state = 0
        torch.manual_seed(0)
        selections.append(sampler.select_coreset_idxs())
    if selections[0] != selections[1]:
        raise RuntimeError("the coreset of greedy_coreset.py is not anomalib's: use --method patchcore-unmodified")
    return len(selections[0])
