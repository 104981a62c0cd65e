"""Backbones: what is kept, what is frozen, which weights arrive, and what is said when they don't."""

import copy
import gc
import hashlib
import http.server
import pickle
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
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


EVERY_BACKBONE = (*TORCHVISION_BACKBONES, "embedded")


@pytest.mark.parametrize("name", EVERY_BACKBONE)
def test_building_leaves_the_global_stream_alone_and_reads_nothing_of_it(name):
    before = torch.get_rng_state()
    network = build_backbone(name, None, LEVELS, seeded(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    again = build_backbone(name, None, LEVELS, seeded(3))
    assert_same_tensors(network, again)


@pytest.mark.parametrize("name", EVERY_BACKBONE)
def test_building_does_not_depend_on_the_callers_default_dtype_and_device(name):
    expected = build_backbone(name, None, LEVELS, seeded(3))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            network = build_backbone(name, None, LEVELS, seeded(3))
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_tensors(network, expected)


def assert_same_tensors(network, expected):
    state, other = network.state_dict(), expected.state_dict()
    assert state.keys() == other.keys()
    for name, tensor in state.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("name", TORCHVISION_BACKBONES)
def test_random_weights_have_the_distribution_of_torchvisions_own(name):
    network = build_backbone(name, None, LEVELS, seeded())
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            n, fan_out = module.weight.numel(), module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            std = (2 / fan_out) ** 0.5  # He's, for what flows back through a ReLU
            weight = module.weight.detach()
            assert abs(float(weight.std()) - std) < 6 * std / (2 * n) ** 0.5
            assert abs(float(weight.mean())) < 6 * std / n**0.5
        elif isinstance(module, nn.BatchNorm2d):
            for tensor, value in [(module.weight, 1), (module.bias, 0), (module.running_mean, 0)]:
                assert torch.equal(tensor, torch.full_like(tensor, value))
            assert torch.equal(module.running_var, torch.ones_like(module.running_var))
            assert int(module.num_batches_tracked) == 0


def test_weights_of_a_deeper_network_are_refused_with_the_surplus_tensors(tmp_path):
    path = saved(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(WeightsError, match=r"resnet34\.pth.*70 tensors.*'layer1\.2\.conv1\.weight'.*another network"):
        build_backbone("resnet18", path, LEVELS, seeded())
    # a block more in layer1, two in layer2 and four in layer3: of two convolutions and two norms, 10 tensors, each
    with pytest.raises(WeightsError, match=r"10 tensors"):
        build_backbone("resnet18", path, ["layer1"], seeded())


def test_folded_weights_with_identity_norms_load(shared):
    path = shared / "weights" / "resnet18-imagenet1k_v1-to-layer3.pth"
    network = build_backbone("resnet18", path, LEVELS, seeded())
    state = torch.load(path, weights_only=True)
    assert torch.equal(network.bn1.bias, state["bn1.bias"])
    assert bool(network.bn1.bias.any())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("tensor", ["layer2.0.conv1.weight", "bn1.running_var"])
def test_weights_that_are_no_numbers_are_refused_by_name(resnet18, tmp_path, tensor, value):
    state = {name: weights.clone() for name, weights in resnet18.state_dict().items()}
    state[tensor].view(-1)[3] = value
    unused = {**resnet18.state_dict(), "fc.bias": torch.full((1000,), value)}
    build_backbone("resnet18", saved(unused, tmp_path / "fc.pth"), LEVELS, seeded())  # not in use
    with pytest.raises(WeightsError, match=rf"w\.pth: 1 of \d+ values of the tensor '{tensor}'"):
        build_backbone("resnet18", saved(state, tmp_path / "w.pth"), LEVELS, seeded())
    module = torchvision.models.resnet18(weights=None)
    module.load_state_dict(state)
    with pytest.raises(WeightsError, match=f"backbone ResNet: .*'{tensor}'"):
        FeatureExtractor(build_backbone(module, None, LEVELS, seeded()), image_size=(32, 32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to(torch.int8), "torch.int8, torch.strided on cpu; expected dense floating-point numbers"),
        (lambda t: t.to(torch.complex64), "torch.complex64"),
    ],
)
def test_weights_of_another_kind_are_refused_by_name(resnet18, tmp_path, change, message):
    state = resnet18.state_dict()
    state["conv1.weight"] = change(state["conv1.weight"])
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=f"w.pth.*'conv1.weight' is {message}"):
        build_backbone("resnet18", tmp_path / "w.pth", ["layer1"], torch.Generator())


def test_names_that_are_no_strings_or_occur_twice_are_refused(resnet18, tmp_path):
    state = dict(resnet18.state_dict())
    for entry, message in (
        ({0: torch.zeros(1)}, "not a state dict of tensors"),
        ({"module.conv1.weight": state["conv1.weight"]}, r"both 'module\.conv1\.weight' and 'conv1\.weight'; keep one"),
    ):
        torch.save({**state, **entry}, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=message):
            build_backbone("resnet18", tmp_path / "w.pth", ["layer1"], torch.Generator())


def test_weights_that_overflow_in_single_precision_are_refused(resnet18, tmp_path):
    state = {name: w.double() if w.is_floating_point() else w for name, w in resnet18.state_dict().items()}
    build_backbone("resnet18", saved(state, tmp_path / "double.pth"), LEVELS, seeded())
    state["conv1.weight"] = state["conv1.weight"].clone()
    state["conv1.weight"][0, 0, 0, 0] = 1e39
    with pytest.raises(WeightsError, match=r"'conv1\.weight'"):
        build_backbone("resnet18", saved(state, tmp_path / "large.pth"), LEVELS, seeded())


class Masked(nn.Sequential):
    """Holds a constant of infinities, as masks of attention do."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, images):
        return self[2](self[1](self[0](images)))


def test_masks_of_infinities_in_a_module_are_no_fault():
    extractor = FeatureExtractor(build_backbone(Masked(), None, ["1", "2"], seeded()), image_size=(32, 32))
    assert extractor(torch.rand(1, 3, 32, 32)).isfinite().all()


def test_a_module_in_double_precision_computes_in_single():
    extractor = FeatureExtractor(build_backbone(Masked().double(), None, ["1", "2"], seeded()), image_size=(32, 32))
    assert extractor(torch.rand(1, 3, 32, 32)).dtype == torch.float32


def test_a_modules_maps_are_its_own_callers_in_any_number_of_threads(resnet18):
    extractor = FeatureExtractor(build_backbone(resnet18, None, LEVELS, seeded()), image_size=(32, 32))
    images = torch.rand(26, 1, 3, 32, 32, generator=seeded())
    expected = [extractor(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        actual = list(pool.map(lambda i: extractor(images[i % 26]), range(260)))
    assert all(torch.equal(a, expected[i % 26]) for i, a in enumerate(actual))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda extractor: pickle.loads(pickle.dumps(extractor))])
def test_copies_of_an_extractor_with_a_module_are_independent(resnet18, way):
    extractor = FeatureExtractor(build_backbone(resnet18, None, LEVELS, seeded()), image_size=(32, 32))
    copied = way(extractor)
    images = torch.rand(1, 3, 32, 32, generator=seeded())
    expected = extractor(images)
    with torch.no_grad():
        extractor.backbone.module.conv1.weight.zero_()
    assert torch.equal(copied(images), expected)
    assert not torch.equal(extractor(images), expected)


def test_hooks_registered_on_a_copy_replace_none_of_its_own(resnet18):
    extractor = FeatureExtractor(build_backbone(resnet18, None, LEVELS, seeded()), image_size=(32, 32))
    content = pickle.dumps(extractor)
    code = (
        "import pickle, sys, torch; extractor = pickle.load(sys.stdin.buffer); module = extractor.backbone.module;"
        "[module.layer3.register_forward_hook(lambda *_: None) for _ in range(100)];"
        "print(extractor(torch.zeros(1, 3, 32, 32)).shape[-1])"
    )
    done = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=True)
    assert int(done.stdout) == extractor.feature_dim


def test_calling_the_extractors_module_itself_collects_nothing(resnet18):
    extractor = FeatureExtractor(build_backbone(resnet18, None, LEVELS, seeded()), image_size=(32, 32))
    extractor.backbone.module.layer2(torch.rand(1, 64, 8, 8))
    assert extractor(torch.rand(1, 3, 32, 32)).shape[-1] == extractor.feature_dim


def test_a_pass_that_fails_leaves_nothing_for_the_next(resnet18):
    extractor = FeatureExtractor(build_backbone(resnet18, None, LEVELS, seeded()), image_size=(32, 32))
    images = torch.rand(1, 3, 32, 32, generator=seeded())
    expected = extractor(images)
    with pytest.raises(RuntimeError):
        extractor.feature_maps(torch.rand(1, 5, 32, 32))
    assert torch.equal(extractor(images), expected)
