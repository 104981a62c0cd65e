"""What the commands write: nothing that they read, nothing half, and nothing that a later run mistakes."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import save
from helpers import textured_images

from skpbas.__main__ import main
from skpbas._cli import console, inspecting
from skpbas._cli.console import UsageError, check_output
from skpbas._cli.inspecting import Inspector
from skpbas.errors import StorageError


@pytest.fixture
def work(saved, parts, tmp_path, monkeypatch) -> Path:
    """A folder with a detector under two names, and two images."""
    shutil.copy(saved, tmp_path / "part.skpbas")
    shutil.copy(saved, tmp_path / "part.model")
    shutil.copytree(parts / "test" / "good", tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "part.skpbas", "in", "--csv", "part.skpbas"],
        ["predict", "part.model", "in", "--csv", "part.model"],
        ["predict", "part.model", "in", "--csv", "in/../part.model"],
        ["predict", "part.model", "--watch", "in", "--csv", "part.model", "--idle-seconds", "0"],
        ["predict", "part.skpbas", "in", "--csv", "in/0.png"],
        ["predict", "part.skpbas", "in", "--json", "in/0.png"],
        ["predict", "part.skpbas", "in", "--csv", "t", "--json", "./t"],
        ["predict", "part.skpbas", "in", "--csv", "t", "--maps", "t"],
        ["report", "part.skpbas", "in", "-o", "part.skpbas"],
        ["report", "part.model", "in", "-o", "part.model"],
        ["fit", "in", "-o", "in/0.png"],
        ["export", "part.model", "-o", "part.skpbas"],
        ["evaluate", "part.model", "--good", "in", "--defective", "in", "--json", "part.model"],
        ["info", "part.model", "--json", "part.model"],
    ],
)
def test_no_output_replaces_an_input_or_another_output(arguments, work, capsys):
    before = contents(work)
    assert main(arguments) == 2
    assert contents(work) == before
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_mistyped_folder_leaves_the_table_of_yesterday(work, capsys):
    Path("t.csv").write_text("yesterday", encoding="utf-8")
    assert main(["predict", "part.skpbas", "in/typo", "--csv", "t.csv"]) == 2
    assert Path("t.csv").read_text(encoding="utf-8") == "yesterday"
    assert "in/typo: no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("maps", ["in", ".", "in/maps"])
def test_pictures_among_the_images_are_an_error_and_not_an_empty_result(maps, work, capsys):
    for images in (["in"], ["--watch", "in", "--idle-seconds", "0"]):
        assert main(["predict", "part.skpbas", *images, "--maps", maps, "--fail-on-anomaly"]) == 2
        assert "is not apart from the images of" in capsys.readouterr().err


def test_an_empty_list_on_standard_input_is_an_error_and_leaves_the_table(work, capsys, monkeypatch):
    Path("t.csv").write_text("yesterday", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", iter([]))
    assert main(["predict", "part.skpbas", "-", "--csv", "t.csv", "--fail-on-anomaly"]) == 2
    assert Path("t.csv").read_text(encoding="utf-8") == "yesterday"
    assert "no image to inspect" in capsys.readouterr().err


def test_a_table_with_other_columns_is_not_continued(work, capsys):
    watch = ["predict", "part.skpbas", "--watch", "in", "--interval", "0.01", "--idle-seconds", "0", "--csv", "t.csv"]
    assert main(watch) == 0
    before = Path("t.csv").read_bytes()
    assert main([*watch, "--maps", "maps"]) == 2
    assert Path("t.csv").read_bytes() == before
    assert "--csv t.csv has the columns file, label" in capsys.readouterr().err


def test_a_row_that_was_cut_off_does_not_run_into_the_next(tmp_path):
    target = tmp_path / "t.json"
    target.write_text('{"a": 1}\n{"b', encoding="utf-8")
    for text in ("one\n", "two\n"):
        with console.data_output(target, "--json", append=True) as file:
            file.write(text)
    assert target.read_text(encoding="utf-8") == '{"a": 1}\n{"b\none\ntwo\n'


@pytest.mark.skipif(os.name == "nt", reason="no such devices there")
def test_what_is_written_in_place_needs_no_right_to_its_folder(tmp_path, monkeypatch):
    there, aside = tmp_path / "there.csv", tmp_path / "aside"
    there.touch()
    aside.mkdir()
    (tmp_path / "link.csv").symlink_to(aside / "t.csv")
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) in (Path(os.devnull), there, aside))
    check_output(Path(os.devnull), "--csv")
    check_output(there, "--csv", append=True)
    check_output(tmp_path / "link.csv", "--csv")
    with pytest.raises(UsageError, match="cannot be written"):
        check_output(there, "--csv")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match=r"--csv .* cannot be written"):
        check_output(Path(os.devnull), "--csv")


@pytest.mark.skipif(os.name == "nt", reason="no such signals there")
def test_a_signal_that_ends_the_command_leaves_nothing_half_written(work):
    command = [sys.executable, "-m", "skpbas", "predict", "part.skpbas", "-", "--csv", "t.csv"]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=work)
    for _ in range(1200):
        if list(work.glob(".*.part")) or running.poll() is not None:
            break
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 143
    assert err.splitlines()[-1] == "skpbas predict: ended by signal 15"
    assert not list(work.glob(".*.part"))
    assert not Path("t.csv").exists()


def test_handlers_of_signals_are_those_of_the_caller_again(work):
    before = signal.getsignal(signal.SIGTERM)
    assert main(["predict", "part.skpbas", "in/0.png", "--json", "t.json"]) == 0
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_picture_that_cannot_be_written_costs_no_row(work, capsys, monkeypatch):
    def full(_, path):
        raise StorageError(f"{path} cannot be written: no space")

    monkeypatch.setattr("skpbas._cli.drawing.save_picture", full)
    assert main(["predict", "part.skpbas", "in", "--maps", "maps", "--csv", "t.csv"]) == 2
    rows = rows_of(Path("t.csv"))
    assert [row["map"] for row in rows] == [""] * 4
    assert all(row["verdict"] for row in rows)
    err = capsys.readouterr().err
    assert err.count("no space") == 1
    assert "4 pictures could not be written" in err


# One image, one answer ------------------------------------------------------------------------------------


def test_score_regions_and_pixels_are_those_of_the_same_image_if_it_is_replaced(saved, tmp_path, monkeypatch):
    """A camera that always uses one name writes the next part while the first is inspected."""
    target, part = tmp_path / "latest.png", textured_images(1, 64, seed=3)[0]
    save(part, target)
    other = 255 - part[:48]
    inspector, decoded, replaced = Inspector.opened(saved, "cpu"), inspecting.decode, []

    def replacing(item, name):
        if not replaced:
            replaced.append(save(other, target))
        return decoded(item, name)

    monkeypatch.setattr(inspecting, "decode", replacing)
    (found,) = inspector.inspect([target], with_pixels=True)
    np.testing.assert_array_equal(found.pixels, other)
    (expected,) = inspector.inspect([target])
    assert found.margin == expected.margin
    assert [region.bbox for region in found.regions] == [region.bbox for region in expected.regions]


def test_an_image_that_never_rests_is_reported(saved, tmp_path, monkeypatch):
    target, sizes = save(textured_images(1, 64)[0], tmp_path / "latest.png"), iter(range(100))
    monkeypatch.setattr(inspecting, "state_of", lambda _: next(sizes))
    (found,) = Inspector.opened(saved, "cpu").inspect([target])
    assert found.error == f"{target} is written again and again while it is read"
    assert found.margin is None


# Names ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="names that Windows does not have")
def test_names_are_shown_without_what_a_terminal_obeys_and_with_all_their_blanks(work, capsys):
    for name in ("a\x1b[31m.png", "b\nc.png", "zero  two.png", os.fsdecode(b"\xe9.png")):
        Path("in", name).write_bytes(b"no image")
    assert main(["predict", "part.skpbas", "in", "--json", "t.json"]) == 3
    err = capsys.readouterr().err
    for name in ("a\\x1b[31m.png", "b\\x0ac.png", "zero  two.png", "\\xe9.png"):
        assert f"unreadable: in/{name} is not an image" in err
    rows = [json.loads(line) for line in Path("t.json").read_text(encoding="utf-8").splitlines()]
    assert {"in/b\nc.png", "in/zero  two.png", "in/\\xe9.png"} < {row["file"] for row in rows}
    assert main(["predict", "part.skpbas", "in"]) == 3
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "in/b\\x0ac.png" in out


@pytest.mark.parametrize("start", "=+-@")
def test_spreadsheets_compute_no_name(start, work, monkeypatch):
    name = f"{start}1+2.png"
    shutil.copy("in/0.png", name)
    monkeypatch.setattr(sys, "stdin", iter([f"{name}\n"]))
    assert main(["predict", "part.skpbas", "-", "--csv", "t.csv", "--json", "t.json"]) == 0
    (row,) = rows_of(Path("t.csv"))
    assert row["file"] == f"./{name}"
    assert json.loads(Path("t.json").read_text(encoding="utf-8"))["file"] == name


def test_names_behind_two_dashes_are_kept(work):
    shutil.copy("in/0.png", "--my_part.png")
    assert main(["predict", "--json", "t.json", "part.skpbas", "--", "--my_part.png"]) == 0
    assert json.loads(Path("t.json").read_text(encoding="utf-8"))["file"] == "--my_part.png"
