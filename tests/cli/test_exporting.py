"""skpbas export and info, and prediction with an exported detector, which needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import skpbas
from skpbas.__main__ import main


@pytest.fixture(scope="module")
def exported(saved, tmp_path_factory) -> Path:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra onnx is not installed")
    path = tmp_path_factory.mktemp("exported") / "part.onnx"
    assert main(["export", str(saved), "-o", str(path)]) == 0
    return path


def json_of(capsys, *arguments: object) -> list[dict]:
    assert main([*map(str, arguments), "--json", "-"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_an_exported_detector_gives_the_same_rows(exported, saved, parts, capsys):
    of_onnx = json_of(capsys, "predict", exported, parts / "test")
    of_saved = json_of(capsys, "predict", saved, parts / "test")
    assert len(of_onnx) == 8
    for one, other in zip(of_onnx, of_saved, strict=True):
        assert one["margin"] == pytest.approx(other["margin"], abs=1e-3 * (1 + abs(other["margin"])))
        assert (one["file"], one["verdict"], one["p_value"]) == (other["file"], other["verdict"], other["p_value"])
        assert len(one["regions"]) == len(other["regions"])


def test_prediction_with_an_exported_detector_imports_no_torch(exported, parts, tmp_path):
    arguments = ["predict", str(exported), str(parts / "test" / "hole"), "--maps", str(tmp_path / "maps")]
    code = (
        f"import sys; from skpbas.__main__ import main; code = main({arguments!r}); "
        "sys.exit(code or 10 * any(name in sys.modules for name in ('torch', 'sklearn', 'scipy')))"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 3
    assert len(list((tmp_path / "maps").iterdir())) == 2


def test_an_exported_detector_is_evaluated_as_the_saved_one(exported, saved, parts, tmp_path, capsys):
    figures = []
    for path in (exported, saved):
        assert main(["evaluate", str(path), str(parts), "--json", str(tmp_path / "f.json")]) == 0
        figures.append(json.loads((tmp_path / "f.json").read_text(encoding="utf-8")))
    for name in ("image_auroc", "misses", "false_alarms", "n_masks"):
        assert figures[0][name] == figures[1][name]
    assert figures[0]["pixel_auroc"] == pytest.approx(figures[1]["pixel_auroc"], abs=1e-3)
    capsys.readouterr()


def test_info_shows_settings_versions_and_thresholds(saved, detector, capsys):
    assert main(["info", str(saved)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{saved}: a detector, ")
    assert f"skpbas {skpbas.__version__}" in out
    for name, value in (("image_size", "64"), ("layers", "layer2,layer3"), ("tile", "none")):
        assert any(line.split() == [name, value] for line in out.splitlines())
    assert main(["info", str(saved), "--json", "-"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["threshold"] == detector.offset_
    assert about["map_threshold"] == detector.map_threshold_
    assert tuple(about["map_shape"]) == detector.map_shape_
    assert about["n_images"] == detector.n_samples_fit_
    assert about["bytes"] == saved.stat().st_size
    assert about["settings"]["max_epochs"] == 2


def test_info_of_an_exported_detector_agrees_with_that_of_the_saved_one(exported, saved, capsys):
    abouts = []
    for path in (exported, saved):
        assert main(["info", str(path), "--json", "-"]) == 0
        abouts.append(json.loads(capsys.readouterr().out))
    assert [about["format"] for about in abouts] == ["onnx", "skpbas"]
    for name in ("backbone", "n_images", "input_shape", "map_shape", "threshold", "map_threshold", "resize"):
        assert abouts[0][name] == abouts[1][name], name
    assert main(["info", str(exported)]) == 0
    assert "an exported detector (ONNX)" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["info", "predict", "evaluate", "export"])
def test_a_damaged_detector_is_refused_by_name(command, saved, parts, tmp_path, capsys):
    damaged = tmp_path / "damaged.skpbas"
    content = bytearray(saved.read_bytes())
    content[-100] ^= 1
    damaged.write_bytes(content)
    rest = {"predict": [str(parts)], "evaluate": [str(parts)], "export": ["-o", str(tmp_path / "a.onnx")]}
    assert main([command, str(damaged), *rest.get(command, [])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(damaged) in line
    assert "checksum" in line


def test_an_export_without_its_extra_names_the_command_that_installs_it(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", str(saved), "-o", str(tmp_path / "a.onnx")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install skpbas[onnx]" in line
    assert not list(tmp_path.iterdir())


def test_a_name_that_ends_in_pt2_makes_a_program_of_torch(saved, tmp_path, capsys):
    assert main(["export", str(saved), "-o", str(tmp_path / "part.pt2"), "--unsure-rate", "0.1"]) == 0
    extra = {"skpbas.json": ""}
    torch.export.load(tmp_path / "part.pt2", extra_files=extra)
    assert json.loads(extra["skpbas.json"])["unsure_rate"] == 0.1
    assert "wrote" in capsys.readouterr().out


def test_options_that_do_not_fit_the_kind_of_export_are_wrong_use(saved, tmp_path, capsys):
    assert main(["export", str(saved), "-o", str(tmp_path / "part.pt2"), "--opset", "18"]) == 2
    assert "--opset 18 is of ONNX" in capsys.readouterr().err
    assert main(["export", str(saved), "-o", str(tmp_path / "part.bin")]) == 2
    assert "give a name that ends in .onnx, which skpbas predict opens, or .pt2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
