"""The command line and its demo: output, picture and errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skpbas.__main__ import main, make_parser
from skpbas._cli import demo
from skpbas._cli.colormap import color_table, overlay
from skpbas._cli.demo import DemoOptions, run_demo
from skpbas._cli.sheet import rows_to_show, shape_of_tile
from skpbas.datasets import INSPECTION_KINDS, make_inspection_images

METRICS = ["image AUROC", "image AP", "pixel AUROC", "pixel AP", "PRO"]
QUICK = ["--image-size", "64", "--epochs", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _few_generated_images(monkeypatch):
    monkeypatch.setattr(demo, "_N_TRAIN", 4)
    monkeypatch.setattr(demo, "_N_NORMAL", 2)
    monkeypatch.setattr(demo, "_N_ANOMALOUS", 2)


@pytest.fixture(scope="module")
def parts():
    return make_inspection_images(6, 2, kind="wood", size=80, random_state=0)


def save(pixels: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def category(tmp_path, parts) -> Path:
    """A tiny category in MVTec AD's layout: four training images, two normal and two anomalous test images."""
    folder = tmp_path / "data" / "planks"
    for i in range(4):
        save(parts.images[i], folder / "train" / "good" / f"{i}.png")
    for i in range(4, 6):
        save(parts.images[i], folder / "test" / "good" / f"{i}.png")
    for i in range(6, 8):
        kind = parts.defect_types[i]
        save(parts.images[i], folder / "test" / kind / f"{i}.png")
        save(255 * parts.masks[i].astype(np.uint8), folder / "ground_truth" / kind / f"{i}_mask.png")
    return folder


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_the_demo_prints_five_metrics_and_the_errors_and_draws_a_picture(tmp_path, capsys):
    assert main(["demo", *QUICK, "--output", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not any("random features" in line for line in lines)
    for name in METRICS:
        assert any(line.strip().startswith(name) for line in lines), name
    assert any("false alarms" in line and "of 2 normal images" in line for line in lines)
    assert any("misses" in line and "of 2 anomalous images" in line for line in lines)
    width, height = size_of(tmp_path / "out" / "demo.png")
    assert width > 4 * 192
    assert 3 * 192 < height < 4 * 192  # two defects and a normal image


def test_the_picture_has_no_more_rows_than_asked_for(tmp_path):
    options = DemoOptions(image_size=64, epochs=1, device="cpu", output=tmp_path, rows=2)
    run_demo(options, lambda line: None)
    assert 2 * 192 < size_of(tmp_path / "demo.png")[1] < 3 * 192


def test_the_demo_accepts_a_category_in_mvtec_layout(category, tmp_path):
    lines: list[str] = []
    options = DemoOptions(data=category, image_size=64, epochs=1, device="cpu", output=tmp_path / "out")
    outcome = run_demo(options, lines.append)
    assert outcome.picture == tmp_path / "out" / "demo.png"
    assert outcome.picture.is_file()
    assert outcome.n_unreadable == 0
    assert any("training on 4 normal images, then scoring 4" in line for line in lines)
    assert any(line.strip().startswith("PRO") for line in lines)


def test_the_same_seed_prints_the_same_metrics(category, tmp_path):
    outputs: list[list[str]] = [[], []]
    for lines in outputs:
        options = DemoOptions(data=category, image_size=64, epochs=1, device="cpu", output=tmp_path)
        run_demo(options, lines.append)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("folder", ["", "train/good"])
def test_normal_images_and_images_to_check_give_decisions(folder, category, tmp_path, capsys):
    defective = sorted((category / "test").glob("s*/*.png"))
    arguments = ["--data", str(category / folder), "--check", *map(str, defective), "--output", str(tmp_path / "out")]
    assert main(["demo", *QUICK, *arguments]) == 0
    out = capsys.readouterr().out
    assert "training on 4 normal images, then scoring 2" in out
    for path in defective:
        line = next(line for line in out.splitlines() if path.name in line)
        _, verdict, margin, p_value = line.split()
        assert (verdict == "anomalous") == (float(margin) < 0)
        assert 0 < float(p_value) <= 1
    assert "AUROC" not in out
    assert size_of(tmp_path / "out" / "demo.png")[0] < 4 * 192 + 180  # no mask column


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no/such/folder"], "no such folder"),
        (["--data", "{empty}"], "no image files"),
        (["--data", "{category}/train/good"], "--check"),
        (["--data", "{category}/.."], "one of its categories: planks"),
        (["--data", "{category}/train/good", "--check", "missing.png"], "missing.png: no such file or folder"),
        (["--data", "{category}/train/good", "--check", "{empty}"], "{empty}: no image files"),
        (["--data", "{category}/train/good", "--check", "x*.png"], "x*.png: no image file has"),
        (["--check", "missing.png"], "--check needs --data"),
        (["--kind", "spoon"], "kind must be one of"),
        (["--weights", "imagenet"], "needs --backbone"),
        (["--backbone", "resnet19", "--weights", "none"], "resnet19"),
        (["--backbone", "resnet18", "--weights", "missing.pth"], "missing.pth"),
        (["--epochs", "0"], "max_epochs"),
        (["--rows", "1"], "--rows 1: a picture has at least 2 rows"),
        (["--output", "{file}"], "cannot create the folder"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(arguments, message, category, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    places = {"empty": tmp_path / "empty", "file": tmp_path / "file", "category": category}
    arguments = [argument.format(**places) for argument in arguments]
    assert main(["demo", *QUICK, "--output", str(tmp_path / "out"), *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert errors[0].startswith("skpbas demo: error: ")
    assert message.format(**places) in errors[0]


def test_images_with_the_same_name_are_shown_with_their_folders(category):
    image = category / "train" / "good" / "0.png"
    other = category / "train" / "good" / "1.png"
    assert demo.load_data(DemoOptions(data=category, check=(str(image), str(other)))).names == ["0.png", "1.png"]
    spare = category / "test" / "spare" / "0.png"
    spare.parent.mkdir()
    spare.write_bytes(image.read_bytes())
    assert demo.load_data(DemoOptions(data=category, check=(str(image), str(spare)))).names == [
        "good/0.png",
        "spare/0.png",
    ]


def test_test_images_of_one_class_are_rejected_before_training(category):
    for path in (category / "test" / "good").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="has only anomalous images"):
        demo.load_data(DemoOptions(data=category))


def test_without_a_command_the_help_is_printed(capsys):
    assert main([]) == 0
    assert "demo" in capsys.readouterr().out


def test_the_help_names_every_product_and_default():
    parser = make_parser()._subparsers._group_actions[0].choices["demo"]
    text = " ".join(parser.format_help().split())
    assert all(kind in text for kind in INSPECTION_KINDS)
    assert DemoOptions().kind in INSPECTION_KINDS


@pytest.mark.parametrize("arguments", [["--version"], ["demo", "--version"], ["demo", "--help"]])
def test_version_and_help_exit_with_code_0(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    assert capsys.readouterr().out


def test_the_help_does_not_import_torch():
    code = "import sys, skpbas.__main__; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_backbone_without_weights_uses_imagenet():
    def choose(**options):
        return demo.choose_network(DemoOptions(**options))

    assert choose() == demo.DEFAULT_NETWORK
    assert choose(backbone="resnet50") == {"backbone": "resnet50", "weights": "imagenet"}
    assert choose(backbone="resnet50", weights="none") == {"backbone": "resnet50", "weights": None}
    assert choose(backbone="resnet18", weights="a.pth") == {"backbone": "resnet18", "weights": "a.pth"}


def test_random_features_are_reported(category, tmp_path, capsys):
    options = ["--data", str(category), "--backbone", "resnet18", "--weights", "none"]
    assert main(["demo", *options, "--image-size", "64", "--epochs", "1", "--output", str(tmp_path / "out")]) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("random features")
    assert "--backbone and --weights" in first


def test_the_picture_shows_every_defect_type_once_before_any_twice_and_the_most_anomalous_first():
    names = ["dent", "dent", "dent", "good", "stain", "stain", "good"]
    labels, margins = np.array([-1, -1, -1, 1, -1, -1, 1]), -np.arange(7.0)
    assert rows_to_show(margins, names, labels, max_rows=3) == [4, 3, 0]
    assert rows_to_show(margins, names, labels, max_rows=5) == [5, 4, 3, 1, 0]
    assert rows_to_show(margins, names, labels) == [5, 4, 3, 2, 1, 0]


def test_the_picture_of_many_images_shows_the_20_most_anomalous_ones():
    margins = np.random.default_rng(0).normal(size=300)
    shown = rows_to_show(margins, [""] * 300, None)
    assert sorted(margins)[:20] == margins[shown].tolist()


@pytest.mark.parametrize("shape", [(100, 100), (90, 360), (2000, 100), (64, 48)])
def test_images_keep_their_aspect_ratio_in_the_picture(shape):
    height, width = shape_of_tile(shape)
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.06)
    assert max(height, width) <= 384


def test_a_long_product_is_drawn_long(tmp_path, parts):
    for i in range(4):
        save(parts.images[i][:40], tmp_path / "good" / f"{i}.png")
    save(parts.images[6][:40], tmp_path / "new" / "0.png")
    arguments = ["--data", str(tmp_path / "good"), "--check", str(tmp_path / "new"), "--output", str(tmp_path)]
    assert main(["demo", *QUICK, *arguments, "--image-size", "48"]) == 0
    with Image.open(tmp_path / "demo.png") as drawn:
        pixels = np.asarray(drawn)
    height, width = shape_of_tile((40, 80))
    assert pixels.shape[1] == 180 + 3 * (width + 8)
    inside = pixels[28 : 28 + height, 180 : 180 + width]
    below = pixels[28 + height + 1 : 28 + height + 7, 180 : 180 + width]
    assert (inside != 255).any(-1).mean() > 0.9
    assert (below == 255).all()


def test_images_to_check_may_be_a_folder_a_pattern_or_unreadable(category, tmp_path, capsys):
    (category / "test" / "broken.png").write_bytes(b"no image")
    arguments = ["demo", *QUICK, "--data", str(category), "--output", str(tmp_path / "out"), "--check"]
    assert main([*arguments, str(category / "test")]) == 3
    out, err = capsys.readouterr()
    assert "scoring 4" in out
    assert f"unreadable: {category / 'test' / 'broken.png'} is not an image" in err
    assert main([*arguments, str(category / "test" / "*" / "*.png")]) == 0
    assert "scoring 4" in capsys.readouterr().out


def test_the_colors_increase_in_lightness():
    table = color_table()
    assert table.shape == (256, 3)
    luminance = (table / 255.0) ** 2.2 @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > -2e-3).all()  # rounding to 8 bits
    assert luminance[0] < 0.02
    assert luminance[-1] > 0.7


def test_an_overlay_does_not_change_the_image_where_the_anomaly_map_is_low():
    image = np.full((2, 2, 3), 100, np.uint8)
    anomaly_map = np.array([[0.0, 0.2], [0.2, 1.0]])
    mixed = overlay(image, anomaly_map, 0.2, 1.0)
    assert (mixed[:, 0] == 100).all()
    assert (mixed[1, 1] != 100).any()
