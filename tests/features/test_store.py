"""Storage of features: in memory, on disk, and across fits."""

import copy
import os
import subprocess
import sys
import tempfile
import textwrap
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import torch
from helpers import small_detector
from PIL import Image

import skpbas._features.store
from skpbas._features.store import FeatureStore
from skpbas.core.coreset import Coreset
from skpbas.errors import ImageNotFoundError, StorageError

SHAPES = [(6, 4, 5), (8, 2, 3)]


def random_maps(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, *shape, generator=generator) for shape in SHAPES]


@pytest.mark.parametrize("budget", [0, 2**30], ids=["on disk", "in memory"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_store_returns_what_was_put(dtype, budget):
    maps = random_maps(7)
    store = FeatureStore(7, SHAPES, dtype, budget=budget)
    assert store.mapped == (budget == 0)
    for start in (0, 3, 6):
        store.put(start, [level[start : start + 3] for level in maps])
    index = torch.tensor([5, 0, 6, 5])
    for found, level in zip(store.get(index), maps, strict=True):
        torch.testing.assert_close(found, level[index].to(dtype), rtol=0, atol=0)
    assert store.nbytes == 7 * (6 * 20 + 8 * 6) * dtype.itemsize


@pytest.mark.parametrize("budget", [0, 2**30], ids=["on disk", "in memory"])
def test_values_out_of_range_of_float16_are_stored_in_float32(budget):
    maps = random_maps(4)
    maps[0][2, 0, 0, 0] = 1e5
    store = FeatureStore(4, SHAPES, torch.float16, budget=budget)
    for i in range(4):
        store.put(i, [level[i : i + 1] for level in maps])
    found = store.get(torch.arange(4))
    assert [level.dtype for level in found] == [torch.float32, torch.float16]
    assert found[0][2, 0, 0, 0] == 1e5
    torch.testing.assert_close(found[0][:2], maps[0][:2].half().float(), rtol=0, atol=0)


def test_a_store_on_disk_leaves_no_file_behind_even_when_killed(tmp_path):
    program = textwrap.dedent(
        """
        import os, signal, torch
        from skpbas._features.store import FeatureStore
        store = FeatureStore(64, [(64, 16, 16)], torch.float32, budget=0)
        store.put(0, [torch.ones(64, 64, 16, 16)])
        print(os.listdir(os.environ["TMPDIR"]), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, check=False
    )
    assert ended.returncode < 0, ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_space_raises_an_error_with_advice(monkeypatch):
    monkeypatch.setattr(skpbas._features.store.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(StorageError, match=r"need 1\.0 GB on disk, but .* has only 0\.0 GB free: .* TMPDIR"):
        FeatureStore(1000, [(256, 32, 32)], torch.float32, budget=0)


def test_a_disk_that_fills_up_during_allocation_raises_an_error(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(skpbas._features.store.os, "posix_fallocate", full, raising=False)
    with pytest.raises(StorageError, match=rf"cannot store .* in {tempfile.gettempdir()} .*No space left"):
        FeatureStore(4, SHAPES, torch.float32, budget=0)


def test_features_in_memory_and_on_disk_give_the_same_detector(good_images, monkeypatch):
    in_memory = small_detector().fit(good_images).score_samples(good_images)
    monkeypatch.setattr(skpbas._features.store, "MEMORY_BUDGET", 0)
    on_disk = small_detector().fit(good_images).score_samples(good_images)
    np.testing.assert_array_equal(in_memory, on_disk)


@pytest.mark.parametrize("kind", ["arrays", "paths", "PIL images"])
def test_with_memory_the_backbone_runs_on_new_images_only(kind, good_images, tmp_path, backbone_calls):
    X = good_images
    if kind == "paths":
        X = [tmp_path / f"{i}.png" for i in range(len(good_images))]
        for path, image in zip(X, good_images, strict=True):
            Image.fromarray(image).save(path)
    elif kind == "PIL images":
        X = [Image.fromarray(image) for image in good_images]
    n = len(X)
    small_detector(memory=tmp_path / "cache").fit(X)
    assert sum(backbone_calls) == n
    detector = small_detector(memory=tmp_path / "cache", alpha=0.5, patch_size=5, feature_dim=48).fit(X)
    assert sum(backbone_calls) == n
    detector.score_samples(X)
    detector.anomaly_map(X)
    assert sum(backbone_calls) == n
    detector.score_samples(255 - good_images[:3])
    assert sum(backbone_calls) == n + 3


def test_memory_changes_scores_by_no_more_than_half_precision(fitted, good_images, tmp_path):
    detector = copy.deepcopy(fitted).set_params(memory=tmp_path)
    np.testing.assert_allclose(detector.score_samples(good_images), fitted.score_samples(good_images), atol=0.02)


def test_memory_may_be_a_joblib_memory(good_images, tmp_path):
    first = small_detector(memory=str(tmp_path)).fit(good_images)
    second = small_detector(memory=joblib.Memory(tmp_path, verbose=0)).fit(good_images)
    np.testing.assert_array_equal(second.score_samples(good_images), first.score_samples(good_images))


@pytest.mark.parametrize(
    "params", [{"image_size": 32}, {"layers": ("layer1", "layer2")}, {"random_state": 1}, {"precision": "float32"}]
)
def test_entries_of_another_network_or_size_are_not_used(params, good_images, tmp_path, backbone_calls):
    small_detector(memory=tmp_path).fit(good_images)
    backbone_calls.clear()
    small_detector(memory=tmp_path, **params).fit(good_images)
    assert sum(backbone_calls) == len(good_images)


def test_concurrent_processes_share_the_memory(good_images, tmp_path):
    fits = [joblib.delayed(small_detector(memory=tmp_path).fit)(good_images) for _ in range(4)]
    detectors = joblib.Parallel(n_jobs=2)(fits)
    assert len({detector.offset_ for detector in detectors}) == 1


def test_crop_also_warns_about_images_whose_feature_maps_are_cached(tmp_path):
    wide = np.random.default_rng(0).integers(0, 256, (4, 64, 128, 3), dtype=np.uint8)
    for _ in range(2):
        with pytest.warns(UserWarning, match="up to 50% of the area of 4 of 4 images"):
            small_detector(resize="crop", max_epochs=1, memory=tmp_path).fit(wide)


def test_a_rotated_image_is_not_confused_with_the_same_pixels_unrotated(good_images, tmp_path, backbone_calls):
    detector = small_detector(memory=tmp_path).fit(good_images)
    plain, rotated = Image.fromarray(good_images[0]), Image.fromarray(good_images[0])
    rotated.getexif()[0x0112] = 6  # rotated by 90 degrees when displayed
    backbone_calls.clear()
    scores = [detector.score_samples([image])[0] for image in (plain, rotated)]
    assert sum(backbone_calls) == 2
    assert scores[0] != scores[1]


def test_a_file_that_disappears_is_named_with_memory_too(fitted, good_images, tmp_path):
    detector = copy.deepcopy(fitted).set_params(memory=tmp_path / "cache")
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path in paths:
        Image.fromarray(good_images[0]).save(path)
    scores = detector.iter_scores_and_maps(paths)
    paths[1].unlink()
    with pytest.raises(ImageNotFoundError, match=r"X\[1\] .*1\.png"):
        list(scores)


def test_with_memory_exemplars_are_selected_again_only_for_other_features(good_images, tmp_path, monkeypatch):
    calls = []
    select = Coreset.of.__func__
    monkeypatch.setattr(
        Coreset, "of", classmethod(lambda cls, *args, **how: calls.append(1) or select(cls, *args, **how))
    )
    for alpha in (0.3, 0.5):
        small_detector(memory=tmp_path, contamination=0.1, alpha=alpha).fit(good_images)
    assert len(calls) == 2  # among all images, and without a fifth of them
    small_detector(memory=tmp_path, contamination=0.1).fit(good_images[:-1])
    small_detector(memory=tmp_path, contamination=0.1, patch_size=1).fit(good_images)
    small_detector(memory=tmp_path, contamination=0.1, random_state=1).fit(good_images)
    assert len(calls) == 8


def test_cached_exemplars_give_the_same_scores(good_images, tmp_path):
    first, second = (small_detector(memory=tmp_path, alpha=0.5).fit(good_images) for _ in range(2))
    np.testing.assert_array_equal(first.score_samples(good_images), second.score_samples(good_images))
    assert first.offset_ == second.offset_
