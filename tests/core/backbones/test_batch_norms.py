"""A network without its batch norms gives the maps it gave with them."""

import pytest
import torch
import torchvision

from skpbas.core.backbones import FeatureExtractor
from skpbas.core.backbones.batch_norms import fold_batch_norms
from skpbas.core.backbones.levels import TruncatedResNet


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
