"""Pickles from another machine can be loaded on this one."""

import pickle
import pickletools

import numpy as np
import pytest
import torch
from helpers import GOLDEN, ROOT

CUDA_DETECTOR = GOLDEN / "cuda_detector.pkl"


@pytest.fixture
def without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_detector_fitted_on_cuda_loads_without_cuda_and_gives_the_same_scores(without_cuda):
    with pytest.warns(UserWarning, match="computed on cuda:0, which this machine does not have") as warned:
        content = pickle.loads(CUDA_DETECTOR.read_bytes())
    assert len(warned) == 1
    detector = content["detector"]
    assert detector.device == "cuda"
    assert detector.device_ == torch.device("cpu")
    tensors = [*detector.model_.state_dict().values(), detector.center_, *detector.projector_.parameters()]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    assert detector.model_.extractor is detector.feature_extractor_
    scores = detector.score_samples(content["images"])
    np.testing.assert_allclose(scores, content["scores"], rtol=1e-4)  # different kernels round differently
    assert set(detector.predict(content["images"])) <= {1, -1}


def test_the_committed_detector_was_fitted_on_cuda():
    names = [argument for _, argument, _ in pickletools.genops(CUDA_DETECTOR.read_bytes()) if isinstance(argument, str)]
    assert names.count("cuda") >= 2  # the parameter and the device of the fit


def test_the_tool_recreates_the_committed_file(without_cuda):
    import make_cuda_detector

    made = make_cuda_detector.make_state()
    with pytest.warns(UserWarning, match="computed on cuda:0"):
        committed = pickle.loads(CUDA_DETECTOR.read_bytes())
    with pytest.warns(UserWarning, match="computed on cuda:0"):
        trees = [attributes_of(content["detector"]) for content in (made, committed)]
    assert (ROOT / "tools" / "make_cuda_detector.py").is_file()
    np.testing.assert_array_equal(made["images"], committed["images"])
    assert made["detector"].get_params().keys() == committed["detector"].get_params().keys()
    assert trees[0] == trees[1]  # if these change, raise FORMAT and regenerate the file


def attributes_of(detector):
    """Return the names of what is stored, of the detector and of every module in it."""
    stored = pickle.loads(pickle.dumps(detector))
    modules = {name: module.__getstate__().keys() for name, module in stored.model_.named_modules()}
    return vars(stored).keys(), modules
