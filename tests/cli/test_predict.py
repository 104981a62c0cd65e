"""skpbas predict: verdicts of files, folders, patterns and lists, as tables, JSON and pictures."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import DEFECT, SIDE, save
from helpers import textured_images
from PIL import Image

from skpbas import PBASDetector
from skpbas.__main__ import main
from skpbas._cli import watching
from skpbas._cli.colormap import pinned
from skpbas._cli.drawing import CONTOUR, PictureNames, overlaid
from skpbas._cli.paths import Named


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_table_says_of_each_image_what_the_detector_says(saved, detector, parts, capsys):
    paths = [parts / "test" / "good" / "0.png", parts / "test" / "hole" / "0.png"]
    assert main(["predict", str(saved), *map(str, paths)]) == 0
    out, err = capsys.readouterr()
    head, good, bad = out.splitlines()
    assert head.split()[:5] == ["file", "label", "verdict", "margin", "p_value"]
    for line, path, margin in zip((good, bad), paths, detector.decision_function(paths), strict=True):
        name, label, verdict, shown, _, *regions = line.split()
        assert name == str(path)
        assert (label, verdict == "anomalous", bool(regions)) == (
            ("+1", False, False) if margin >= 0 else ("-1", True, True)
        )
        assert float(shown) == pytest.approx(margin, abs=6e-4)
    assert "-1" in bad
    assert err.splitlines()[-1].startswith("2 images: ")


def test_csv_and_json_hold_the_same_rows_as_the_methods_of_the_detector(saved, detector, parts, tmp_path):
    folder, table, lines = parts / "test" / "stain", tmp_path / "t.csv", tmp_path / "t.json"
    assert main(["predict", str(saved), str(folder), "--csv", str(table), "--json", str(lines)]) == 0
    paths = sorted(folder.iterdir())
    of_csv = rows_of(table.read_text(encoding="utf-8"))
    of_json = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    expected = zip(
        detector.decision_function(paths),
        detector.p_values(paths),
        detector.verdicts(paths),
        detector.find_regions(paths),
        strict=True,
    )
    for path, row, item, (margin, p_value, verdict, regions) in zip(paths, of_csv, of_json, expected, strict=True):
        assert row["file"] == item["file"] == str(path)
        assert float(row["margin"]) == item["margin"] == pytest.approx(margin, rel=1e-5)
        assert float(row["p_value"]) == item["p_value"] == p_value
        assert row["verdict"] == item["verdict"] == verdict
        assert json.loads(row["regions"]) == item["regions"]
        boxes = [tuple(region[side] for side in ("top", "left", "height", "width")) for region in item["regions"]]
        assert boxes == [region.bbox for region in regions]
        assert [region["area"] for region in item["regions"]] == [region.area for region in regions]
        assert row["error"] == ""
        assert item["error"] is None


def test_a_listed_folder_without_images_is_reported_in_words_of_the_command_line(saved, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "of (two) shifts"
    folder.mkdir()
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{folder}\n"))
    assert main(["predict", str(saved), "-", "--csv", "-"]) == 3
    out, err = capsys.readouterr()
    message = f"{folder}: no image files can be listed in this folder or below it"
    assert err.splitlines()[0] == f"unreadable: {message}"
    assert [row["error"] for row in rows_of(out)] == [message]


def test_unreadable_images_are_reported_and_the_others_are_done(saved, parts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("gone.png\n"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    good = str(parts / "test" / "good" / "0.png")
    assert main(["predict", str(saved), str(broken), "-", good, "--csv", "-"]) == 3
    out, err = capsys.readouterr()
    rows = rows_of(out)
    assert [row["verdict"] for row in rows][:2] == ["", ""]
    assert rows[2]["verdict"] in ("normal", "unsure")
    assert rows[0]["error"].startswith(f"{broken} is not an image")
    assert rows[1]["error"] == "gone.png: no such file"
    assert [line for line in err.splitlines() if line.startswith("unreadable: ")] == [
        f"unreadable: {rows[0]['error']}",
        "unreadable: gone.png: no such file",
    ]
    assert "2 could not be read" in err


def test_anomalies_change_the_exit_code_only_on_request(saved, parts, tmp_path):
    bad, good = str(parts / "test" / "hole"), str(parts / "test" / "good" / "0.png")
    assert main(["predict", str(saved), bad]) == 0
    assert main(["predict", str(saved), bad, "--fail-on-anomaly"]) == 1
    assert main(["predict", str(saved), good, "--fail-on-anomaly"]) == 0
    (tmp_path / "broken.png").touch()
    assert main(["predict", str(saved), bad, str(tmp_path / "broken.png"), "--fail-on-anomaly"]) == 3


def test_a_quoted_pattern_and_a_list_on_standard_input_name_the_same_images(saved, parts, capsys, monkeypatch):
    monkeypatch.chdir(parts)
    assert main(["predict", str(saved), "test/*/1.png", "--json", "-"]) == 0
    of_pattern = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("test/good/1.png\ntest/hole/1.png\ntest/stain/1.png\n"))
    assert main(["predict", str(saved), "-", "--json", "-"]) == 0
    assert capsys.readouterr().out == of_pattern
    assert len(of_pattern.splitlines()) == 3


def test_pictures_have_the_size_of_their_images_and_names_of_their_own(saved, parts, tmp_path, capsys):
    wide = textured_images(1, 96, seed=3)[0, :48]
    save(wide, tmp_path / "in" / "0.png")
    save(wide, tmp_path / "in" / "0.bmp")
    inputs = [str(tmp_path / "in"), str(parts / "test")]
    maps = tmp_path / "maps"
    arguments = ["predict", str(saved), *inputs, "--maps", str(maps), "--json", "-"]
    assert main(arguments) == 0
    assert main(arguments) == 0
    first, *rest = [[json.loads(line) for line in part] for part in _halves(capsys.readouterr().out.splitlines())]
    assert rest == [first]
    pictures = [Path(row["map"]) for row in first]
    assert len(set(pictures)) == len(pictures) == len(list(maps.rglob("*.png"))) == 10
    for row, picture in zip(first, pictures, strict=True):
        with Image.open(row["file"]) as image, Image.open(picture) as drawn:
            assert drawn.size == image.size
    assert (maps / "hole" / "0_map.png").is_file()


def _halves(lines: list[str]) -> list[list[str]]:
    return [lines[: len(lines) // 2], lines[len(lines) // 2 :]]


def test_a_picture_has_a_contour_where_the_anomaly_map_crosses_the_threshold(saved, detector, parts, tmp_path):
    path = parts / "test" / "hole" / "0.png"
    assert main(["predict", str(saved), str(path), "--maps", str(tmp_path / "maps")]) == 0
    with Image.open(tmp_path / "maps" / "0_map.png") as drawn:
        line = (np.asarray(drawn) == CONTOUR).all(-1)
    (mask,) = detector.anomaly_mask([path], size="input")
    assert mask[DEFECT, DEFECT].mean() > 0.5
    padded = np.pad(mask, 1)
    touches = np.any([padded[i : i + SIDE, j : j + SIDE] for i in range(3) for j in range(3)], axis=0)
    assert (line != (touches & ~mask)).mean() < 0.01  # pixels at the threshold but for rounding


@pytest.mark.filterwarnings("ignore:.*discards up to:UserWarning")
def test_crops_and_images_of_16_bits_have_pictures_and_regions_of_their_own_size(tmp_path, capsys):
    images = [
        np.pad(image[..., 0], ((0, 0), (16, 16)), "edge").astype(np.uint16) * 128 for image in textured_images(9, 64)
    ]
    images[8][20:40, 40:60] = 65535
    paths = [save(image, tmp_path / f"{i}.png") for i, image in enumerate(images)]
    detector = PBASDetector("embedded", image_size=64, resize="crop", max_epochs=2, device="cpu", random_state=0)
    detector.fit(paths[:8]).save(tmp_path / "crop.skpbas")
    arguments = [str(tmp_path / "crop.skpbas"), str(paths[8]), "--json", "-", "--maps", str(tmp_path / "maps")]
    assert main(["predict", *arguments]) == 0
    row = json.loads(capsys.readouterr().out)
    ((expected, *_),) = detector.find_regions(paths[8:])
    assert tuple(row["regions"][0][side] for side in ("top", "left", "height", "width")) == expected.bbox
    with Image.open(row["map"]) as drawn:
        assert drawn.size == (96, 64)
        assert np.asarray(drawn).std() > 10  # brightened: normal pixels use half of their range


def test_the_threshold_has_one_color_whatever_else_is_in_the_map():
    threshold = 0.6
    for others in (0.1, 0.95):
        scaled = pinned(np.array([[threshold, others, np.nan]], np.float32), threshold)
        assert scaled[0, 0] == pytest.approx(0.5, abs=1e-6)
        assert scaled[0, 2] == 0
    values = pinned(np.linspace(0, 1, 50)[None], threshold)[0]
    assert (np.diff(values) >= 0).all()
    assert (values[0], values[-1]) == (0, 1)


def test_nothing_is_drawn_where_an_anomaly_map_is_far_below_the_threshold():
    image = np.full((8, 8, 3), 90, np.uint8)
    assert (overlaid(image, np.full((8, 8), 0.3, np.float32), 0.6) == image).all()


def test_names_of_pictures_differ_also_where_case_does_not_count():
    name = PictureNames(Path("maps"))
    found = [name(Path(*parts)) for parts in (("a.png",), ("A.jpg",), ("day", "a.png"), ("..", "a.png"))]
    assert [str(path.relative_to("maps").as_posix()) for path in found] == [
        "a_map.png",
        "A-2_map.png",
        "day/a_map.png",
        "a-3_map.png",
    ]


def test_a_picture_is_not_named_like_the_second_one_of_another_image():
    name = PictureNames(Path("maps"))
    found = [name(Path(image)).name for image in ("a.png", "a.jpg", "a-2.png", "a.bmp", "a-2.jpg")]
    assert found == ["a_map.png", "a-2_map.png", "a-2-2_map.png", "a-3_map.png", "a-2-3_map.png"]


@pytest.mark.parametrize("n_remembered", [1, 2, 3, 100])
def test_no_picture_is_written_over_however_few_names_are_remembered(tmp_path, n_remembered):
    name = PictureNames(tmp_path, n_remembered)
    for image in ["newest.png", "a.png", "A.png", "a-2.png", "newest.png", "b.png"] * 4:
        picture = name(Path(image))
        assert not picture.exists()
        picture.touch()
        assert len(name._taken) <= n_remembered
    assert len(list(tmp_path.iterdir())) == 24


def test_a_second_run_writes_over_the_pictures_of_the_first_one(tmp_path):
    (tmp_path / "a_map.png").touch()
    assert PictureNames(tmp_path)(Path("a.png")) == tmp_path / "a_map.png"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.skpbas", "{good}"], "nowhere.skpbas is no file"),
        (["{good}/0.png", "{good}"], "{good}/0.png: not a detector"),
        (["{saved}"], "give either images, such as a folder, or --watch FOLDER"),
        (["{saved}", "{good}", "--watch", "{good}"], "give either images"),
        (["{saved}", "{good}/*.gif"], "{good}/*.gif: no image file"),
        (["{saved}", "{good}", "--csv", "-", "--json", "-"], "both write to standard output"),
        (["{saved}", "{good}", "--csv", "no/folder/t.csv"], "--csv no/folder/t.csv: there is no folder"),
        (["{saved}", "{good}", "--csv", "{good}"], "--csv {good} is a folder"),
        (["{saved}", "{good}", "--maps", "{saved}"], "--maps {saved}: cannot create the folder"),
        (["{saved}", "{good}", "--min-area", "0"], "--min-area 0"),
        (["{saved}", "{good}", "--unsure-rate", "0.9"], "--unsure-rate 0.9: "),
        (["{saved}", "{good}", "--device", "tpu"], "tpu"),
        (["{saved}", "--watch", "{good}/none"], "--watch {good}/none: no such folder"),
        (["{saved}", "--watch", "{good}", "--interval", "0"], "--interval 0"),
        (["{saved}", "--watch", "{good}", "--interval", "inf"], "--interval inf: expected seconds, more than 0"),
        (["{saved}", "--watch", "{good}", "--interval", "nan"], "--interval nan"),
        (["{saved}", "--watch", "{good}", "--idle-seconds", "-1"], "--idle-seconds -1.0: expected seconds, 0 or more"),
        (["{saved}", "--watch", "{good}", "--idle-seconds", "nan"], "--idle-seconds nan"),
        (["{good}/0.png", "{good}"], "but an image by its name: give a .skpbas or .onnx file first"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(arguments, message, saved, parts, capsys):
    places = {"good": parts / "test" / "good", "saved": saved}
    assert main(["predict", *(argument.format(**places) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("skpbas predict: error: ")
    assert message.format(**places) in line


def test_a_table_is_not_replaced_if_the_command_fails(saved, parts, tmp_path, monkeypatch):
    table = tmp_path / "t.csv"
    table.write_text("old", encoding="utf-8")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("skpbas._cli.rows.as_dict", interrupted)
    assert main(["predict", str(saved), str(parts / "test"), "--csv", str(table)]) == 130
    assert table.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [table]


def test_names_with_any_character_are_written_in_utf_8(saved, parts, tmp_path, monkeypatch):
    path = save(np.asarray(Image.open(parts / "test" / "good" / "0.png")), tmp_path / "Prüfteil 検査.png")
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", narrow)
    assert (
        main(["predict", str(saved), str(path), "--csv", str(tmp_path / "t.csv"), "--maps", str(tmp_path / "m")]) == 0
    )
    assert main(["predict", str(saved), str(path)]) == 0
    assert "Pr\\xfcfteil" in narrow.buffer.getvalue().decode("ascii")
    assert path.name in (tmp_path / "t.csv").read_text(encoding="utf-8")
    assert (tmp_path / "m" / "Prüfteil 検査_map.png").is_file()


@pytest.fixture
def hot(tmp_path, parts) -> Path:
    folder = tmp_path / "hot"
    for kind in ("good", "hole"):
        (folder / kind).mkdir(parents=True)
        (folder / kind / "0.png").write_bytes((parts / "test" / kind / "0.png").read_bytes())
    return folder


def test_a_hot_folder_is_inspected_and_its_table_is_continued(saved, hot, tmp_path):
    table = tmp_path / "t.csv"
    arguments = ["predict", str(saved), "--watch", str(hot), "--interval", "0.01", "--idle-seconds", "0.05"]
    assert main([*arguments, "--csv", str(table), "--fail-on-anomaly"]) == 1
    assert main([*arguments, "--csv", str(table)]) == 0
    rows = rows_of(table.read_text(encoding="utf-8"))
    assert [Path(row["file"]).parent.name for row in rows] == ["good", "hole", "good", "hole"]
    assert all(float(row["margin"]) for row in rows)  # no second header


def test_ctrl_c_ends_a_hot_folder_with_all_that_was_inspected(saved, hot, tmp_path, monkeypatch, capsys):
    class Interrupted(watching.WatchedFolder):
        def __iter__(self):
            yield from self._complete()
            for path in self._complete():
                yield Named(path, Path(path.name))
            raise KeyboardInterrupt

    monkeypatch.setattr(watching, "WatchedFolder", Interrupted)
    assert main(["predict", str(saved), "--watch", str(hot), "--json", str(tmp_path / "t.json")]) == 0
    assert len((tmp_path / "t.json").read_text(encoding="utf-8").splitlines()) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("2 images: ")
