"""The detector as one network: normalized images to image scores and anomaly maps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from skpbas.core.backbones.extractor import FeatureExtractor
from skpbas.core.maps import MapRenderer
from skpbas.core.patch_scores import PatchScorer
from skpbas.core.tiling import Tiling
from skpbas.core.whole_images import WholeImages, describe


class PBASModel(nn.Module):
    """All that prediction computes, from normalized images to image scores and anomaly maps (Eq. 11 and 12).

    Pure torch: it runs and exports without the estimator. Each step is a method too, because features may come from
    elsewhere, and not everybody needs anomaly maps.

    Parameters
    ----------
    extractor : FeatureExtractor
        Images to feature maps, and these to the levels' parts of the patch features.
    patch_scorer : PatchScorer
        Pooled features to patch scores, image scores and anomaly maps.
    smoothing_sigma : float, default=4.0
        Standard deviation of the Gaussian smoothing of the anomaly maps, in pixels of the input; 0: none.
    tiling : Tiling or None, default=None
        Tiles of the images, which pass through the network one by one, if the images are larger than its input. Feature
        maps and patch scores are then those of tiles: (B * n_tiles, ...).
    whole_images : WholeImages or None, default=None
        What images that are unlike all training images as a whole have added to their scores.

    Examples
    --------
    >>> import torch
    >>> from skpbas.core.backbones import FeatureExtractor, build_backbone
    >>> from skpbas.core.model import PBASModel
    >>> from skpbas.core.networks import Discriminator, Projector
    >>> from skpbas.core.patch_scores import DiscriminatorScorer
    >>> generator = torch.Generator().manual_seed(0)
    >>> backbone = build_backbone("embedded", None, ["layer2", "layer3"], generator)
    >>> extractor = FeatureExtractor(backbone, image_size=(64, 96))
    >>> d = extractor.feature_dim
    >>> networks = Projector(d, generator), Discriminator(d, 64, generator)
    >>> model = PBASModel(extractor, DiscriminatorScorer(extractor.aggregator, *networks))
    >>> image_scores, anomaly_maps = model(extractor.normalize(torch.rand(2, 3, 64, 96)))
    >>> image_scores.shape, anomaly_maps.shape
    (torch.Size([2]), torch.Size([2, 64, 96]))
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        patch_scorer: PatchScorer,
        smoothing_sigma: float = 4.0,
        tiling: Tiling | None = None,
        whole_images: WholeImages | None = None,
    ) -> None:
        super().__init__()
        self.tiling = tiling
        self.whole_images = whole_images
        self.extractor = extractor
        self.patch_scorer = patch_scorer
        self.renderer = MapRenderer(extractor.grid_shape, extractor.image_size, smoothing_sigma)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return image scores and anomaly maps.

        Parameters
        ----------
        images : Tensor of shape (B, 3, H, W)
            Normalized by the mean and standard deviation of ImageNet, as :meth:`FeatureExtractor.normalize` does.

        Returns
        -------
        image_scores : Tensor of shape (B,)
            Higher is more anomalous.
        anomaly_maps : Tensor of shape (B, H, W)
            In [0, 1]; higher is more anomalous.
        """
        if self.tiling is not None:
            images = self.tiling.cut(images)
        scores, descriptions = self.evidence(self.extractor.levels(images))  # (B, P), (B, D)
        return self.image_scores(scores, descriptions), self.anomaly_maps(scores)

    def evidence(
        self, feature_maps: Sequence[Tensor], image_index: Tensor | None = None, ignored: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what the backbone's feature maps say of patches and of images as a whole.

        Parameters
        ----------
        feature_maps : sequence of Tensor of shape (B, C_l, H_l, W_l)
            Shallow first.
        image_index : Tensor of shape (B,), int64, or None
            Indices of training images, which are scored as if they were new.
        ignored : Tensor of shape (B, P), bool, or None
            Patches that do not count in the descriptions; their scores mean nothing.

        Returns
        -------
        patch_scores : Tensor of shape (B, P)
        descriptions : Tensor of shape (B, D)
            See :mod:`skpbas.core.whole_images`.
        """
        pooled = self.extractor.pool(feature_maps)
        return self.patch_scorer(pooled, image_index, ignored), describe(pooled[: self.extractor.n_levels], ignored)

    def image_scores(
        self, patch_scores: Tensor, descriptions: Tensor | None = None, image_index: Tensor | None = None
    ) -> Tensor:
        """Return the image scores (B,) of patch scores (B, P) and descriptions (B, D).

        With tiles, it is the largest score of an image's tiles, and the mean of their descriptions counts. Without
        descriptions, what patches say. ``image_index`` (B,): indices of training images.
        """
        scores = self.patch_scorer.image_scores(patch_scores, self.extractor.grid_shape)
        if self.tiling is not None:
            scores = scores.unflatten(0, (-1, self.tiling.n_tiles)).amax(1)
        if self.whole_images is None or descriptions is None:
            return scores
        if self.tiling is not None:
            descriptions = descriptions.unflatten(0, (-1, self.tiling.n_tiles)).mean(1)
        added: Tensor = self.whole_images(descriptions, image_index)
        return scores + added

    def anomaly_maps(self, patch_scores: Tensor) -> Tensor:
        """Return the anomaly maps (B, H, W) of patch scores (B, P)."""
        maps = self.patch_scorer.maps(patch_scores, self.renderer)
        return maps if self.tiling is None else self.tiling.blend(maps)

    @property
    def n_tiles(self) -> int:
        """Rows of feature maps and patch scores per image."""
        return 1 if self.tiling is None else self.tiling.n_tiles
