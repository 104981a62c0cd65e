"""What is folded at inference gives what the separate steps give."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from skpbas.core.aggregation import PatchAggregator
from skpbas.core.backbones import FeatureExtractor, TruncatedResNet
from skpbas.core.folding import FoldedDiscriminator, fold_batch_norms
from skpbas.core.networks import Discriminator, Projector
from skpbas.core.scoring import discriminator_logits


def used_discriminator(feature_dim, hidden_dim, generator):
    """Return a discriminator whose batch norm has seen data and been trained."""
    discriminator = Discriminator(feature_dim, hidden_dim, generator)
    norm = discriminator.norm
    norm.running_mean.normal_(generator=generator)
    norm.running_var.uniform_(0.2, 3.0, generator=generator)
    torch.nn.init.normal_(norm.weight, 1.0, 0.3, generator=generator)
    torch.nn.init.normal_(norm.bias, generator=generator)
    return discriminator.eval()


@given(
    channels=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    patch_size=st.sampled_from([1, 3, 5]),
    feature_dim=st.integers(1, 24),
    hidden_dim=st.integers(1, 16),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=80)
def test_folded_logits_equal_those_of_aggregation_projector_and_discriminator(
    channels, grid, patch_size, feature_dim, hidden_dim, seed
):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(c, -(-grid[0] // 2**i), -(-grid[1] // 2**i)) for i, c in enumerate(channels)]
    maps = [torch.randn(2, *shape, generator=generator) for shape in shapes]
    aggregator = PatchAggregator(channels, patch_size, feature_dim)
    projector = Projector(feature_dim, generator)
    discriminator = used_discriminator(feature_dim, hidden_dim, generator)
    expected = discriminator_logits(aggregator(maps), projector, discriminator)
    folded = FoldedDiscriminator(aggregator, projector, discriminator)(maps)
    torch.testing.assert_close(folded, expected, atol=2e-4, rtol=1e-4)


def test_folding_leaves_projector_and_discriminator_as_they_are():
    generator = torch.Generator().manual_seed(0)
    projector, discriminator = Projector(12, generator), used_discriminator(12, 8, generator)
    before = [t.clone() for m in (projector, discriminator) for t in m.state_dict().values()]
    FoldedDiscriminator(PatchAggregator([4, 8], 3, 12), projector, discriminator)
    after = [t for m in (projector, discriminator) for t in m.state_dict().values()]
    assert all(map(torch.equal, before, after))
    assert projector.linear.weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_maps_without_batch_norms_are_the_same_maps(name):
    torch.manual_seed(0)
    resnet = torchvision.models.get_model(name, weights=None).eval()
    for module in resnet.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1.0, 0.2)
            torch.nn.init.normal_(module.bias, 0.0, 0.2)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    network = TruncatedResNet(resnet, ("layer2", "layer3"))
    images = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        expected = network(images)
        folded = fold_batch_norms(network)(images)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    for ours, theirs in zip(folded, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)


def test_an_extractor_folds_a_resnet_and_nothing_of_an_unknown_module():
    resnet = torchvision.models.resnet18(weights=None)
    extractor = FeatureExtractor(TruncatedResNet(resnet, ("layer1",)), image_size=(32, 32))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in extractor.modules())

    class ReadsBeforeTheNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
            self.layers = ("conv",)

        def forward(self, images):
            return [self.norm(self.conv(images)) + self.conv(images)]

    extractor = FeatureExtractor(ReadsBeforeTheNorm(), image_size=(32, 32))
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in extractor.modules())
