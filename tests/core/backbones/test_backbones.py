"""Backbones: what is kept, what is frozen, which weights arrive, and what is said when they don't."""

import gc
import hashlib
import http.server
import threading
import warnings
from functools import partial

import pytest
import torch
import torchvision
from helpers import assert_equal_but_for_rounding
from torch import nn

from skpbas.core.backbones import TORCHVISION_BACKBONES, FeatureExtractor, build_backbone
from skpbas.errors import WeightsError, WeightsUnavailableError

LEVELS = ("layer2", "layer3")
RESNET18 = {"n_terms": 256 * 3 * 3, "n_layers": 13}  # to layer3, for bounds on rounding


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def resnet18():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torchvision.models.resnet18(weights=None).eval()


def saved(state, path):
    torch.save(state, path)
    return path


@pytest.mark.parametrize("name", TORCHVISION_BACKBONES)
def test_levels_have_the_published_channels_and_strides(name):
    extractor = FeatureExtractor(build_backbone(name, None, LEVELS, seeded()), image_size=(64, 96))
    channels = (128, 256) if name == "resnet18" else (512, 1024)
    assert extractor.level_shapes == [(channels[0], 8, 12), (channels[1], 4, 6)]
    assert extractor.feature_dim == sum(channels)
    assert extractor.stride == 16


def test_nothing_behind_the_deepest_level_is_kept(resnet18):
    network = build_backbone("resnet18", None, LEVELS, seeded())
    assert [name for name, _ in network.named_children()][-1] == "layer3"
    kept = sum(p.numel() for p in network.parameters())
    assert kept < 0.3 * sum(p.numel() for p in resnet18.parameters())


def test_a_named_backbone_equals_torchvisions_own_pass(resnet18, tmp_path):
    path = saved(resnet18.state_dict(), tmp_path / "w.pth")
    extractor = FeatureExtractor(build_backbone("resnet18", path, LEVELS, seeded()), image_size=(64, 64))
    images = torch.rand(2, 3, 64, 64)
    normalize = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        r = resnet18
        level2 = r.layer2(r.layer1(r.maxpool(r.relu(r.bn1(r.conv1(normalize(images)))))))
        level3 = r.layer3(level2)
    maps = extractor.feature_maps(images)
    for level, expected in zip(maps, (level2, level3), strict=True):
        assert_equal_but_for_rounding(level, expected, **RESNET18)


def test_bytes_and_floats_of_one_image_give_the_same_maps():
    extractor = FeatureExtractor(build_backbone("resnet18", None, LEVELS, seeded()), image_size=(32, 32))
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    for a, b in zip(extractor.feature_maps(images), extractor.feature_maps(images / 255), strict=True):
        assert_equal_but_for_rounding(a, b, **RESNET18)


def test_a_module_with_named_layers_gives_the_same_maps_as_the_named_backbone(resnet18, tmp_path):
    path = saved(resnet18.state_dict(), tmp_path / "w.pth")
    named = FeatureExtractor(build_backbone("resnet18", path, LEVELS, seeded()), image_size=(64, 64))
    module = FeatureExtractor(build_backbone(resnet18, None, LEVELS, seeded()), image_size=(64, 64))
    images = torch.rand(1, 3, 64, 64)
    for a, b in zip(named.feature_maps(images), module.feature_maps(images), strict=True):
        assert_equal_but_for_rounding(a, b, **RESNET18)


def test_a_module_is_run_and_kept_only_up_to_the_last_level(resnet18):
    extractor = FeatureExtractor(build_backbone(resnet18, None, LEVELS, seeded()), image_size=(32, 32))
    assert sum(p.numel() for p in extractor.backbone.parameters()) < 3e6  # layer4 alone has 8 million
    assert any(True for _ in resnet18.layer4.parameters())  # the caller's module is whole


def test_training_the_callers_module_later_does_not_reach_the_extractor(resnet18):
    module = torchvision.models.resnet18(weights=None).eval()
    extractor = FeatureExtractor(build_backbone(module, None, LEVELS, seeded()), image_size=(32, 32))
    images = torch.rand(1, 3, 32, 32)
    before = extractor(images)
    module.train()
    module(torch.rand(4, 3, 32, 32))
    with torch.no_grad():
        module.conv1.weight.zero_()
    assert torch.equal(extractor(images), before)


def test_the_extractor_stays_frozen_whatever_the_caller_does():
    extractor = FeatureExtractor(build_backbone("resnet18", None, LEVELS, seeded()), image_size=(32, 32))
    images = torch.rand(2, 3, 32, 32)
    before = extractor(images)
    extractor.train()
    extractor.backbone.train()
    extractor.requires_grad_(True)
    again = extractor(images)
    assert torch.equal(again, before)
    assert not again.requires_grad
    assert torch.equal(extractor(images), before)


def test_a_layer_that_the_module_lacks_is_named_with_those_it_has():
    with pytest.raises(ValueError, match=r"no submodule 'layer9'; it has 0, 1"):
        build_backbone(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), None, ["layer9"], seeded())
    with pytest.raises(ValueError, match="a ResNet has no 'layer5'"):
        build_backbone("resnet18", None, ["layer5"], seeded())


def test_layers_out_of_order_are_refused():
    with pytest.raises(ValueError, match="shallow first"):
        FeatureExtractor(build_backbone("resnet18", None, ["layer3", "layer2"], seeded()), image_size=(64, 64))


def test_a_layer_that_is_no_map_is_refused():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        FeatureExtractor(build_backbone(module, None, ["1"], seeded()), image_size=(16, 16))


def test_random_weights_come_from_the_generator_and_leave_the_global_stream_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a = build_backbone("resnet18", None, LEVELS, seeded(1))
    assert torch.equal(torch.rand(3), expected)
    b = build_backbone("resnet18", None, LEVELS, seeded(1))
    c = build_backbone("resnet18", None, LEVELS, seeded(2))
    assert torch.equal(a.conv1.weight, b.conv1.weight)
    assert not torch.equal(a.conv1.weight, c.conv1.weight)


def test_a_partial_state_dict_is_enough_when_it_covers_the_layers_in_use(resnet18, tmp_path):
    state = {k: v for k, v in resnet18.state_dict().items() if not k.startswith(("layer4", "fc"))}
    state = {f"module.{k}": v for k, v in state.items() if "num_batches" not in k}
    network = build_backbone("resnet18", saved({"state_dict": state}, tmp_path / "w.pth"), LEVELS, seeded())
    assert torch.equal(network.layer3[1].conv2.weight, resnet18.layer3[1].conv2.weight)


def test_a_missing_tensor_is_named(resnet18, tmp_path):
    state = {k: v for k, v in resnet18.state_dict().items() if k != "layer3.0.conv1.weight"}
    with pytest.raises(WeightsError, match=r"w\.pth.*'layer3\.0\.conv1\.weight'.*missing"):
        build_backbone("resnet18", saved(state, tmp_path / "w.pth"), LEVELS, seeded())


def test_a_misshaped_tensor_is_named_with_both_shapes(resnet18, tmp_path):
    state = {**resnet18.state_dict(), "conv1.weight": torch.zeros(64, 1, 7, 7)}
    with pytest.raises(WeightsError, match=r"'conv1\.weight'.*\(64, 1, 7, 7\).*\(64, 3, 7, 7\)"):
        build_backbone("resnet18", saved(state, tmp_path / "w.pth"), LEVELS, seeded())


def test_files_that_are_no_state_dict_are_named(resnet18, tmp_path):
    text = tmp_path / "text.pth"
    text.write_text("not weights")
    for path, reason in [
        (tmp_path / "none.pth", "no such file"),
        (text, "cannot be read"),
        (saved(resnet18, tmp_path / "module.pth"), "cannot be read"),  # code in it would have to run
        (saved([1, 2], tmp_path / "list.pth"), "holds a list"),
    ]:
        with pytest.raises(WeightsError, match=f"{path.name}.*{reason}"):
            build_backbone("resnet18", path, LEVELS, seeded())


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def stand_in(resnet18, tmp_path, monkeypatch):
    """A server on this machine in the place of torchvision's, with random weights under the right kind of name."""
    folder = tmp_path / "served"
    folder.mkdir()
    content = saved(resnet18.state_dict(), folder / "w.pth").read_bytes()
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / "w.pth").rename(folder / name)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.value
    original, hub = weights.url, torch.hub.get_dir()
    object.__setattr__(weights, "url", f"http://127.0.0.1:{server.server_port}/{name}")
    torch.hub.set_dir(str(tmp_path / "hub"))
    yield folder / name
    object.__setattr__(weights, "url", original)
    torch.hub.set_dir(hub)
    server.shutdown()
    thread.join()
    server.server_close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # torch leaves its connections to the garbage collector
        gc.collect()


def test_imagenet_weights_are_downloaded_once_and_then_come_from_the_cache(stand_in, resnet18):
    network = build_backbone("resnet18", "imagenet", LEVELS, seeded())
    assert torch.equal(network.conv1.weight, resnet18.conv1.weight)
    stand_in.unlink()  # the second time there is nothing to download
    again = build_backbone("resnet18", "imagenet", LEVELS, seeded())
    assert torch.equal(again.conv1.weight, resnet18.conv1.weight)


def test_without_connection_and_cache_the_error_names_url_folder_and_ways_out(stand_in, tmp_path):
    stand_in.unlink()
    with pytest.raises(WeightsUnavailableError) as caught:
        build_backbone("resnet18", "imagenet", LEVELS, seeded())
    message = str(caught.value)
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    for part in (url, str(tmp_path / "hub" / "checkpoints"), "weights=", 'backbone="embedded"'):
        assert part in message
    assert not list((tmp_path / "hub").rglob("*.pth"))  # nothing half-written


def test_a_damaged_download_is_refused_and_not_kept(stand_in, tmp_path):
    stand_in.write_bytes(stand_in.read_bytes()[:1000])
    with pytest.raises(WeightsUnavailableError, match="invalid hash"):
        build_backbone("resnet18", "imagenet", LEVELS, seeded())
    assert not list((tmp_path / "hub").rglob("*.pth"))
