"""skpbas evaluate: the metrics of skpbas.metrics, from folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import DEFECT, SIDE, save

from skpbas.__main__ import main
from skpbas._cli.evaluate import Seen
from skpbas._cli.inspecting import Inspection, Inspector
from skpbas._cli.labeled import Labeled
from skpbas.metrics import image_ap, image_auroc, miss_rate, pixel_ap, pixel_auroc, pixel_pro


def evaluated(tmp_path: Path, *arguments: object, code: int = 0) -> dict:
    target = tmp_path / "figures.json"
    assert main(["evaluate", *map(str, arguments), "--json", str(target)]) == code
    return json.loads(target.read_text(encoding="utf-8"))


def test_the_figures_are_those_of_the_metrics(saved, detector, parts, tmp_path, capsys):
    figures = evaluated(tmp_path, saved, parts)
    paths = [*sorted((parts / "test" / "good").iterdir()), *sorted((parts / "test").glob("[hs]*/*.png"))]
    labels = np.array([1] * 4 + [-1] * 4)
    margins = detector.decision_function(paths)
    assert figures["image_auroc"] == pytest.approx(image_auroc(labels, -margins))
    assert figures["image_ap"] == pytest.approx(image_ap(labels, -margins))
    assert figures["misses_at"] == {f"{rate:g}": miss_rate(labels, -margins, rate) for rate in (0.01, 0.02, 0.05)}
    assert figures["false_alarms"] == (margins[:4] < 0).sum()
    assert figures["misses"] == (margins[4:] >= 0).sum()
    verdicts = detector.verdicts(paths)
    assert figures["unsure_good"] == (verdicts[:4] == "unsure").sum()
    assert figures["unsure_defective"] == (verdicts[4:] == "unsure").sum()
    assert figures["misses_by_kind"]["hole"] == {"misses": int((margins[4:6] >= 0).sum()), "n": 2}
    with_masks = paths[:6]  # of the stains there are none
    masks = np.zeros((6, SIDE, SIDE), bool)
    masks[4:, DEFECT, DEFECT] = True
    maps = detector.anomaly_map(with_masks)
    assert figures["n_masks"] == 2
    for name, metric in (("pixel_auroc", pixel_auroc), ("pixel_ap", pixel_ap), ("pixel_pro", pixel_pro)):
        assert figures[name] == pytest.approx(metric(masks, maps), rel=1e-4)
    out = capsys.readouterr().out
    assert "4 good and 4 defective images; 2 of 4 defective images have a mask" in out
    assert f"image AUROC       {figures['image_auroc']:.3f}" in out
    assert "at 5% false alarms" in out


def test_two_folders_give_the_same_as_the_layout(saved, parts, tmp_path):
    of_layout = evaluated(tmp_path, saved, parts / "test")
    defective = tmp_path / "defective"
    for kind in ("hole", "stain"):
        shutil.copytree(parts / "test" / kind, defective / kind)
    figures = evaluated(tmp_path, saved, "--good", parts / "test" / "good", "--defective", defective)
    assert figures["pixel_pro"] is None
    assert figures["misses_by_kind"] == {"defective": {"misses": of_layout["misses"], "n": 4}}
    for name in ("image_auroc", "image_ap", "misses_at", "false_alarms", "misses"):
        assert figures[name] == of_layout[name]


def test_masks_of_a_folder_of_defective_images_are_found_by_name(saved, parts, tmp_path):
    given = ["--good", parts / "test" / "good", "--defective", parts / "test" / "hole"]
    figures = evaluated(tmp_path, saved, *given, "--masks", parts / "ground_truth" / "hole")
    assert figures["n_masks"] == 2
    assert figures["pixel_auroc"] > 0.5


def test_unreadable_images_are_left_out_and_counted(saved, parts, tmp_path, capsys):
    folder = tmp_path / "set"
    shutil.copytree(parts, folder)
    (folder / "test" / "good" / "broken.png").write_bytes(b"no image")
    figures = evaluated(tmp_path, saved, folder, code=3)
    assert (figures["n_good"], figures["n_unreadable"]) == (4, 1)
    assert "unreadable: " in capsys.readouterr().err


def test_a_mask_that_cannot_be_used_is_an_error_before_any_image_is_inspected(saved, parts, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    shutil.copytree(parts, folder)
    (folder / "ground_truth" / "hole" / "1_mask.png").write_bytes(b"no image")
    monkeypatch.setattr(Inspector, "inspect", lambda *_, **__: pytest.fail("images are inspected"))
    assert main(["evaluate", str(saved), str(folder)]) == 2


def test_images_none_of_which_can_be_read_are_unreadable_and_not_wrong_use(saved, tmp_path, capsys):
    for kind in ("good", "hole"):
        save(np.zeros((2, 2), np.uint8), tmp_path / "test" / kind / "0.png")
    assert main(["evaluate", str(saved), str(tmp_path)]) == 3
    assert capsys.readouterr().err.splitlines()[-1] == "skpbas evaluate: none of 2 images could be read"


def test_of_an_image_only_what_the_figures_need_is_kept():
    """A thousand images without masks need no thousand anomaly maps."""
    seen, said = Seen(), Inspection(Path("a.png"), 1, "normal", 0.5, 0.5, (), np.zeros((2, 2), np.float32))
    seen.add(Labeled(Path("a.png"), "good"), said, {})
    assert seen.maps == []
    masks = {Path("b.png"): np.ones((2, 2), bool)}
    for name, kind in (("a.png", "good"), ("b.png", "hole"), ("c.png", "hole")):
        seen.add(Labeled(Path(name), kind), said, masks)
    assert len(seen.maps) == len(seen.masks) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{parts}/train"], "has good images only"),
        (["{parts}/test/hole"], "no folder test/good"),
        ([], "give FOLDER"),
        (["--good", "{parts}/test/good"], "both --good and --defective"),
        (["{parts}", "--good", "{parts}/test/good"], "not both"),
        (["--good", "{parts}/nowhere", "--defective", "{parts}/test/hole"], "--good {parts}/nowhere: no such folder"),
    ],
)
def test_wrong_use_is_one_line(arguments, message, saved, parts, capsys):
    assert main(["evaluate", str(saved), *(argument.format(parts=parts) for argument in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("skpbas evaluate: error: ")
    assert message.format(parts=parts) in line
