"""What is stored of an estimator says what wrote it, and does not open where it is damaged."""

import copy
import io
import pickle
import platform
import subprocess
import sys

import cloudpickle
import joblib
import numpy as np
import pytest
import sklearn
import torch
from helpers import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from torch import nn

import skpbas
from skpbas import PBASDetector
from skpbas._training.sealing import FORMAT, SEAL, opened, scores_digest, sealed
from skpbas.calibration import ConformalThreshold
from skpbas.errors import FileFormatError

WAYS = {
    "pickle": lambda detector, folder: pickle.loads(pickle.dumps(detector)),
    "pickle, protocol 2": lambda detector, folder: pickle.loads(pickle.dumps(detector, protocol=2)),
    "deepcopy": lambda detector, folder: copy.deepcopy(detector),
    "cloudpickle": lambda detector, folder: pickle.loads(cloudpickle.dumps(detector)),
    "joblib": lambda detector, folder: joblib.load(joblib.dump(detector, folder / "d")[0]),
    "joblib, mapped": lambda detector, folder: joblib.load(joblib.dump(detector, folder / "d")[0], mmap_mode="r"),
    "joblib, compressed": lambda detector, folder: joblib.load(joblib.dump(detector, folder / "d", compress=3)[0]),
    "loky": lambda detector, folder: joblib.Parallel(n_jobs=2)([joblib.delayed(_itself)(detector)] * 2)[1],
}


def _itself(detector):
    return detector


class Backbone(nn.Module):
    """Has tied weights, a buffer that is not persistent, a constant, and a layer that no pass needs."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 4, 4), nn.Conv2d(6, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.c.weight = self.b.weight
        self.head = nn.Linear(6, 2)
        self.register_buffer("shift", torch.full((1,), 0.25), persistent=False)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4

    def forward(self, x):
        x = (self.c(self.b(self.a(x) + self.shift).relu())).relu()
        return self.head(x.mean((2, 3)))


def with_module(**params):
    quick = {"image_size": 32, "hidden_dim": 8, "n_exemplars": 32, "max_epochs": 2, "device": "cpu"}
    return PBASDetector(Backbone(), layers=["a", "c"], precision="float32", random_state=0, **quick, **params)


@pytest.fixture(scope="module")
def module_detector(good_images):
    return with_module().fit(good_images)


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_scores_what_the_original_does(way, fitted, module_detector, good_images, tmp_path):
    for detector in (fitted, module_detector):
        copied = WAYS[way](detector, tmp_path)
        np.testing.assert_array_equal(copied.decision_function(good_images), detector.decision_function(good_images))
        np.testing.assert_array_equal(copied.anomaly_map(good_images[:2]), detector.anomaly_map(good_images[:2]))
        assert scores_digest(copied) == scores_digest(detector)
        assert SEAL not in vars(copied)


@pytest.mark.parametrize("way", WAYS)
def test_an_unfitted_copy_and_a_clone_fit_as_the_original_does(way, module_detector, good_images, tmp_path):
    for detector in (WAYS[way](with_module(), tmp_path), clone(WAYS[way](module_detector, tmp_path))):
        scores = detector.fit(good_images).score_samples(good_images)
        np.testing.assert_array_equal(scores, module_detector.score_samples(good_images))


def test_a_state_says_what_wrote_it(fitted):
    seal = fitted.__getstate__()[SEAL]
    assert seal["format"] == FORMAT
    assert seal["versions"] == {
        "skpbas": skpbas.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "python": platform.python_version(),
    }


def opened_with(detector, change):
    """Open the state of a detector after a change to it."""
    state = detector.__getstate__()
    change(state)
    PBASDetector.__new__(type(detector)).__setstate__(state)


def test_a_state_of_another_format_says_what_wrote_it_and_what_opens_it(fitted):
    def of_a_later_version(state):
        state[SEAL] = {**state[SEAL], "format": FORMAT + 1, "versions": {**state[SEAL]["versions"], "skpbas": "7.1"}}

    with pytest.raises(
        FileFormatError,
        match=rf"this PBASDetector was written by skpbas 7\.1 \(format {FORMAT + 1}\), and this is skpbas "
        rf"{skpbas.__version__} \(format {FORMAT}\): fit again, or open it with skpbas 7\.1",
    ):
        opened_with(fitted, of_a_later_version)


def test_a_state_without_a_format_is_refused(fitted):
    with pytest.raises(FileFormatError, match=r"no format number, and this is skpbas .*: fit again, or open it with"):
        opened_with(fitted, lambda state: state.pop(SEAL))


class Gain:
    def __init__(self, value):
        self.value = value


class WithConfig(Backbone):
    def __init__(self):
        super().__init__()
        self.gain = Gain(1.5)

    def forward(self, x):
        return super().forward(x * self.gain.value)


def test_objects_of_others_are_part_of_what_is_checked(good_images):
    detector = PBASDetector(
        WithConfig(), layers=["a", "c"], image_size=32, hidden_dim=8, n_exemplars=32, max_epochs=1, device="cpu"
    ).fit(good_images)
    pickle.loads(pickle.dumps(detector))
    with pytest.raises(FileFormatError, match="does not match its digest"):
        opened_with(detector, lambda state: setattr(state["feature_extractor_"].backbone.module.gain, "value", 1.6))
    features = good_images.reshape(len(good_images), -1)[:, :50].astype(float)
    forest = IsolationForest(n_estimators=5, random_state=0)
    threshold = ConformalThreshold(forest, max_false_alarm_rate=0.3, random_state=0).fit(features)
    copied = pickle.loads(pickle.dumps(threshold))
    np.testing.assert_array_equal(copied.score_samples(features), threshold.score_samples(features))
    with pytest.raises(FileFormatError, match="does not match its digest"):
        opened_with(threshold, lambda state: setattr(state["detector_"], "_max_samples", 3))


def flip(tensor):
    tensor.view(-1).view(torch.uint8)[0] ^= 1


CHANGES = {
    "a fingerprint": lambda state: state["_reading"].training._indices.popitem(),
    "how images are read": lambda state: object.__setattr__(state["_reading"], "resize", "crop"),
    "a weight": lambda state: flip(state["projector_"].linear.weight.data),
    "an exemplar": lambda state: flip(state["model_"].patch_scorer.coreset.exemplars),
    "a buffer that is not persistent": lambda state: flip(state["feature_extractor_"].mean),
    "the smoothing": lambda state: setattr(state["model_"].renderer, "size", (1, 1)),
    "the temperature": lambda state: setattr(state["model_"].patch_scorer, "temperature", 3.5),
    "the threshold": lambda state: state.update(offset_=np.nextafter(state["offset_"], 0)),
    "a parameter": lambda state: state.update(resize="crop"),
    "one attribute more": lambda state: state.update(extra=1),
    "one attribute less": lambda state: state.pop("loss_curve_"),
    "a class": lambda state: state.update(projector_=nn.Identity()),
    "the digest": lambda state: state[SEAL].update(digest=None),
    "the versions": lambda state: state[SEAL].update(versions={"skpbas": "1"}),
    "the seal": lambda state: state.update({SEAL: []}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_state_does_not_open(what, fitted):
    detector = copy.deepcopy(fitted)
    with pytest.raises(FileFormatError, match=r"the stored PBASDetector is damaged .*copy the file again .*fit again"):
        opened_with(detector, CHANGES[what])


def test_what_is_no_state_does_not_open(fitted):
    with pytest.raises(FileFormatError, match="its state is list, not dict"):
        PBASDetector().__setstate__([])


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def differ(first, second):
    """Compare as pickles do, for which 1, 1.0 and True differ, and NaN equals itself."""
    return repr(first) != repr(second)


@settings(max_examples=200, deadline=None)
@given(plain, plain)
def test_digests_are_equal_exactly_for_equal_content(first, second):
    states = [{"value": value} for value in (first, second)]
    digests = [sealed(state)[SEAL]["digest"] for state in states]
    assert (digests[0] != digests[1]) == differ(first, second)
    copied = pickle.loads(pickle.dumps(sealed(states[0])))
    assert repr(opened(copied, object())) == repr(states[0])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(0, 3),
        torch.tensor(1.5),
        torch.tensor([True, False]),
        torch.tensor([1 + 2j]),
        torch.rand(3, 4, generator=torch.Generator().manual_seed(0)).T,
        torch.ones(2, dtype=torch.bfloat16),
        torch.eye(3).to_sparse(),
        torch.empty(2, 2, device="meta"),
    ],
    ids=["empty", "scalar", "bool", "complex", "transposed", "bfloat16", "sparse", "meta"],
)
def test_tensors_of_any_kind_can_be_stored(tensor):
    first = sealed({"t": tensor})[SEAL]["digest"]
    assert sealed({"t": copy.deepcopy(tensor)})[SEAL]["digest"] == first
    if tensor.device.type != "meta" and tensor.numel():
        assert sealed({"t": tensor + tensor})[SEAL]["digest"] != first or tensor.dtype == torch.bool


def test_a_cycle_can_be_stored():
    net = Backbone()
    net.parents = [net]
    digest = sealed({"net": net})[SEAL]["digest"]
    assert sealed({"net": pickle.loads(pickle.dumps(net))})[SEAL]["digest"] == digest


# A module given as backbone -------------------------------------------------------------------------------


def test_a_module_is_written_once_and_opens_as_two(good_images):
    wide = nn.Sequential(nn.Conv2d(3, 64, 4, 4), nn.Conv2d(64, 256, 2, 2), nn.Conv2d(256, 256, 3, 1, 1))
    params = {"layers": ["0", "2"], "image_size": 32, "hidden_dim": 8, "n_exemplars": 16, "feature_dim": 32}
    detector = PBASDetector(wide, max_epochs=1, device="cpu", random_state=0, **params).fit(good_images)
    n_bytes = sum(parameter.nbytes for parameter in wide.parameters())
    content = pickle.dumps(detector)
    assert n_bytes < len(content) < 1.5 * n_bytes
    again = pickle.loads(content)
    assert len(pickle.dumps(again)) < 1.5 * n_bytes
    scores = again.score_samples(good_images)
    with torch.no_grad():
        for parameter in again.backbone.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(again.score_samples(good_images), scores)


def test_the_module_of_an_opened_detector_is_what_was_given(module_detector):
    given, back = module_detector.backbone, pickle.loads(pickle.dumps(module_detector)).backbone
    assert [name for name, _ in back.named_modules()] == [name for name, _ in given.named_modules()]
    pairs = [*zip(given.named_parameters(), back.named_parameters(), strict=True)]
    pairs += zip(given.named_buffers(), back.named_buffers(), strict=True)
    for (name, tensor), (name_back, tensor_back) in pairs:
        assert name == name_back
        assert torch.equal(tensor, tensor_back)
        assert tensor.requires_grad == tensor_back.requires_grad
        assert tensor.stride() == tensor_back.stride()
    assert back.b.weight is back.c.weight  # tied
    assert given.a.weight.requires_grad  # the original is left alone


def test_a_module_that_was_changed_after_the_fit_is_stored_as_it_is(module_detector, good_images):
    detector = copy.deepcopy(module_detector)
    with torch.no_grad():
        detector.backbone.a.weight.add_(1)
    opened_again = pickle.loads(pickle.dumps(detector))
    assert torch.equal(opened_again.backbone.a.weight, detector.backbone.a.weight)
    np.testing.assert_array_equal(opened_again.score_samples(good_images), module_detector.score_samples(good_images))


class StoresItself(Backbone):
    def __getstate__(self):
        return {"state": {name: tensor.clone() for name, tensor in self.state_dict().items()}}

    def __setstate__(self, state):
        StoresItself.__init__(self)
        self.load_state_dict(state["state"], strict=False)


def test_a_module_with_pickling_methods_of_its_own_opens_and_is_checked(good_images):
    detector = with_module().set_params(backbone=StoresItself()).fit(good_images)
    again = pickle.loads(pickle.dumps(detector))
    with torch.no_grad():
        again.backbone.a.bias.add_(1)
    state = again.__getstate__()
    state["backbone"] = detector.backbone
    with pytest.raises(FileFormatError, match="is damaged"):
        PBASDetector.__new__(PBASDetector).__setstate__(state)


def test_a_class_of_main_travels_by_cloudpickle(tmp_path):
    writer = f"""
import cloudpickle, numpy as np, torch
from torch import nn
from skpbas import PBASDetector
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.a, self.b = 2.0, nn.Conv2d(3, 6, 4, 4), nn.Conv2d(6, 8, 2, 2)
    def forward(self, x):
        return self.b((self.a(x) * self.scale).relu())
X = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
detector = PBASDetector(Net(), layers=["a", "b"], image_size=32, hidden_dim=8, max_epochs=1, device="cpu").fit(X)
with open({str(tmp_path / "d")!r}, "wb") as file:
    cloudpickle.dump((detector, X, detector.score_samples(X)), file)
"""
    subprocess.run([sys.executable, "-c", writer], check=True, cwd=ROOT)
    detector, X, scores = pickle.loads((tmp_path / "d").read_bytes())
    np.testing.assert_allclose(detector.score_samples(X), scores, rtol=1e-5)


# Other estimators -----------------------------------------------------------------------------------------


def test_a_calibrated_detector_is_checked_too(module_detector, good_images):
    model = ConformalThreshold(with_module(), max_false_alarm_rate=0.2, random_state=0).fit(good_images)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.decision_function(good_images), model.decision_function(good_images))
    state = again.__getstate__()
    state["calibration_scores_"] = np.flip(state["calibration_scores_"])
    with pytest.raises(FileFormatError, match="the stored ConformalThreshold is damaged"):
        ConformalThreshold.__new__(ConformalThreshold).__setstate__(state)


def test_digests_of_scores_know_detectors_apart_and_ignore_where_they_run(module_detector, good_images):
    same = with_module(n_jobs=2, verbose=0).fit(good_images)
    assert scores_digest(same) == scores_digest(module_detector)
    other = with_module(alpha=0.5).fit(good_images)
    other.offset_ = module_detector.offset_
    assert scores_digest(other) != scores_digest(module_detector)
    X = np.random.default_rng(0).normal(size=(60, 2))
    forests = [IsolationForest(random_state=seed).fit(X) for seed in (0, 0, 1)]
    models = [ConformalThreshold(f, max_false_alarm_rate=0.1, random_state=0).fit(X) for f in forests]
    for group in (forests, models):
        first, second, third = map(scores_digest, group)
        assert first == second != third
        for again in (joblib.load(_through_joblib(group[0])), pickle.loads(pickle.dumps(group[0]))):
            assert scores_digest(again) == first


def _through_joblib(estimator):
    file = io.BytesIO()
    joblib.dump(estimator, file)
    file.seek(0)
    return file
