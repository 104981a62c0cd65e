"""Entries of ``memory``: read only if they are sound, written whole or not at all, and never opened as code."""

import os
import pickle
import time
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from helpers import small_detector
from PIL import Image
from safetensors.torch import load_file, save_file

import skpbas._features.entries as entries
from skpbas import trim_memory
from skpbas._features.entries import FORMAT, EntryFolder
from skpbas.errors import StorageError


def files_of(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def random_tensors():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 3, 4, 5, generator=generator).half(), torch.arange(7), torch.rand(2, generator=generator)]


def equal(found, tensors):
    return [t.dtype for t in found] == [t.dtype for t in tensors] and all(map(torch.equal, found, tensors))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_entry_gives_back_what_was_written(tmp_path, dtype):
    folder = EntryFolder(tmp_path)
    tensors = [tensor.to(dtype) for tensor in random_tensors()]
    folder.write("ab12", tensors, [64, 48])
    found, note = EntryFolder(tmp_path).read("ab12")
    assert equal(found, tensors)
    assert note == [64, 48]
    assert files_of(tmp_path) == [tmp_path / f"skpbas-{FORMAT}" / "ab" / "ab12.safetensors"]


def test_no_flipped_bit_and_no_cut_gives_other_tensors(tmp_path):
    folder, tensors = EntryFolder(tmp_path), random_tensors()
    folder.write("ab12", tensors, [64, 48])
    path = folder.path("ab12")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    mutants = [whole[:cut] for cut in range(0, len(whole), 7)]
    for bit in rng.permutation(len(whole) * 8)[:2000].tolist():
        mutants.append(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
    for mutant in mutants:
        path.write_bytes(mutant)
        found = folder.read("ab12")
        assert found is None or (equal(found[0], tensors) and found[1] == [64, 48])


def test_an_entry_under_the_name_of_another_is_none(tmp_path):
    folder = EntryFolder(tmp_path)
    folder.write("ab12", random_tensors())
    folder.path("ab12").rename(folder.path("ab12").with_name("ab34.safetensors"))
    assert folder.read("ab34") is None


@pytest.mark.parametrize("change", ["NaN", "shape", "dtype", "note"])
def test_what_cannot_be_feature_maps_of_the_network_is_computed_again_and_written_over(
    change, good_images, tmp_path, backbone_calls
):
    """Even where whoever wrote it gave it a digest that fits."""
    detector = small_detector(memory=tmp_path).fit(good_images)
    expected = detector.score_samples(good_images)
    folder, n_changed = EntryFolder(tmp_path), 0
    for path in files_of(tmp_path):
        maps, note = folder.read(path.stem)
        if note is None:
            continue
        n_changed += 1
        if change == "NaN":
            maps[0][0, 0, 0, 0] = torch.nan
        elif change == "shape":
            maps = [level[..., :-1] for level in maps]
        elif change == "dtype":
            maps = [level.to(torch.int32) for level in maps]
        folder.write(path.stem, maps, [0, "a"] if change == "note" else note)
    assert n_changed == len(good_images)
    backbone_calls.clear()
    for n_passes in (len(good_images), 0):
        np.testing.assert_array_equal(detector.score_samples(good_images), expected)
        assert sum(backbone_calls) == n_passes
        backbone_calls.clear()


def test_damaged_entries_change_no_fit(good_images, tmp_path):
    scores = small_detector(memory=tmp_path).fit(good_images).score_samples(good_images)
    rng = np.random.default_rng(0)
    for path in files_of(tmp_path):
        content = np.frombuffer(path.read_bytes(), np.uint8).copy()
        at = rng.integers(len(content) - 64)
        content[at : at + 64] = rng.integers(0, 256, 64)
        path.write_bytes(content.tobytes())
    again = small_detector(memory=tmp_path).fit(good_images)
    np.testing.assert_array_equal(again.score_samples(good_images), scores)


class _Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_an_entry_that_was_replaced_by_a_pickle_runs_no_code(good_images, tmp_path):
    folder = tmp_path / "cache"
    small_detector(memory=folder).fit(good_images)
    for path in files_of(folder):
        path.write_bytes(pickle.dumps(_Runs(tmp_path / "ran")))
    small_detector(memory=folder).fit(good_images)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(_Runs(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()  # as it would have, had an entry been opened as a pickle


def test_entries_are_plain_safetensors(good_images, tmp_path):
    small_detector(memory=tmp_path).fit(good_images)
    shapes = {tuple(level.shape for level in load_file(path).values()) for path in files_of(tmp_path)}
    assert ((1, 8, 8, 128), (1, 4, 4, 256)) in shapes
    save_file({"0": torch.zeros(1)}, files_of(tmp_path)[0])  # without our note: none of ours
    assert EntryFolder(tmp_path).read(files_of(tmp_path)[0].stem) is None


def test_a_full_disk_costs_one_warning_and_no_fit(good_images, tmp_path, monkeypatch):
    expected = small_detector(memory=tmp_path / "enough").fit(good_images).score_samples(good_images)

    def full(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        detector = small_detector(memory=tmp_path / "full").fit(good_images)
    assert [str(warning.message).split(":")[0] for warning in caught] == [
        f"memory='{tmp_path / 'full'}' cannot be written ([Errno 28] No space left on device)"
    ]
    assert files_of(tmp_path / "full") == []
    detector.set_params(memory=tmp_path / "enough")
    np.testing.assert_array_equal(detector.score_samples(good_images), expected)


@pytest.mark.parametrize("place", ["folder", "folder/below", "folder/below/it"])
def test_a_file_in_the_place_of_the_folder_is_named_before_any_work(place, good_images, tmp_path, backbone_calls):
    (tmp_path / "folder").write_text("a file")
    for memory in (tmp_path / place, joblib.Memory(None)):
        if isinstance(memory, joblib.Memory):
            memory.location = str(tmp_path / place)
        with pytest.raises(StorageError, match=rf"memory='.*{place}' cannot be a folder: .*folder is a file; use"):
            small_detector(memory=memory).fit(good_images)
    assert backbone_calls == []


def test_a_joblib_memory_without_a_location_keeps_nothing(good_images, tmp_path, backbone_calls, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_detector(memory=joblib.Memory(None), max_epochs=1).fit(good_images).score_samples(good_images)
    assert sum(backbone_calls) == 2 * len(good_images)
    assert list(tmp_path.iterdir()) == []


def test_something_that_caches_elsewhere_is_refused(good_images):
    class Elsewhere:
        def cache(self, function):
            return function

    with pytest.raises(ValueError, match="has no folder on a file system: give a path, or a joblib"):
        small_detector(memory=Elsewhere()).fit(good_images)


def test_an_opened_detector_reads_the_folder_and_writes_nothing_until_it_is_fitted(
    good_images, tmp_path, monkeypatch, backbone_calls
):
    monkeypatch.chdir(tmp_path)
    detector = small_detector(memory="cache", max_epochs=1).fit(good_images)
    opened = pickle.loads(pickle.dumps(detector))
    backbone_calls.clear()
    scores = opened.score_samples(good_images)
    assert sum(backbone_calls) == 0
    before = files_of(tmp_path)
    np.testing.assert_array_equal(opened.score_samples(255 - good_images), detector.score_samples(255 - good_images))
    assert len(files_of(tmp_path)) == len(before) + len(good_images)  # those of the detector fitted here
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    np.testing.assert_array_equal(opened.score_samples(good_images), scores)
    assert list(elsewhere.iterdir()) == []
    (elsewhere / "cache").write_text("a file of somebody else's")
    np.testing.assert_array_equal(opened.score_samples(good_images), scores)
    monkeypatch.chdir(tmp_path)
    opened.fit(128 - good_images // 2)
    assert len(files_of(tmp_path)) > len(before) + 2 * len(good_images)


def test_palettes_count(tmp_path, good_images):
    detector = small_detector(memory=tmp_path).fit(good_images)
    plain = small_detector(max_epochs=10).fit(good_images)
    first = Image.fromarray(good_images[0]).convert("P", palette=Image.Palette.ADAPTIVE, colors=32)
    second = first.copy()
    second.putpalette(np.random.default_rng(0).integers(0, 256, 96).tolist(), "RGB")
    pictures = []
    for picture in (first, second):
        alpha = Image.new("L", picture.size, 255)
        with_alpha = Image.merge("PA", [Image.frombytes("L", picture.size, picture.tobytes()), alpha])
        with_alpha.putpalette(picture.getpalette("RGB"), "RGB")
        pictures += [picture, with_alpha]
    for _ in range(2):
        np.testing.assert_allclose(detector.score_samples(pictures), plain.score_samples(pictures), rtol=0.01)
    assert plain.score_samples([first])[0] != pytest.approx(plain.score_samples([second])[0], abs=0.2)


# Bounds ---------------------------------------------------------------------------------------------------


def write_aged(folder, keys):
    for age, key in enumerate(reversed(keys)):
        folder.write(key, [torch.zeros(1000)])
        then = time.time() - 100 * (age + 1)
        os.utime(folder.path(key), (then, then))


def test_trimming_deletes_the_oldest_entries_and_nothing_of_others(tmp_path):
    folder, keys = EntryFolder(tmp_path), [f"{i:02x}aa" for i in range(8)]
    write_aged(folder, keys)
    size = folder.path(keys[0]).stat().st_size
    others = [tmp_path / "notes.safetensors", tmp_path / "joblib" / "output.pkl", tmp_path / "skpbas-1" / "readme.txt"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(10 * size))
    assert trim_memory(tmp_path, 8 * size) == 8 * size
    assert trim_memory(str(tmp_path), 3 * size + 1) == 3 * size
    assert [folder.read(key) is not None for key in keys] == [False] * 5 + [True] * 3
    assert trim_memory(tmp_path, 0) == 0
    assert sorted(files_of(tmp_path)) == sorted(others)


def test_trimming_removes_what_a_killed_process_left_and_not_what_one_is_writing(tmp_path):
    folder = EntryFolder(tmp_path)
    folder.write("ab12", [torch.zeros(10)])
    left, current = (folder.path("ab12").with_name(f".ab{i}.part") for i in (1, 2))
    for path in (left, current):
        path.write_bytes(b"half")
    then = time.time() - 2 * entries._ABANDONED_AFTER
    os.utime(left, (then, then))
    trim_memory(tmp_path, 10**9)
    assert current.exists()
    assert not left.exists()
    assert folder.read("ab12") is not None


def test_trimming_beside_fits_changes_none_of_them(good_images, tmp_path):
    def detector(folder):
        return small_detector(memory=tmp_path / folder).set_params(backbone="embedded")

    expected = detector("other").fit(good_images).score_samples(good_images)
    (tmp_path / "cache").mkdir()
    trim = joblib.delayed(lambda: [trim_memory(tmp_path / "cache", 100_000) for _ in range(200)])
    fits = [joblib.delayed(detector("cache").fit)(good_images) for _ in range(2)]
    results = joblib.Parallel(n_jobs=2, backend="threading")([trim(), fits[0], trim(), fits[1]])
    for detector in results[1::2]:
        np.testing.assert_array_equal(detector.score_samples(good_images), expected)
    assert trim_memory(tmp_path / "cache", 100_000) <= 100_000


def test_what_cannot_be_trimmed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_bytes=-1"):
        trim_memory(tmp_path, -1)
    with pytest.raises(NotADirectoryError, match="use the value of memory"):
        trim_memory(tmp_path / "none", 0)
