"""skpbas fit: a checked folder, a detector in a file, and the card that says what to expect of it."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import save
from helpers import textured_images

import skpbas
from skpbas import PBASDetector
from skpbas.__main__ import main, make_parser
from skpbas._cli import readiness
from skpbas._cli.options import NOT_OPTIONS, OWN_DEFAULTS, parameters_of
from skpbas._cli.readiness import (
    GENERATED,
    SPOTS,
    DefectSizes,
    advice,
    defect_sizes,
    interval,
    readiness_card,
    with_spot,
)

QUICK = ["--image-size", "64", "--epochs", "1", "--device", "cpu", "--random-state", "0"]


def parsed(*options: str) -> dict[str, object]:
    return parameters_of(make_parser().parse_args(["fit", "good", "-o", "part.skpbas", *options]))


# Options --------------------------------------------------------------------------------------------------


def test_every_parameter_of_the_estimator_is_an_option_with_its_default_in_the_help():
    parser = make_parser()._subparsers._group_actions[0].choices["fit"]
    text = parser.format_help()
    helps = {action.dest: action.help for action in parser._actions}
    for name, parameter in inspect.signature(PBASDetector).parameters.items():
        if name in NOT_OPTIONS:
            continue
        assert f"--{name.replace('_', '-')}" in text
        default = OWN_DEFAULTS.get(name, parameter.default)
        shown = "none" if default is None else ",".join(map(str, default)) if isinstance(default, tuple) else default
        assert f"(default: {shown}" in helps[name], name
        assert helps[name][0].isupper() or helps[name][0] in '"t', name  # described
    assert "in Python: wide_resnet50_2" in helps["backbone"]


def test_without_options_only_the_defaults_of_the_command_line_differ_from_the_estimator():
    assert parsed() == {}
    assert OWN_DEFAULTS == {"backbone": "embedded"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--image-size", "384"], {"image_size": 384}),
        (["--image_size=320x128"], {"image_size": (320, 128)}),
        (["--layers", "layer1,layer2"], {"layers": ("layer1", "layer2")}),
        (["--scales", "1,0.5"], {"scales": (1.0, 0.5)}),
        (["--weights", "none"], {"weights": None}),
        (["--weights", "a/b.pth", "--backbone", "resnet18"], {"weights": "a/b.pth", "backbone": "resnet18"}),
        (["--tile", "512"], {"tile": 512}),
        (["--tile", "none"], {"tile": None}),
        (["--no-exclude-outliers"], {"exclude_outliers": False}),
        (["--exclude_outliers"], {"exclude_outliers": True}),
        (["--contamination", "0.02"], {"contamination": 0.02}),
        (["--contamination", "auto"], {"contamination": "auto"}),
        (["--max-epochs", "auto"], {"max_epochs": "auto"}),
        (["--epochs", "3"], {"max_epochs": 3}),
        (["--patches-per-step", "none"], {"patches_per_step": None}),
        (["--synthesis", "none"], {"synthesis": None}),
        (["--random-state", "3"], {"random_state": 3}),
        (["--n-jobs", "-1"], {"n_jobs": -1}),
        (["--memory", "features"], {"memory": "features"}),
        (["--alpha", "1e-1"], {"alpha": 0.1}),
    ],
)
def test_options_become_parameters_of_their_type(options, expected):
    given = parsed(*options)
    assert given == expected
    assert {name: type(value) for name, value in given.items()} == {n: type(v) for n, v in expected.items()}
    PBASDetector(**given)._validate_params()


def test_a_value_of_another_type_is_wrong_use(capsys):
    with pytest.raises(SystemExit) as end:
        parsed("--tile", "large")
    assert end.value.code == 2
    assert "argument --tile: invalid whole number value: 'large'" in capsys.readouterr().err


# The command ----------------------------------------------------------------------------------------------


@pytest.fixture
def good(tmp_path) -> Path:
    """Ten good images in two folders, and two files that cannot be read."""
    for i, image in enumerate(textured_images(10, 64, seed=2)):
        save(image, tmp_path / "good" / ("monday" if i < 5 else "tuesday") / f"{i}.png")
    (tmp_path / "good" / "broken.png").write_bytes(b"no image")
    save(np.zeros((5, 5), np.uint8), tmp_path / "good" / "tiny.png")
    return tmp_path / "good"


def test_a_fit_goes_on_after_bad_files_and_ends_with_a_card(good, tmp_path, capsys):
    output = tmp_path / "part.skpbas"
    assert main(["fit", str(good), "-o", str(output), *QUICK]) == 3
    out, err = capsys.readouterr()
    unreadable = [line for line in err.splitlines() if line.startswith("unreadable: ")]
    assert [str(good / name) in line for name, line in zip(("broken.png", "tiny.png"), unreadable, strict=True)] == [
        True
    ] * 2
    assert "learning from 10 images" in out
    assert "with the backbone embedded" in out
    detector = skpbas.load(output)
    assert detector.n_samples_fit_ + len(detector.training_outliers_) == 10
    card = out[out.index("readiness card") :]
    for line in ("images learned", "false alarms", "generated defects", "smallest defect", "a prediction", "advice"):
        assert line in card
    assert "2 could not be read" in card
    left_out = len(detector.training_outliers_)
    assert ("left out" in card.partition("false alarms")[0]) == (left_out > 0)
    assert "X[None]" not in err
    assert "training images, scored as if they were new" in card
    assert f"{detector.n_samples_fit_} images show little" in card
    assert int(card.partition("a process that predicts takes ")[2].split()[0]) > 50  # MiB


def test_of_a_data_set_only_the_good_training_images_are_learned(parts, tmp_path, capsys):
    output = tmp_path / "part.skpbas"
    assert main(["fit", str(parts), "-o", str(output), *QUICK, "--no-card"]) == 0
    out = capsys.readouterr().out
    assert f"learning from 12 images of the folder {parts / 'train' / 'good'}" in out
    assert "readiness card" not in out


def test_images_that_were_left_out_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(readiness, "memory_of_prediction", lambda *_: None)
    monkeypatch.setattr(readiness, "EXTENTS", (0.3,))
    images = textured_images(12, 64, seed=4)
    images[3][10:50, 10:50] = np.random.default_rng(0).integers(0, 255, (40, 40, 3))
    for i, image in enumerate(images):
        save(image, tmp_path / "good" / f"{i}.png")
    good, output = str(tmp_path / "good"), str(tmp_path / "a.skpbas")
    assert main(["fit", good, "-o", output, *QUICK, "--holdout", good]) == 0
    out, err = capsys.readouterr()
    assert ["left", "out", str(tmp_path / "good" / "3.png")] in [line.split() for line in out.splitlines()]
    assert "look at the 1 image left out" in out
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert any("look defective beside the others" in line and "3.png" in line and "X[" not in line for line in warnings)
    assert "good images that were not learned" in out  # measured on --holdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{root}/nowhere", "-o", "{root}/a.skpbas"], "{root}/nowhere: no such folder"),
        (["{root}/empty", "-o", "{root}/a.skpbas"], "{root}/empty: no image files"),
        (["{root}/one", "-o", "{root}/a.skpbas"], "1 usable image, and fit needs at least 2"),
        (["{root}/set", "-o", "{root}/a.skpbas"], "has a folder 'test'"),
        (["{root}/mixed", "-o", "{root}/a.skpbas"], "has a folder 'NG', whose images do not seem to be good"),
        (["{root}/two", "-o", "{root}/a.skpbas", "--holdout", "{root}/mixed"], "--holdout {root}/mixed has a folder"),
        (["{root}/two", "-o", "{root}/a.skpbas", "--image-size", "0"], "--image-size 0: expected"),
        (["{root}/one", "-o", "{root}/no/a.skpbas"], "there is no folder {root}/no"),
        (["{root}/one", "-o", "{root}/a.onnx"], "skpbas export makes ONNX"),
        (
            ["{root}/two", "-o", "{root}/a.skpbas", "--holdout", "{root}/empty"],
            "--holdout {root}/empty: no image files",
        ),
        (["{root}/two", "-o", "{root}/a.skpbas", "--backbone", "resnet19"], "resnet19"),
        (["{root}/two", "-o", "{root}/a.skpbas", "--contamination", "0.9"], "contamination"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(arguments, message, tmp_path, capsys):
    images = textured_images(2, 32)
    (tmp_path / "empty").mkdir()
    save(images[0], tmp_path / "one" / "1.png")
    save(images[0], tmp_path / "set" / "test" / "bad" / "1.png")
    for i in range(2):
        save(images[i], tmp_path / "two" / f"{i}.png")
        save(images[i], tmp_path / "mixed" / ("NG" if i else ".") / f"{i}.png")
    assert main(["fit", *(argument.format(root=tmp_path) for argument in arguments)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith("skpbas fit: error: ")
    assert message.format(root=tmp_path) in errors[-1]
    assert not list(tmp_path.glob("*.skpbas"))


def test_a_failed_or_interrupted_fit_leaves_the_old_detector(parts, tmp_path, monkeypatch, capsys):
    output = tmp_path / "part.skpbas"
    output.write_bytes(b"old")
    arguments = ["fit", str(parts), "-o", str(output), *QUICK]
    for error, code in ((KeyboardInterrupt(), 130), (RuntimeError("no memory"), 2)):
        monkeypatch.setattr(PBASDetector, "fit", lambda *_, error=error: (_ for _ in ()).throw(error))
        assert main(arguments) == code
        assert output.read_bytes() == b"old"
    assert "skpbas fit: error: RuntimeError: no memory" in capsys.readouterr().err


# The card -------------------------------------------------------------------------------------------------


def test_defects_are_drawn_once_per_image_and_extent_and_larger_spots_are_found_more_often(detector, parts):
    images = sorted((parts / "train" / "good").iterdir())
    sizes = defect_sizes(detector, images, 4)
    for kind, smallest in ((GENERATED, 4), (SPOTS, 2)):
        assert sizes[kind].side == 64
        assert sizes[kind].extents == tuple(extent for extent in readiness.EXTENTS if 64 * extent >= smallest)
        assert sizes[kind].tried == (4,) * len(sizes[kind].extents)
    assert sum(sizes[SPOTS].found[-2:]) > sum(sizes[SPOTS].found[:2])


def test_the_threshold_decides_how_many_defects_are_found(detector, parts, monkeypatch):
    images = sorted((parts / "train" / "good").iterdir())[:2]
    monkeypatch.setattr(detector, "offset_", -1e9)
    assert sum(defect_sizes(detector, images)[SPOTS].found) == 0


def test_defects_on_images_that_are_flagged_without_one_are_not_counted(detector, parts, monkeypatch):
    images = sorted((parts / "train" / "good").iterdir())
    scores = detector.score_samples(images) * float(detector.model_.patch_scorer.bias)
    monkeypatch.setattr(detector, "offset_", float(np.quantile(scores, 0.3)))
    left = int((scores >= detector.offset_).sum())
    assert 0 < left < 12
    for sizes in defect_sizes(detector, images, 12).values():
        assert sizes.tried == (left,) * len(sizes.extents)
    monkeypatch.setattr(detector, "offset_", 1e9)
    assert defect_sizes(detector, images, 2)[SPOTS].extents == ()


def test_a_copy_of_a_training_image_is_scored_as_if_that_were_new(detector, parts, monkeypatch):
    """A copy without a defect is as anomalous as the image itself, whose score is that without its own exemplars."""
    monkeypatch.setattr(readiness, "_DRAW", {GENERATED: lambda *_: None, SPOTS: lambda pixels, *_: pixels.copy()})
    images = sorted((parts / "train" / "good").iterdir())
    as_new = detector.score_samples(images) * float(detector.model_.patch_scorer.bias)
    margin = 1e-4 * abs(as_new).max()
    monkeypatch.setattr(detector, "offset_", float(as_new.min()) - margin)
    assert sum(defect_sizes(detector, images, 12)[SPOTS].found) == 0
    monkeypatch.setattr(detector, "offset_", float(as_new.min()) + margin)
    assert set(defect_sizes(detector, images, 12)[SPOTS].tried) == {11}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_spot_has_its_diameter_and_contrast(dtype, level):
    white = 1 if dtype == np.float32 else np.iinfo(dtype).max
    image = np.full((200, 100, 3), level * white, dtype)
    change = (with_spot(image, 0.2, 3).astype(float) - image) / white
    assert abs(change).max() == pytest.approx(60 / 255, abs=1 / 255)
    assert (abs(change[..., 0]) > 30 / 255).sum() == pytest.approx(np.pi * 10**2, rel=0.05)
    assert image.min() == image.max()
    assert with_spot(image[..., 0], 0.2, 3).shape == (200, 100)


@pytest.mark.parametrize(
    ("found", "smallest"),
    [((0, 5, 9), 0.05), ((6, 4, 9), 0.1), ((9, 9, 9), 0.02), ((9, 9, 4), None), ((0, 0, 5), 0.1)],
)
def test_the_smallest_size_is_that_from_which_on_half_are_found(found, smallest):
    assert DefectSizes((0.02, 0.05, 0.1), found, (10, 10, 10), 100.0).smallest == smallest


def test_the_smallest_defect_reads_as_a_sentence(detector):
    sizes = DefectSizes((0.02, 0.05), (0, 9), (10, 10), 100.0)
    assert readiness._smallest(sizes, detector).startswith("a spot of about 5 pixels is found half the time")
    sizes = DefectSizes((0.02, 0.05), (9, 9), (10, 10), 100.0)
    assert readiness._smallest(sizes, detector).startswith("a spot of about 2 pixels or less is found half the time")


def test_the_interval_of_a_share_is_that_of_clopper_and_pearson():
    from scipy.stats import binom

    low, high = interval(3, 40)
    assert binom.sf(2, 40, low) == pytest.approx(0.025)
    assert binom.cdf(3, 40, high) == pytest.approx(0.025)
    assert interval(0, 40)[0] == 0
    assert binom.cdf(0, 40, interval(0, 40)[1]) == pytest.approx(0.025)
    assert interval(40, 40)[1] == 1


def test_false_alarms_are_those_of_the_training_images_as_new(detector, saved, parts, monkeypatch):
    monkeypatch.setattr(readiness, "memory_of_prediction", lambda *_: None)
    monkeypatch.setattr(readiness, "EXTENTS", (0.3,))
    images = sorted((parts / "train" / "good").iterdir())
    card = "\n".join(readiness_card(detector, saved, images))
    scores = detector._judge().normal_scores
    assert f"measured: {(scores < detector.offset_).sum()} of {len(scores)} training images" in card
    others = sorted((parts / "test" / "good").iterdir())
    card = "\n".join(readiness_card(detector, saved, images, others))
    assert f"measured: {(detector.predict(others) == -1).sum()} of 4 good images that were not learned" in card


def test_a_larger_input_is_advised_where_images_are_reduced_and_small_defects_are_missed(tmp_path):
    images = [save(image, tmp_path / f"{i}.png") for i, image in enumerate(textured_images(8, 256, seed=1))]
    detector = PBASDetector("embedded", image_size=64, max_epochs=1, device="cpu", random_state=0).fit(images)
    missed = DefectSizes((0.02, 0.3), (0, 10), (10, 10), 256.0)
    lines = "\n".join(advice(detector, missed))
    assert "reduced by a factor 4.0" in lines
    assert "--image-size 128" in lines
    assert "--tile 64" in lines
    detector.tile = 128  # whose tiles are brought to image_size
    lines = "\n".join(advice(detector, missed))
    assert "--image-size 128" in lines
    assert "--tile" not in lines
    detector.image_size = (64, 48)
    assert "--image-size 128x96" in "\n".join(advice(detector, missed))
    found = DefectSizes((0.02, 0.3), (9, 10), (10, 10), 256.0)
    assert "reduced" not in "\n".join(advice(detector, found))


def test_a_larger_false_alarm_rate_is_advised_where_nothing_is_found(detector):
    missed = DefectSizes((0.02, 0.3), (0, 4), (10, 10), 64.0)
    assert any("--false-alarm-rate" in line and "--backbone resnet18" in line for line in advice(detector, missed))
    assert not any("--false-alarm-rate" in line for line in advice(detector, DefectSizes((0.3,), (9,), (10,), 64.0)))
