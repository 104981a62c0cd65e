"""Detectors are saved in files without code, and whatever happens to a file, no other detector comes out of it."""

import builtins
import copy
import json
import os
import pickle
import re
import tracemalloc
from pathlib import Path

import mutate_saved
import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import GOLDEN, small_detector, textured_images
from hypothesis import given
from hypothesis import strategies as st
from mutate_saved import edited, with_checksum
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

import skpbas
from skpbas import PBASDetector
from skpbas._training.container import encoded, read
from skpbas._training.deferred import Deferred
from skpbas.core.backbones import factory
from skpbas.errors import FileFormatError, StorageError, WeightsError, WeightsUnavailableError

SIDE = 32


def quick(**params):
    """A detector that fits in a fraction of a second, and whose file has a few kilobytes."""
    small = {"image_size": SIDE, "layers": ("layer1", "layer2"), "feature_dim": 24, "hidden_dim": 8, "n_exemplars": 16}
    defaults = {"max_epochs": 2, "device": "cpu", "random_state": 0}
    return PBASDetector(**{"backbone": "embedded", **small, **defaults, **params})


@pytest.fixture(scope="module")
def good():
    return textured_images(8, SIDE)


@pytest.fixture(scope="module")
def new():
    return np.concatenate([textured_images(2, SIDE, seed=1), np.full((1, SIDE, SIDE, 3), 200, np.uint8)])


@pytest.fixture(scope="module")
def fitted_quick(good):
    return quick().fit(good)


@pytest.fixture(scope="module")
def content(fitted_quick, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "part.skpbas"
    fitted_quick.save(path)
    return path.read_bytes()


def reopened(detector, folder, *, include_backbone=False, **options):
    path = folder / "part.skpbas"
    detector.save(path, include_backbone=include_backbone)
    return skpbas.load(path, **{"device": "cpu", **options})


def refusal(content, folder):
    """Return why a content is refused, without the path."""
    path = folder / "part.skpbas"
    path.write_bytes(content)
    with pytest.raises(FileFormatError) as raised:
        skpbas.load(path, device="cpu")
    assert str(raised.value).startswith(f"{path}: ")
    return str(raised.value).removeprefix(f"{path}: ")


def with_header(content, change):
    """Return a file with a changed header, and a length and a checksum that fit."""
    size = int.from_bytes(content[:8], "little")
    text = change(content[8 : 8 + size].decode().rstrip()).encode()
    text += b" " * (-len(text) % 8)
    return with_checksum(len(text).to_bytes(8, "little") + text + content[8 + size :])


def with_document(content, change):
    """Return a file with a changed description."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    document = json.loads(header["__metadata__"]["detector"])
    change(document)
    header["__metadata__"]["detector"] = json.dumps(document, separators=(",", ":"))
    return with_header(content, lambda _: json.dumps(header, separators=(",", ":")))


# What comes back ------------------------------------------------------------------------------------------

CASES = {
    "fused": {},
    "discriminator": {"patch_score": "discriminator"},
    "distance": {"patch_score": "distance"},
    "no synthesis": {"synthesis": None, "center_init": "mean"},
    "several scales": {"image_size": 64, "scales": (1.0, 0.5)},
    "tiles": {"tile": 24, "image_size": 32},
    "height and width": {"image_size": (32, 48), "resize": "stretch"},
    "crop and a share": {"resize": "crop", "contamination": 0.2, "exclude_outliers": False},
    "bfloat16": {"precision": "bfloat16"},
    "one head, other smoothing": {"n_heads": 1, "smoothing_sigma": 1.5, "patch_size": 5, "projector_init": "xavier"},
    "random ResNet18": {"backbone": "resnet18", "weights": None},
}


@pytest.mark.parametrize("case", CASES)
def test_a_saved_detector_predicts_what_the_original_does_to_the_last_bit(case, good, new, tmp_path):
    detector = quick(**CASES[case]).fit(good)
    opened = reopened(detector, tmp_path)
    for images in (good, new):
        for method in ("score_samples", "decision_function", "anomaly_map", "predict", "p_values", "verdicts"):
            np.testing.assert_array_equal(getattr(opened, method)(images), getattr(detector, method)(images))
        assert repr(opened.find_regions(images)) == repr(detector.find_regions(images))
    assert vars(opened).keys() == vars(detector).keys()
    states = [one.model_.state_dict() for one in (opened, detector)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert opened.get_params() == detector.get_params()


def test_fitted_attributes_come_back_on_the_device_and_work(fitted_quick, good, tmp_path):
    opened = reopened(fitted_quick, tmp_path)
    for name in ("offset_", "map_threshold_", "n_iter_", "loss_curve_", "n_samples_fit_", "map_shape_", "device_"):
        assert getattr(opened, name) == getattr(fitted_quick, name)
    assert opened.good_statistics_ == fitted_quick.good_statistics_
    for name in ("training_scores_", "training_outliers_"):
        found, expected = getattr(opened, name), getattr(fitted_quick, name)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    features = fitted_quick.feature_extractor_(torch.from_numpy(good[:1]).permute(0, 3, 1, 2))
    for detector in (opened, fitted_quick):
        assert detector.center_.device == detector.device_
    with torch.no_grad():
        logits = [d.discriminator_(d.projector_(features)[0]) for d in (opened, fitted_quick)]
    assert torch.equal(*logits)
    assert torch.equal(opened.center_, fitted_quick.center_)
    assert opened.model_.extractor is opened.feature_extractor_


def test_training_images_are_recognized_after_opening_equal_ones_too(new, tmp_path):
    images = textured_images(8, SIDE)
    images[5], images[7] = images[2], images[0]
    detector = quick().fit(images)
    opened = reopened(detector, tmp_path)
    np.testing.assert_array_equal(opened.score_samples(images), detector.score_samples(images))
    known = [d._reading.training for d in (opened, detector)]
    assert known[0]._indices == known[1]._indices
    assert opened.score_samples(images[:1]) != opened.score_samples(images[:1, ::-1])


def test_warnings_of_other_images_come_back_too(fitted_quick, good, tmp_path):
    opened = reopened(fitted_quick, tmp_path)
    assert opened._reading.good == fitted_quick._reading.good
    assert opened._reading.plan == fitted_quick._reading.plan


def test_the_same_content_gives_the_same_bytes_also_from_an_opened_detector(fitted_quick, content, tmp_path):
    path = tmp_path / "again.skpbas"
    fitted_quick.save(path)
    assert path.read_bytes() == content
    skpbas.load(path, device="cpu").save(path)
    assert path.read_bytes() == content
    pickle.loads(pickle.dumps(fitted_quick)).save(path)
    assert path.read_bytes() == content


def test_an_opened_detector_is_pickled_copied_cloned_and_fitted_as_any_other(fitted_quick, good, new, tmp_path):
    opened = reopened(fitted_quick, tmp_path)
    expected = fitted_quick.score_samples(new)
    for again in (pickle.loads(pickle.dumps(opened)), copy.deepcopy(opened), clone(opened).fit(good)):
        np.testing.assert_array_equal(again.score_samples(new), expected)
    np.testing.assert_array_equal(opened.fit(good).score_samples(new), expected)


def test_parameters_of_the_machine_and_random_states_without_a_number_are_not_stored(good, tmp_path):
    seed = np.random.RandomState(0)
    detector = quick(random_state=seed, memory=tmp_path / "memory", n_jobs=2, verbose=0).fit(good)
    opened = reopened(detector, tmp_path, device="auto")
    assert (opened.device, opened.memory, opened.n_jobs, opened.verbose) == ("auto", None, None, 0)
    assert opened.random_state is None
    assert b"memory" not in (tmp_path / "part.skpbas").read_bytes()


def test_numbers_of_numpy_lists_and_paths_become_what_json_has(good, tmp_path):
    given = {"image_size": np.array([32, 32]), "n_exemplars": np.int64(16), "alpha": np.float32(0.25), "scales": [1]}
    opened = reopened(quick(weights=Path("imagenet"), **given, layers=["layer1"]).fit(good), tmp_path)
    values = [opened.get_params()[name] for name in ("image_size", "n_exemplars", "alpha", "scales", "weights")]
    assert values == [(32, 32), 16, 0.25, (1,), "imagenet"]
    assert type(values[1]) is int


def test_parameters_changed_after_the_fit_are_stored_and_do_not_change_the_model(fitted_quick, new, tmp_path):
    detector = copy.deepcopy(fitted_quick)
    changed = {"image_size": 64, "smoothing_sigma": 9.0, "backbone": "resnet50", "layers": ("layer3",), "alpha": 0.7}
    opened = reopened(detector.set_params(**changed, false_alarm_rate=0.2), tmp_path)
    assert opened.get_params() == detector.get_params()
    np.testing.assert_array_equal(opened.anomaly_map(new), fitted_quick.anomaly_map(new))
    np.testing.assert_array_equal(opened.verdicts(new), detector.verdicts(new))
    with pytest.raises(ValueError, match="backbone was set to a module after the fit"):
        detector.set_params(backbone=nn.Sequential()).save(tmp_path / "d")
    with pytest.raises(ValueError, match="smoothing_sigma"):
        copy.deepcopy(fitted_quick).set_params(smoothing_sigma=-1.0).save(tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_folded_map_that_cannot_be_computed_again_is_stored(fitted_quick, new, tmp_path):
    detector = copy.deepcopy(fitted_quick)
    weight = detector.model_.patch_scorer.discriminator.hidden.parts[0].weight
    weight.data = torch.nextafter(weight.data, torch.tensor(torch.inf))
    opened = reopened(detector, tmp_path)
    np.testing.assert_array_equal(opened.score_samples(new), detector.score_samples(new))
    names = read(tmp_path / "part.skpbas")[1].keys()
    assert [name for name in names if ".parts." in name] == ["scorer.discriminator.hidden.parts.0.weight"]


def test_a_deferred_detector_is_completed_first(fitted_quick, new, tmp_path):
    detector = copy.copy(fitted_quick)
    model, calls = fitted_quick.model_, []
    detector.model_ = Deferred(lambda: calls.append(1) or model)
    opened = reopened(detector, tmp_path)
    assert calls == [1]
    np.testing.assert_array_equal(opened.score_samples(new), fitted_quick.score_samples(new))


def test_an_unfitted_detector_and_a_subclass_are_not_saved(fitted_quick, tmp_path):
    class Mine(PBASDetector):
        pass

    with pytest.raises(NotFittedError):
        quick().save(tmp_path / "d")
    mine = Mine()
    mine.__dict__.update(vars(fitted_quick))
    with pytest.raises(TypeError, match=r"this is a .*Mine: pickle it"):
        mine.save(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_what_the_caller_has_set_in_torch_changes_nothing(fitted_quick, content, good, new, tmp_path):
    expected = fitted_quick.score_samples(new)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu"):
            opened = reopened(fitted_quick, tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (tmp_path / "part.skpbas").read_bytes() == content
    assert not any(tensor.is_inference() for tensor in opened.model_.state_dict().values())
    np.testing.assert_array_equal(opened.score_samples(new), expected)


def test_opening_neither_reads_nor_changes_the_global_random_stream(fitted_quick, tmp_path):
    before = torch.get_rng_state()
    reopened(fitted_quick, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


# Devices --------------------------------------------------------------------------------------------------


def test_a_detector_fitted_on_cuda_opens_without_it(fitted_quick, new, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    detector = copy.copy(fitted_quick).set_params(device="cuda")
    detector.device_ = torch.device("cuda", 0)  # the tensors stay, as after a pickle's journey
    opened = reopened(detector, tmp_path, device="auto")
    assert opened.device_.type in ("cpu", "mps")
    assert opened.device == "auto"
    with pytest.raises(ValueError, match="device='cuda' is not available"):
        skpbas.load(tmp_path / "part.skpbas", device="cuda")
    on_cpu = skpbas.load(tmp_path / "part.skpbas", device=torch.device("cpu"))
    np.testing.assert_array_equal(on_cpu.score_samples(new), fitted_quick.score_samples(new))


def test_a_pickle_from_a_machine_with_cuda_is_saved_and_opened_without_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="computed on cuda"):
        pickled = pickle.loads((GOLDEN / "cuda_detector.pkl").read_bytes())
    detector, images = pickled["detector"], pickled["images"]
    detector.set_params(device="cpu").save(tmp_path / "d")
    opened = skpbas.load(tmp_path / "d", device="cpu", backbone=detector.backbone)
    np.testing.assert_array_equal(opened.score_samples(images), detector.score_samples(images))
    assert opened.layers == ("1", "2")


def test_arithmetic_follows_the_hardware_that_opens_the_file(fitted_quick, tmp_path, monkeypatch):
    fitted_quick.save(tmp_path / "d")
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("skpbas.core.devices.has_fast_bfloat16", lambda device, fast=fast: fast)
        assert skpbas.load(tmp_path / "d", device="cpu").model_.patch_scorer.precision == dtype


# Weights of the backbone ----------------------------------------------------------------------------------


def stored_backbone(path):
    return [name for name in read(path)[1] if name.startswith("backbone.")]


def random_imagenet(name, *, progress=False, seed=0):
    """What torchvision would download, with random values."""
    network = factory.build_backbone(name, None, ["layer3"], torch.Generator().manual_seed(seed))
    return network.state_dict()


RESNET = {"backbone": "resnet18", "layers": ("layer1", "layer2")}


def test_torchvisions_weights_stay_out_by_default_and_are_checked(good, new, tmp_path, monkeypatch):
    monkeypatch.setattr(factory, "imagenet_state_dict", random_imagenet)
    detector, path = quick(**RESNET).fit(good), tmp_path / "part.skpbas"
    opened = reopened(detector, tmp_path)
    np.testing.assert_array_equal(opened.score_samples(new), detector.score_samples(new))
    assert stored_backbone(path) == []
    assert read(path)[0]["network"]["weights_name"] == "ResNet18_Weights.IMAGENET1K_V1"
    monkeypatch.setattr(factory, "imagenet_state_dict", lambda name, progress: random_imagenet(name, seed=1))
    with pytest.raises(WeightsError, match=r"part\.skpbas: torchvision's weights ResNet18.* are not those"):
        skpbas.load(path)


def test_without_a_connection_the_error_is_that_of_fit_unless_the_weights_are_in_the_file(
    good, new, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(factory, "imagenet_state_dict", random_imagenet)
        detector = quick(**RESNET).fit(good)

    def offline(*_, **__):
        raise WeightsUnavailableError("the ImageNet weights of 'resnet18' could not be loaded")

    monkeypatch.setattr(factory, "imagenet_state_dict", offline)
    with pytest.raises(WeightsUnavailableError, match="could not be loaded"):
        reopened(detector, tmp_path)
    opened = reopened(detector, tmp_path, include_backbone=True)
    np.testing.assert_array_equal(opened.score_samples(new), detector.score_samples(new))
    assert stored_backbone(tmp_path / "part.skpbas")


def test_weights_of_a_file_are_stored_and_the_file_is_not_needed(good, new, tmp_path):
    torch.save(random_imagenet("resnet18"), tmp_path / "weights.pth")
    detector = quick(**RESNET, weights=tmp_path / "weights.pth").fit(good)
    (tmp_path / "weights.pth").unlink()
    opened = reopened(detector, tmp_path)
    np.testing.assert_array_equal(opened.score_samples(new), detector.score_samples(new))
    assert opened.weights == str(tmp_path / "weights.pth")
    np.testing.assert_array_equal(reopened(opened, tmp_path).score_samples(new), detector.score_samples(new))


def test_the_embedded_weights_stay_out_unless_asked_for_and_are_checked(fitted_quick, new, tmp_path, monkeypatch):
    path = tmp_path / "part.skpbas"
    reopened(fitted_quick, tmp_path)
    assert stored_backbone(path) == []
    of_package = factory.load_embedded

    def other(layers):
        network = of_package(layers)
        next(network.parameters()).data.mul_(2)
        return network

    monkeypatch.setattr(factory, "load_embedded", other)
    with pytest.raises(WeightsError, match=r"are not those that .*: save it with include_backbone=True"):
        skpbas.load(path)
    opened = reopened(fitted_quick, tmp_path, include_backbone=True)
    assert stored_backbone(path)
    np.testing.assert_array_equal(opened.score_samples(new), fitted_quick.score_samples(new))


class Net(nn.Module):
    """Has a buffer that is no part of its state dict, and a layer that no pass needs."""

    def __init__(self, seed=0):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 4, 4), nn.Conv2d(6, 8, 2, 2), nn.Linear(8, 2)
        self.register_buffer("shift", torch.full((1,), 0.25), persistent=False)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4

    def forward(self, x):
        return self.head(self.b((self.a(x) + self.shift).relu()).mean((2, 3)))


def test_a_module_must_be_given_again_and_is_checked(good, new, tmp_path):
    detector = quick(backbone=Net(), layers=("a", "b"), feature_dim="auto").fit(good)
    opened = reopened(detector, tmp_path, include_backbone=True, backbone=Net())
    np.testing.assert_array_equal(opened.score_samples(new), detector.score_samples(new))
    path = tmp_path / "part.skpbas"
    assert stored_backbone(path) == []
    assert isinstance(clone(opened).backbone, Net)
    with pytest.raises(ValueError, match=r"give the module that it was fitted with, as load\(path, backbone=module\)"):
        skpbas.load(path)
    shifted = Net()
    shifted.shift += 1
    for other in (Net(seed=1), shifted):
        with pytest.raises(WeightsError, match="the tensors of the module given as backbone are not those"):
            skpbas.load(path, backbone=other)
    detector.save(path)


def test_a_module_for_a_detector_that_has_its_own_backbone_is_refused(fitted_quick, tmp_path):
    with pytest.raises(ValueError, match="is a detector with the backbone 'embedded': give no other"):
        reopened(fitted_quick, tmp_path, backbone=Net())


# Writing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "stop"])
def test_an_interrupted_save_leaves_the_old_file_and_no_other(step, error, fitted_quick, tmp_path, monkeypatch):
    path = tmp_path / "part.skpbas"
    path.write_bytes(b"old")

    def fails(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(builtins if step == "open" else os, step, fails)
        with pytest.raises(StorageError if isinstance(error, OSError) else KeyboardInterrupt):
            fitted_quick.save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    fitted_quick.save(path)
    assert skpbas.load(path, device="cpu").offset_ == fitted_quick.offset_
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_does_not_exist_is_named(fitted_quick, tmp_path):
    with pytest.raises(StorageError, match="missing"):
        fitted_quick.save(tmp_path / "missing" / "part.skpbas")


def test_a_link_stays_one_and_any_name_is_allowed(fitted_quick, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "no suffix")
    fitted_quick.save(str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert skpbas.load(str(tmp_path / "no suffix"), device="cpu").offset_ == fitted_quick.offset_


# Reading --------------------------------------------------------------------------------------------------


def test_nothing_is_unpickled(content, tmp_path, monkeypatch):
    (tmp_path / "d").write_bytes(content)

    def fails(*_, **__):
        raise AssertionError("pickle was used")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, fails)
    assert skpbas.load(tmp_path / "d", device="cpu").n_iter_ == 2


def test_the_file_is_one_of_safetensors(content, tmp_path):
    (tmp_path / "d").write_bytes(content)
    expected, found = safetensors.torch.load(content), read(tmp_path / "d")[1]
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in found)


def test_a_file_of_format_1_gives_the_scores_that_were_stored_with_it():
    path = GOLDEN / "format_1.skpbas"
    assert path.stat().st_size < 60_000
    assert read(path)[0]["versions"]["skpbas"] == "0.1.0"
    detector, expected = skpbas.load(path, device="cpu"), np.load(GOLDEN / "format_1.npz")
    images = expected["images"]
    rtol = 1e-4  # about 2,000 roundings to float32: another machine adds up in another order
    np.testing.assert_allclose(detector.score_samples(images), expected["scores"], rtol=rtol)
    np.testing.assert_allclose(detector.anomaly_map(images), expected["maps"], rtol=rtol)
    np.testing.assert_array_equal(detector.predict(images), expected["labels"])
    np.testing.assert_array_equal(detector.p_values(images), expected["p_values"])
    assert set(expected["labels"]) == {1, -1}


@given(st.data())
def test_any_flipped_bit_is_detected(content, tmp_path_factory, data):
    place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 1500))
    damaged = bytearray(content)
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    refusal(bytes(damaged), tmp_path_factory.getbasetemp())


def test_a_file_that_is_cut_off_anywhere_is_refused(content, tmp_path):
    size = 8 + int.from_bytes(content[:8], "little")
    for end in {*range(0, 160, 3), size - 1, size, size + 1, *range(0, len(content), 997), len(content) - 1}:
        refusal(content[:end], tmp_path)


def test_bytes_at_the_end_are_refused_with_a_checksum_that_fits_too(content, tmp_path):
    assert "checksum" in refusal(content + b"\0", tmp_path)
    assert "1 bytes behind the tensors" in refusal(with_checksum(content + b"\0"), tmp_path)


def test_damage_says_what_to_do(content, tmp_path):
    damaged = bytearray(content)
    damaged[-1] ^= 1
    message = refusal(bytes(damaged), tmp_path)
    assert message == (
        "its content does not match its checksum: copy the file again from its source, or fit and save again"
    )


def test_another_format_is_named_with_the_one_that_is_read(content, tmp_path):
    other = content.replace(b'"skpbas 1"', b'"skpbas 2"')
    assert refusal(other, tmp_path).startswith(f"it has format 2, and this is skpbas {skpbas.__version__}, which reads")


def test_other_files_are_refused(fitted_quick, tmp_path):
    assert "joblib" in refusal(pickle.dumps(fitted_quick), tmp_path)
    assert "not a detector" in refusal(b"", tmp_path)
    assert "not a detector" in refusal(safetensors.torch.save({"a": torch.zeros(3)}), tmp_path)
    with pytest.raises(FileFormatError, match="not a regular file"):
        skpbas.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        skpbas.load(tmp_path / "missing")


def test_a_header_that_claims_to_be_huge_costs_no_memory(content, tmp_path):
    for size in (2**20 + 1, 2**40, 2**63, len(content)):
        tracemalloc.start()
        assert "its header claims" in refusal(size.to_bytes(8, "little") + content[8:], tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (r'"center":\{"dtype":"F32"', '"center":{"dtype":"F16"', "type that this format does not know"),
        (r'"center":\{"dtype":"F32"', '"center":{"dtype":"I64"', "not of its shape's size"),
        (r'"center":\{"dtype":"F32"', '"center":{"dtype":["F32"]', "type that this format does not know"),
        (r'(?<="center":\{"dtype":"F32","shape":)\[\d+', "[4611686018427387904", "does not fit into a file"),
        (r'(?<="center":\{"dtype":"F32","shape":)\[\d+', "[-1", "does not fit into a file"),
        (r'(?<="center":\{"dtype":"F32","shape":)\[\d+', "[true", "no valid shape"),
        (r'(?<="center":\{"dtype":"F32","shape":)\[\d+', "[1.0", "no valid shape"),
        (r'(?<="center":\{"dtype":"F32","shape":)\[[\d,]+\]', "[" + "9," * 9 + "9]", "no valid shape"),
        (r'(?<="data_offsets":)\[0', "[8", "not where those before it end"),
        (r'"center"', '"centre"', "the tensor 'center' is missing"),
        (r'"training_outliers"', '"more"', "the tensor 'training_outliers' is missing"),
        (r'"center":', '"center":0,"center":', "the name 'center' occurs twice"),
        (r'"center":', '"center": ', "not written as this format writes it"),
        (r'"center":\{', '"center":{"more":1,', "is not one of this format"),
        (r"\}\}$", "}", "not valid JSON"),
        (r'(?<="data_offsets":)\[0', "[NaN", "NaN is not a number"),
        (r'(?<="data_offsets":)\[0', "[1e999", "not valid JSON"),
        (r'(?<="data_offsets":)\[0', "[" + "9" * 5000, "not valid JSON"),
        (r'(?<="data_offsets":)\[0', "[" + "[" * 50_000 + "]" * 50_000, "not valid JSON|not where|not written"),
    ],
)
def test_hostile_headers_with_fitting_checksums_are_refused(old, new, reason, content, tmp_path):
    changed = with_header(content, lambda header: re.sub(old, lambda _: new, header, count=1))
    assert changed != content
    assert re.search(reason, refusal(changed, tmp_path))


def set_to(*keys, value):
    def change(document):
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_to("kind", value="Forest"), "it holds 'Forest', not a PBASDetector"),
        (set_to("more", value=1), "description: 'more' is unknown"),
        (lambda document: document.pop("reading"), "description: 'reading' is missing"),
        (lambda document: document["parameters"].pop("alpha"), "parameters: 'alpha' is missing"),
        (set_to("parameters", "device", value="cpu"), "parameters: 'device' is unknown"),
        (set_to("parameters", "alpha", value=-1.0), "a parameter is not valid: .*'alpha'"),
        (set_to("parameters", "n_exemplars", value=True), "a parameter is not valid: .*'n_exemplars'"),
        (set_to("parameters", "layers", value=[1]), "a parameter is not valid: layers"),
        (set_to("parameters", "backbone", value=None), "a parameter is not valid: .*'backbone'"),
        (set_to("parameters", "image_size", value={"a": 1}), "a parameter is not valid"),
        (set_to("network", "feature_dim", value=10**9), "network: 'feature_dim' has no valid value"),
        (set_to("network", "feature_dim", value=25), "the projector does not fit"),
        (set_to("network", "patch_size", value=2), "'patch_size' has a value that does not fit"),
        (set_to("network", "input_shape", value=[10**9, 32]), "network: 'input_shape' has no valid value"),
        (set_to("network", "input_shape", value=[8192, 8192]), "'input_shape' has a value that does not fit"),
        (set_to("network", "input_shape", value=[64, 64]), "the center set does not fit the network's input"),
        (set_to("network", "input_shape", value=[16, 32]), "feature maps do not fit the network"),
        (set_to("network", "layers", value=["layer9", "layer2"]), "the center set does not fit the network's input"),
        (set_to("network", "layers", value=["layer1", "layer9"]), "no detector can be made of it .*layer9"),
        (set_to("network", "weights", value="given"), "'weights' has a value that does not fit"),
        (set_to("network", "stored", value=True), "differ in"),
        (set_to("network", "scales", value=[1.0, 0.5]), "'temperatures' has a value that does not fit"),
        (set_to("reading", "view_shape", value=[64, 64]), "the network's input is no tile"),
        (set_to("scorer", "smoothing_sigma", value=1e9), "scorer: 'smoothing_sigma' has no valid value"),
        (set_to("scorer", "kind", value="discriminator"), "'temperatures' has a value that does not fit"),
        (set_to("fitted", "offset", value="0"), "fitted: 'offset' has no valid value"),
        (set_to("fitted", "n_iter", value=3), "the tensor 'loss_curve' has type"),
        (set_to("fitted", "n_samples_fit", value=7), "the tensor 'training_scores' has type"),
        (set_to("good_statistics", "kinds", value=["int3"]), "the statistics of the good images are not valid"),
        (set_to("good_statistics", value=[]), "the statistics of the good images are not valid"),
        (set_to("versions", "torch", value=3), "the versions are not text"),
    ],
)
def test_hostile_descriptions_with_fitting_checksums_are_refused(change, reason, content, tmp_path):
    assert re.search(reason, refusal(with_document(content, change), tmp_path))


def test_impossible_numbers_and_unknown_tensors_are_refused(content, tmp_path):
    path = tmp_path / "d"
    path.write_bytes(content)
    document, tensors = read(path)
    bad = tensors["center"].clone()
    bad[0, 0] = torch.nan
    assert "'center' has values that are not finite" in refusal(encoded(document, {**tensors, "center": bad}), tmp_path)
    negative = {**tensors, "discriminator.norm.running_var": -tensors["discriminator.norm.running_var"]}
    assert "'discriminator.norm.running_var' has negative variances" in refusal(encoded(document, negative), tmp_path)
    more = encoded(document, {**tensors, "more": torch.zeros(2)})
    assert "unknown tensor 'more'" in refusal(more, tmp_path)
    for name in tensors:
        without = {key: value for key, value in tensors.items() if key != name}
        assert refusal(encoded(document, without), tmp_path)
        larger = torch.cat([tensors[name].flatten(), tensors[name].flatten(), tensors[name].new_ones(1)])
        if name != "training_outliers":  # of any number
            assert refusal(encoded(document, {**tensors, name: larger}), tmp_path)
        other = tensors[name].double() if tensors[name].dtype != torch.float64 else tensors[name].float()
        assert refusal(encoded(document, {**tensors, name: other}), tmp_path)
    assert encoded(document, tensors) == content


def test_four_hundred_mutations_give_no_wrong_score_no_other_error_and_no_hang(tmp_path):
    outcomes = mutate_saved.run(400, seed=1, folder=tmp_path)
    assert sum(sum(counts.values()) for counts in outcomes.values()) == 400
    assert [kind for kind, counts in outcomes.items() if any(counts[name] for name in mutate_saved.FAILURES)] == []
    assert outcomes["damaged"][mutate_saved.REFUSED] == 200
    assert outcomes["edited"][mutate_saved.REFUSED] > 150


def test_scores_that_differ_would_be_found(tmp_path):
    saved = mutate_saved.Saved(tmp_path)
    other = with_document(saved.content, set_to("fitted", "offset", value=-9.0))
    assert saved.outcome(other, meaning=False) == mutate_saved.WRONG
    assert saved.outcome(other, meaning=True) == "another detector"
    assert saved.outcome(saved.content, meaning=False) == mutate_saved.EQUAL
    assert edited(saved.content, lambda text, _: text, np.random.default_rng(0)) == saved.content


def test_a_detector_with_random_weights_of_any_kind_comes_back(fitted, good_images, tmp_path):
    opened = reopened(fitted, tmp_path)
    np.testing.assert_array_equal(opened.score_samples(good_images), fitted.score_samples(good_images))
    assert clone(opened).get_params() == small_detector().get_params()
