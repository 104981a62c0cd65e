"""Networks of timm: which maps they give, of which pixels, from which weights, and in everything a detector does."""

import copy
import re
import sys

import joblib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_equal_but_for_rounding, small_detector, textured_images
from safetensors.torch import save_file
from torch import nn

timm = pytest.importorskip("timm", reason='timm is not installed: pip install "skpbas[timm]"')

import skpbas  # noqa: E402
from skpbas._training.container import read  # noqa: E402
from skpbas.core.backbones import FeatureExtractor, build_backbone  # noqa: E402
from skpbas.core.backbones.timm_networks import TimmNetwork  # noqa: E402
from skpbas.errors import FileFormatError, WeightsError, WeightsUnavailableError  # noqa: E402

DEFAULT = ("layer2", "layer3")
TINY = {"test_vit": "blocks.0 blocks.1", "test_convnext": "stages.1 stages.2", "test_resnet": "layer2 layer3"}
TWO_BLOCKS = ("blocks.0", "blocks.1")


def built(name, weights=None, layers=DEFAULT, seed=0):
    return build_backbone(f"timm:{name}", weights, layers, torch.Generator().manual_seed(seed))


def with_statistics(name, seed=1, **options):
    """A network of timm as after a training: no parameter and no statistic has its first value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(name, **options).eval()
        with torch.no_grad():
            for key, tensor in model.state_dict().items():
                if key.endswith(("running_var", "weight", "gamma")) and tensor.ndim == 1:
                    tensor.uniform_(0.5, 1.5)
                elif key.endswith(("running_mean", "bias")):
                    tensor.normal_(0, 0.1)
    return model


@pytest.fixture
def weights_of(tmp_path):
    def write(name, suffix=".safetensors", **options):
        model, path = with_statistics(name, **options), tmp_path / f"{name}{suffix}"
        state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        return path, model

    return write


@pytest.mark.parametrize(
    ("name", "layers", "shapes"),
    [
        ("test_resnet", ("layer2", "layer3"), [(48, 8, 12), (192, 4, 6)]),
        ("test_convnext", ("stages.1", "stages.2"), [(32, 8, 12), (48, 4, 6)]),
        ("test_efficientnet", ("blocks.2", "blocks.3"), [(32, 8, 12), (48, 4, 6)]),
        ("test_vit", ("blocks.2", "blocks.3"), [(64, 4, 6), (64, 4, 6)]),
        ("test_vit3", ("blocks.3", "blocks.5"), [(96, 4, 6), (96, 4, 6)]),
        ("swin_tiny_patch4_window7_224", ("layers.1", "layers.2"), [(192, 8, 12), (384, 4, 6)]),
        ("eva02_tiny_patch14_224", ("blocks.5", "blocks.8"), [(192, 5, 7), (192, 5, 7)]),
        ("xcit_nano_12_p16_224", ("blocks.5", "blocks.8"), [(128, 4, 6), (128, 4, 6)]),
    ],
)
def test_the_default_layers_are_stages_of_stride_8_and_16_or_two_blocks_of_a_transformer(name, layers, shapes):
    network = built(name)
    assert network.layers == layers
    assert FeatureExtractor(network, image_size=(64, 96)).level_shapes == shapes


def slow_maps(model, pixels, size, indices):
    """timm's own pass over pixels (B, 3, H, W) in [0, 1], resized and normalized by hand."""
    x = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        return model.forward_intermediates((x - mean) / std, indices=indices, intermediates_only=True)


@pytest.mark.parametrize(
    ("name", "layers", "indices", "size"),
    [
        ("test_vit", TWO_BLOCKS, [0, 1], (64, 96)),
        ("test_vit3", ("blocks.1", "blocks.3"), [1, 3], (64, 96)),
        ("eva02_tiny_patch14_224", TWO_BLOCKS, [0, 1], (70, 98)),
        ("test_convnext", ("stages.1", "stages.2"), [1, 2], (64, 96)),
        ("swin_tiny_patch4_window7_224", ("layers.0", "layers.1"), [0, 1], (64, 96)),
    ],
)
def test_maps_are_those_of_timms_own_pass_over_pixels_normalized_as_it_wants(weights_of, name, layers, indices, size):
    transformer = "blocks.1" in layers
    options = {"dynamic_img_size": True} if transformer else {"strict_img_size": False} if "swin" in name else {}
    path, model = weights_of(name, **options)
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    extractor = FeatureExtractor(built(name, path, layers), image_size=(64, 96))
    expected = slow_maps(model, pixels, size, indices)
    for ours, theirs in zip(extractor.feature_maps(pixels), expected, strict=True):
        assert_equal_but_for_rounding(ours, theirs, n_terms=4096, n_layers=16)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 4), (3, 2)])
def test_a_token_is_at_the_place_of_its_patch(row, column):
    extractor = FeatureExtractor(built("test_vit3", layers=["blocks.0", "blocks.1"]), image_size=(64, 96))
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    changed = images.clone()
    changed[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 0.5
    for before, after in zip(extractor.feature_maps(images), extractor.feature_maps(changed), strict=True):
        difference = (after - before).norm(dim=1)[0]
        assert divmod(int(difference.argmax()), 6) == (row, column)


def test_channels_that_come_last_are_brought_to_the_front():
    extractor = FeatureExtractor(built("test_vit", layers=["patch_embed", "blocks.0"]), image_size=(64, 80))
    assert extractor.level_shapes == [(64, 4, 5), (64, 4, 5)]


def test_a_patch_of_14_pixels_is_at_its_place_in_an_input_of_multiples_of_16():
    extractor = FeatureExtractor(built("eva02_tiny_patch14_224", layers=["blocks.0"]), image_size=(96, 112))
    assert extractor.level_shapes == [(192, 7, 8)]  # 98 by 112 pixels of its own
    images = torch.rand(1, 3, 96, 112, generator=torch.Generator().manual_seed(4))
    changed = images.clone()
    changed[:, :, -14:, -14:] += 0.5
    (before,), (after,) = extractor.feature_maps(images), extractor.feature_maps(changed)
    assert int((after - before).norm(dim=1)[0].argmax()) == 7 * 8 - 1


@pytest.mark.parametrize(("name", "n_folded"), [("test_resnet", 11), ("test_efficientnet", 11), ("test_byobnet", 12)])
def test_batch_norms_are_folded_and_change_nothing(weights_of, name, n_folded):
    path, model = weights_of(name, ".pth")
    network = built(name, path)
    left = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len([m for m in network.modules() if isinstance(m, nn.Conv2d) and m.bias is not None]) >= n_folded
    assert left == []
    kept = {}
    for layer in network.layers:
        model.get_submodule(layer).register_forward_hook(lambda _m, _i, y, layer=layer: kept.update({layer: y}))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    extractor = FeatureExtractor(network, image_size=(64, 64))
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        model((images - mean) / std)
    for ours, layer in zip(extractor.feature_maps(images), network.layers, strict=True):
        assert_equal_but_for_rounding(ours, kept[layer], n_terms=4096, n_layers=16)


class OddNetwork(nn.Module):
    """Of two batch norms, one reads a convolution that something else reads too; and one is called twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.shared, self.after = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.last, self.twice = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.level, self.behind = nn.Identity(), nn.Conv2d(4, 4, 1)
        self.pretrained_cfg = {"input_size": (3, 8, 8)}

    def forward(self, x):
        y = self.shared(self.norm(self.conv(x)))
        z = self.after(y) + y
        return self.behind(self.level(self.twice(self.twice(self.last(z)))))


def test_only_batch_norms_that_alone_read_a_convolution_are_folded_and_nothing_behind_the_last_level_stays():
    model = OddNetwork()
    before = copy.deepcopy(model).eval()
    network = TimmNetwork(model, "odd", ["level"]).fold_batch_norms()
    kinds = {name: type(child).__name__ for name, child in network.module.named_children()}
    assert (kinds["norm"], kinds["after"], kinds["twice"]) == ("Identity", "BatchNorm2d", "BatchNorm2d")
    assert kinds["behind"] == "_Unused"
    x = torch.rand(1, 3, 8, 8)
    y = before.norm(before.conv(x))
    expected = before.twice(before.twice(before.last(before.after(before.shared(y)) + before.shared(y))))
    torch.testing.assert_close(network(x)[0], expected.detach())


@pytest.mark.parametrize("name", [*TINY, "test_efficientnet"])
def test_random_weights_follow_from_the_generator_and_leave_torchs_stream_alone(name):
    before = torch.get_rng_state()
    a, b, c = (built(name, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)
    torch.set_default_dtype(torch.float64)
    try:
        d = built(name).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a[key], d[key]) for key in a)


# Weights --------------------------------------------------------------------------------------------------


@pytest.fixture
def downloads(monkeypatch):
    """What timm would download: a function that sets the networks whose weights there are, by name."""
    create, states = timm.create_model, {}

    def stand_in(name, *, pretrained=False, **options):
        if not pretrained:
            return create(name, pretrained=False, **options)
        state = states.get(name.split(".")[0])
        if state is None:
            raise OSError("no connection")
        model = create(name, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(state)}, **options)
        del model.pretrained_cfg["state_dict"]
        return model

    monkeypatch.setattr(timm, "create_model", stand_in)
    return states


def test_the_pretrained_weights_are_those_that_timm_loads(downloads):
    downloads["test_vit"] = with_statistics("test_vit").state_dict()
    network = built("test_vit.r160_in1k", "imagenet", TWO_BLOCKS)
    for key in ("pos_embed", "blocks.1.mlp.fc2.weight"):
        torch.testing.assert_close(network.module.state_dict()[key], downloads["test_vit"][key], rtol=0, atol=0)
    assert network.weights_name == "test_vit.r160_in1k"


def test_without_a_connection_the_error_names_the_source_and_the_other_ways(downloads):
    with pytest.raises(WeightsUnavailableError, match=r"huggingface.co/timm/test_vit\.r160_in1k .*model\.safetensors"):
        built("test_vit", "imagenet")


def test_a_file_of_another_network_is_an_error_that_names_a_tensor(weights_of):
    path, _ = weights_of("test_convnext")
    with pytest.raises(WeightsError, match=r"test_convnext\.safetensors: the tensor 'cls_token', .* is missing"):
        built("test_vit", path)


def test_a_file_with_tensors_that_the_network_lacks_is_an_error_that_names_them(weights_of, tmp_path):
    _, model = weights_of("test_vit")
    path = tmp_path / "larger.safetensors"
    save_file({**model.state_dict(), "blocks.99.norm1.weight": torch.ones(64)}, path)
    with pytest.raises(WeightsError, match=r"tensors that the backbone lacks \('blocks\.99\.norm1\.weight'\)"):
        built("test_vit", path)


def test_a_file_may_hold_the_layers_in_use_alone_or_another_head(weights_of, tmp_path):
    _, model = weights_of("test_vit")
    state = {k: v for k, v in model.state_dict().items() if not re.match(r"blocks\.[2-9]|norm", k)}
    path = tmp_path / "part.safetensors"
    save_file({**state, "head.weight": torch.ones(3, 64), "head.bias": torch.ones(3)}, path)
    network = built("test_vit", path, TWO_BLOCKS)
    torch.testing.assert_close(network.module.blocks[1].mlp.fc2.weight, state["blocks.1.mlp.fc2.weight"])


def test_a_damaged_safetensors_file_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(b"\x08" * 100)
    with pytest.raises(WeightsError, match=r"damaged\.safetensors' cannot be read as a state dict"):
        built("test_vit", path)


# Errors ---------------------------------------------------------------------------------------------------


def test_an_unknown_network_is_an_error_with_similar_names():
    with pytest.raises(ValueError, match=r"has no such network; similar names are .*vit_tiny_patch16_224"):
        built("vit_tiny_patch16_22")


def test_an_unknown_tag_is_an_error_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"has no weights 'in22k'; choose from \['r160_in1k'\]"):
        built("test_vit.in22k")


@pytest.mark.parametrize("name", ["timm:hf-hub:somebody/model", "timm:local-dir:/tmp", "timm:", "timm:a/b", "timm"])
def test_only_names_of_timm_itself_are_taken(name):
    with pytest.raises(ValueError, match="'timm:' and a name in timm"):
        skpbas.PBASDetector(name).fit(textured_images(2))


def test_layers_that_the_network_lacks_are_an_error_with_those_that_it_has():
    with pytest.raises(ValueError, match=r"has no submodule 'stages\.9'; choose from stages\.0, stages\.1, stages\.2"):
        built("test_convnext", layers=["stages.9"])


def test_a_network_for_one_size_says_how_to_give_it():
    with pytest.raises(ValueError, match=r"give image_size=\(height, width\)"):
        FeatureExtractor(built("test_vit_relpos"), image_size=(64, 96))


def test_tokens_that_are_not_row_by_row_are_an_error():
    with pytest.raises(ValueError, match="does not return its tokens row by row"):
        built("hiera_tiny_224")


def test_a_module_whose_output_is_no_map_is_an_error():
    with pytest.raises(ValueError, match=r"'transformers\.1' returns tuple .* choose from transformers\.0"):
        built("pit_ti_224")


def test_without_timm_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r'pip install "skpbas\[timm\]"'):
        built("test_vit")


# The detector ---------------------------------------------------------------------------------------------


def quick(name, **params):
    options = {"layers": TINY.get(name, DEFAULT), "max_epochs": 1, "precision": "float32", "n_exemplars": 32}
    options["layers"] = options["layers"].split() if isinstance(options["layers"], str) else options["layers"]
    return small_detector().set_params(backbone=f"timm:{name}", **{**options, **params})


@pytest.fixture(scope="module")
def good():
    return textured_images(6, 96)[:, :64]


@pytest.fixture(scope="module")
def new():
    return textured_images(3, 96, seed=5)[:, :64]


@pytest.fixture(scope="module")
def of_tokens(good):
    return quick("test_vit", weights=None).fit(good)


@pytest.mark.parametrize("name", TINY)
def test_a_detector_finds_what_is_white_in_images_that_are_not_square(good, new, name):
    detector = quick(name, resize="aspect").fit(good)
    changed = new.copy()
    changed[:, 24:40, 60:80] = 255
    assert detector.map_shape_ == (48, 80)
    assert (detector.score_samples(changed) < detector.score_samples(new)).all()
    row, column = np.unravel_index(detector.anomaly_map(changed[:1])[0].argmax(), (48, 80))
    assert 8 <= row <= 40
    assert 40 <= column <= 76


def test_a_saved_detector_with_random_weights_opens_without_them_and_gives_equal_bytes(of_tokens, new, tmp_path):
    path = tmp_path / "part.skpbas"
    of_tokens.save(path)
    opened = skpbas.load(path)
    np.testing.assert_array_equal(opened.score_samples(new), of_tokens.score_samples(new))
    opened.save(tmp_path / "again.skpbas")
    assert (tmp_path / "again.skpbas").read_bytes() == path.read_bytes()


def test_a_pickled_detector_gives_equal_scores(of_tokens, new, tmp_path):
    joblib.dump(of_tokens, tmp_path / "detector.joblib")
    opened = joblib.load(tmp_path / "detector.joblib")
    np.testing.assert_array_equal(opened.score_samples(new), of_tokens.score_samples(new))


def test_downloaded_weights_stay_out_of_the_file_and_are_checked(good, new, tmp_path, downloads):
    downloads["test_resnet"] = with_statistics("test_resnet").state_dict()
    detector, path = quick("test_resnet", weights="imagenet").fit(good), tmp_path / "part.skpbas"
    detector.save(path)
    document, tensors = read(path)
    assert document["network"]["weights_name"] == "test_resnet.r160_in1k"
    assert [name for name in tensors if name.startswith("backbone.")] == []
    np.testing.assert_array_equal(skpbas.load(path).score_samples(new), detector.score_samples(new))
    detector.save(tmp_path / "whole.skpbas", include_backbone=True)
    downloads["test_resnet"] = with_statistics("test_resnet", seed=7).state_dict()
    with pytest.raises(WeightsError, match=r"timm's weights test_resnet\.r160_in1k are not those"):
        skpbas.load(path)
    downloads.clear()
    whole = skpbas.load(tmp_path / "whole.skpbas")
    np.testing.assert_array_equal(whole.score_samples(new), detector.score_samples(new))


def test_a_file_that_needs_timm_says_so_where_it_is_missing(of_tokens, tmp_path, monkeypatch):
    of_tokens.save(tmp_path / "part.skpbas")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r'pip install "skpbas\[timm\]"'):
        skpbas.load(tmp_path / "part.skpbas")


def test_a_file_of_another_networks_name_is_refused(of_tokens, tmp_path, monkeypatch):
    path = tmp_path / "part.skpbas"
    of_tokens.save(path)
    document, tensors = read(path)
    document["network"]["backbone"] = "timm:test_vit2"
    monkeypatch.setattr("skpbas.persistence.read", lambda _: (document, tensors))
    with pytest.raises(FileFormatError, match=r"the backbone 'timm:test_vit2'"):
        skpbas.load(path)


def test_memory_keeps_the_maps_of_a_network_and_knows_another(good, tmp_path, backbone_calls):
    quick("test_vit", memory=tmp_path).fit(good)
    n_first = sum(backbone_calls)
    quick("test_vit", memory=tmp_path).fit(good)
    assert sum(backbone_calls) == n_first
    quick("test_vit", memory=tmp_path, random_state=1).fit(good)
    assert sum(backbone_calls) == 2 * n_first


def test_tiles_and_scales_go_with_tokens(good, new):
    tiled = quick("test_vit", tile=48, image_size=64).fit(good)
    assert tiled.anomaly_map(new).shape == (3, *tiled.map_shape_)
    scaled = quick("test_vit", scales=(1.0, 0.5), image_size=96).fit(good)
    assert scaled.feature_extractor_.level_shapes[0][1:] == (5, 7)
    assert scaled.feature_extractor_.level_shapes[2][1:] == (2, 4)
    assert np.isfinite(scaled.score_samples(new)).all()


def test_the_backbone_computes_in_bfloat16_on_request(good, new, of_tokens):
    scores = quick("test_vit", precision="bfloat16").fit(good).score_samples(new)
    np.testing.assert_allclose(scores, of_tokens.score_samples(new), rtol=0.2)


@pytest.fixture(scope="module")
def of_patches_of_14_pixels(good):
    params = {"layers": TWO_BLOCKS, "image_size": (64, 96), "resize": "stretch", "smoothing_sigma": 1.0}
    return quick("vit_small_patch14_reg4_dinov2", **params).fit(good)


def test_an_exported_program_computes_the_same(of_patches_of_14_pixels, new, tmp_path):
    from skpbas.export import to_torch

    to_torch(of_patches_of_14_pixels, tmp_path / "detector.pt2")
    scores, _ = torch.export.load(tmp_path / "detector.pt2").module()(torch.from_numpy(new))
    np.testing.assert_allclose(-scores.detach().numpy(), of_patches_of_14_pixels.score_samples(new), rtol=1e-4)


def test_an_onnx_graph_computes_the_same_without_operators_that_runtimes_differ_in(
    of_patches_of_14_pixels, new, tmp_path
):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from skpbas.export import to_onnx
    from skpbas.runtime import OnnxDetector

    to_onnx(of_patches_of_14_pixels, tmp_path / "detector.onnx")
    operators = {node.op_type for node in onnx.load(tmp_path / "detector.onnx").graph.node}
    assert "Resize" not in operators
    scores = OnnxDetector(tmp_path / "detector.onnx").score_samples(new)
    np.testing.assert_allclose(scores, of_patches_of_14_pixels.score_samples(new), rtol=1e-4)
