"""The command benchmark: which files count, what is refused, and what is not taken for something else."""

from __future__ import annotations

import json
import os
import shutil
import sys

import numpy as np
import pytest
from benchmark_helpers import SIDE, command, lines_of, make_category, save
from PIL import Image

from skpbas.__main__ import main, make_parser
from skpbas._benchmark import runs
from skpbas._benchmark.measuring import Measured
from skpbas._benchmark.outputs import write_outputs
from skpbas._benchmark.runs import Outcome, Plan
from skpbas._benchmark.sources import DATA_SETS
from skpbas._benchmark.studies import STUDIES
from skpbas._benchmark.tables import tables_of
from skpbas._cli import benchmark
from skpbas.datasets import list_images, load_visa
from skpbas.errors import DatasetError, FileFormatError

FOLDER = DATA_SETS["folder"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, kind in (("bottle", "fabric"), ("screw", "wood")):
        make_category(folder / name, kind)
    return folder


@pytest.fixture
def data(root, tmp_path):
    """A copy of the two categories, to be changed."""
    return shutil.copytree(root, tmp_path / "data")


@pytest.fixture
def measured(monkeypatch):
    """The runs that were measured; each has the same figures, without any training."""
    found = []

    def measure(parameters, images, *, share, seed, protocol):
        found.append((images.train[0].parts[-4], seed))
        names = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_pro")
        seconds = {"fit": 100.0, "score": 20.0}
        return Measured(dict.fromkeys(names, 0.5), {"n_train": len(images.train)}, [], seconds)

    monkeypatch.setattr(runs, "measure", measure)
    return found


def failures_of(output):
    found = json.loads((output / "results.json").read_text(encoding="utf-8"))["failures"]
    return {one["category"]: one["reason"] for one in found}


# Which files count


def test_other_images_or_masks_of_the_same_names_and_sizes_are_not_taken_for_finished(root, data):
    before = FOLDER.load(data, "bottle").digest
    assert before == FOLDER.load(root, "bottle").digest
    for folder in ("train/good", "test/good", "test/cut", "ground_truth/cut"):
        path = min((data / "bottle" / folder).iterdir())
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert FOLDER.load(data, "bottle").digest != before
        path.write_bytes(whole)
    assert FOLDER.load(data, "bottle").digest == before


def test_an_image_that_becomes_a_good_one_is_another_image_also_behind_a_link(root, tmp_path):
    pool = shutil.copytree(root / "bottle", tmp_path / "pool" / "bottle")
    shutil.rmtree(pool / "ground_truth")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bottle").symlink_to(pool, target_is_directory=True)
    before = FOLDER.load(tmp_path / "data", "bottle").digest
    defective = sorted((pool / "test" / "cut").iterdir())[-1]
    defective.rename(pool / "test" / "good" / defective.name)
    assert FOLDER.load(tmp_path / "data", "bottle").digest != before


def test_results_do_not_depend_on_where_the_data_are(root, data, monkeypatch):
    monkeypatch.chdir(data)
    digests = [FOLDER.load(path, "bottle").digest for path in (root, data, type(root)("."))]
    assert len(set(digests)) == 1


def test_a_link_to_an_image_that_is_not_there_is_an_error_that_names_it(data):
    lost = data / "bottle" / "test" / "good" / "lost.png"
    lost.symlink_to(data / "nowhere.png")
    for of in (lambda: FOLDER.load(data, "bottle"), lambda: list_images(lost.parent)):
        with pytest.raises(DatasetError, match=r"lost\.png is a link to a file that is not there"):
            of()


def test_names_that_are_no_utf_8_are_measured(data, tmp_path, measured):
    if sys.platform != "linux":
        pytest.skip("other systems have no such names")
    folder = os.fsencode(data / "bottle" / "test" / "good")
    os.rename(os.path.join(folder, sorted(os.listdir(folder))[0]), os.path.join(folder, b"\xe9.png"))
    assert main(command(data, tmp_path / "out")) == 0
    assert len(measured) == 2


@pytest.mark.parametrize("odd", ["test/scratch/monday/7.png", "test/7.png"])
def test_images_at_a_level_that_is_not_read_are_an_error_that_names_it(data, odd):
    shutil.rmtree(data / "bottle" / "ground_truth")
    (data / "bottle" / odd).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(next((data / "bottle" / "test" / "good").iterdir()), data / "bottle" / odd)
    with pytest.raises(DatasetError, match="is at a level that is not read"):
        FOLDER.load(data, "bottle")


def test_a_category_without_good_training_images_is_an_error(data):
    shutil.rmtree(data / "bottle" / "ground_truth")
    (data / "bottle" / "train" / "good").rename(data / "bottle" / "train" / "Good")
    with pytest.raises(DatasetError, match="bottle: no good training images"):
        FOLDER.load(data, "bottle")


def black(path):
    Image.new("L", (SIDE, SIDE)).save(path)


def smaller(path):
    Image.open(path).resize((SIDE - 4, SIDE)).save(path)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("change", "folder", "words"),
    [
        (smaller, "ground_truth/cut", f"has {SIDE} x {SIDE - 4} pixels"),
        (cut_off, "ground_truth/cut", "_mask.png"),
        (cut_off, "test/good", ".png"),
    ],
)
def test_unusable_masks_and_test_images_are_named_before_anything_is_trained(
    data, tmp_path, measured, change, folder, words
):
    path = sorted((data / "bottle" / folder).iterdir())[0]
    change(path)
    assert main(command(data, tmp_path / "out", "--seeds", "0", "1")) == 3
    [(category, reason)] = failures_of(tmp_path / "out").items()
    assert category == "bottle"
    assert path.name in reason
    assert words in reason
    assert measured == [("screw", 0), ("screw", 1)]


def test_a_mask_without_a_defect_is_named_and_recorded(data, tmp_path, measured, capsys):
    path = min((data / "bottle" / "ground_truth" / "cut").iterdir())
    black(path)
    assert main(command(data, tmp_path / "out")) == 0
    words = f"{path.name} has no defective pixel"
    assert f"bottle: {words}" in capsys.readouterr().err
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["runs"]
    assert [words in "".join(run["warnings"]) for run in found] == [True, False]


def test_masks_that_all_have_the_size_of_the_anomaly_maps_are_left_to_the_detector(data):
    for path in (data / "bottle" / "ground_truth" / "cut").iterdir():
        smaller(path)
    FOLDER.load(data, "bottle").check()


def visa_table(root, *lines, encoding="utf-8", header="object,split,label,image,mask"):
    (root / "split_csv").mkdir(exist_ok=True)
    for name in ("0.png", "1.png"):
        save(np.zeros((SIDE, SIDE, 3), np.uint8), root / name)
    (root / "split_csv" / "1cls.csv").write_bytes("\n".join([header, *lines]).encode(encoding))


@pytest.mark.parametrize(
    ("lines", "options", "words"),
    [
        (["candle,train,normal,0.png,", "candle,test,normal,0.png,"], {}, "lists 0.png twice"),
        (["candle,train,normal,0.png,", "candle,tset,normal,1.png,"], {}, "got 'tset' for 1.png"),
        (["\xe9,train,normal,0.png,"], {"encoding": "latin-1"}, "is no table in UTF-8"),
        (["candle;train;normal;0.png;"], {"header": "object;split;label;image;mask"}, "no column 'object'"),
    ],
)
def test_a_wrong_split_file_of_visa_is_named_with_what_is_wrong(tmp_path, lines, options, words):
    visa_table(tmp_path, *lines, **options)
    for of in (lambda: DATA_SETS["visa"].categories(tmp_path), lambda: load_visa(tmp_path, "candle")):
        with pytest.raises(DatasetError, match="1cls") as caught:
            of()
        assert words in str(caught.value)


# What is asked for


def test_options_that_are_given_again_add_to_the_first(root, tmp_path):
    options = ["--categories", "b", "--categories", "a", "./b/", "--seeds", "3", "--seeds", "4", "5"]
    options += ["--table", "V", "--table", "VI", "--set", "alpha=0.5"]
    plan = benchmark._plan(make_parser().parse_args(command(root, tmp_path, *options)))
    assert plan.categories == ("b", "a")
    assert plan.seeds == (3, 4, 5)
    assert [study.name for study in plan.studies] == ["V", "VI"]
    assert (plan.base["alpha"], plan.base["image_size"]) == (0.5, SIDE)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "alpha=0.5", "--set", "alpha=0.6"], "--set alpha=0.6: alpha is given twice"),
        (["--set", "backbone=resnet18"], "--set backbone=resnet18: backbone is given twice"),
        (["--set", "layers={'layer2'}"], "--set layers={'layer2'}: expected a number, a word, or a list"),
        (["--set", "layers={[]: 1}"], "--set layers={[]: 1}: expected a number, a word, or a list"),
        (["--categories", "average"], "'average': the name is that of the row of means"),
        (["--categories", "a\nb"], "'a\\nb': the name has characters that cannot be printed"),
    ],
)
def test_what_cannot_be_meant_is_refused(root, options, words, capsys, tmp_path):
    assert main([*command(root, tmp_path / "out"), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--output", "--memory"])
def test_a_file_in_place_of_a_folder_is_refused_by_the_name_of_the_option(root, tmp_path, capsys, option, measured):
    (tmp_path / "file").touch()
    assert main([*command(root, tmp_path / "out"), option, str(tmp_path / "file")]) == 2
    assert f"{option} {tmp_path / 'file'}" in capsys.readouterr().err
    assert measured == []


def test_categories_that_are_named_need_not_be_those_of_the_data_set(tmp_path, measured):
    make_category(tmp_path / "data" / "custom", "wood")
    arguments = command(tmp_path / "data", tmp_path / "out", "--categories", "custom", dataset="mvtec")
    assert main(arguments) == 0
    assert measured == [("custom", 0)]


def test_categories_may_have_names_of_any_script(tmp_path, measured):
    name = "\N{HIRAGANA LETTER A}\N{IDEOGRAPHIC SPACE}\N{LATIN SMALL LETTER E WITH ACUTE} 1"
    make_category(tmp_path / "data" / name, "wood")
    assert main(command(tmp_path / "data", tmp_path / "out")) == 0
    assert [line["category"] for line in lines_of(tmp_path / "out" / "results.csv")] == [name]


def test_hidden_folders_are_no_categories(data):
    (data / "screw").rename(data / ".screw")
    assert FOLDER.categories(data) == ["bottle"]


# What is finished


def changed_figure(record):
    record["metrics"]["pixel_pro"] = 0.18
    return json.dumps(record)


def without_figure(record):
    del record["metrics"]["pixel_pro"]
    return json.dumps(record)


def not_a_number(record):
    record["metrics"]["image_auroc"] = float("nan")
    return json.dumps(record)


@pytest.mark.parametrize(
    "damage",
    [changed_figure, without_figure, not_a_number, lambda record: "{", lambda record: "", lambda record: "[" * 100_000],
    ids=["changed", "removed", "NaN", "cut off", "empty", "nested"],
)
def test_a_damaged_result_is_named_and_the_others_are_done(root, tmp_path, capsys, measured, damage):
    assert main(command(root, tmp_path, "--categories", "bottle")) == 0
    [path] = tmp_path.glob("runs/*.json")
    path.write_text(damage(json.loads(path.read_bytes())))
    assert main(command(root, tmp_path)) == 3
    said = capsys.readouterr().err
    assert f"{path} is damaged" in said
    assert "delete it, and its run is repeated" in said
    assert [line["category"] for line in lines_of(tmp_path / "results.csv")] == ["screw"]
    path.unlink()
    assert main(command(root, tmp_path)) == 0
    assert len(lines_of(tmp_path / "results.csv")) == 2


def test_a_folder_in_place_of_a_result_is_named_and_the_others_are_done(root, tmp_path, measured):
    assert main(command(root, tmp_path, "--categories", "bottle")) == 0
    [path] = tmp_path.glob("runs/*.json")
    path.unlink()
    path.mkdir()
    assert main(command(root, tmp_path)) == 3
    assert path.name in failures_of(tmp_path)["bottle"]
    assert measured == [("bottle", 0), ("screw", 0)]


def test_a_result_of_another_run_is_refused(tmp_path):
    path, record = tmp_path / "run.json", {"identity": {"seed": 1}}
    path.write_text(json.dumps({**record, "sha256": runs._digest(record)}))
    assert runs._finished(path, {"seed": 1}) == record
    with pytest.raises(FileFormatError, match=r"run\.json is not the result"):
        runs._finished(path, {"seed": 2})


def test_figures_that_are_not_finite_are_a_failure(root, tmp_path, monkeypatch):
    not_finite = Measured({"image_auroc": float("nan")}, {}, [], {})
    monkeypatch.setattr(runs, "measure", lambda *of, **options: not_finite)
    assert main(command(root, tmp_path)) == 3
    assert set(failures_of(tmp_path).values()) == {"ValueError: image_auroc is nan"}


def test_runs_with_and_without_stored_features_are_not_mixed(root, tmp_path, measured):
    arguments = command(root, tmp_path, "--categories", "bottle")
    assert main(arguments) == 0
    assert main([*arguments, "--memory", "none"]) == 0
    assert len(measured) == 2


def test_the_time_left_does_not_count_what_was_finished_before(root, tmp_path, capsys, measured):
    assert main(command(root, tmp_path, "--categories", "bottle", "--seeds", "0", "1", "2")) == 0
    capsys.readouterr()
    assert main(command(root, tmp_path, "--seeds", "0", "1", "2")) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "3 of 6 runs were finished before"
    assert [line for line in said if line.startswith("[")] == [
        "[4/6] screw, full, seed 0 ...",
        "[5/6] screw, full, seed 1 ...; about 4 min left",
        "[6/6] screw, full, seed 2 ...; about 2 min left",
    ]


# What the files say


def outcome_of(plan, with_masks):
    """Figures of every run; pixel metrics of some categories only."""
    outcome = Outcome({}, [])
    for category in plan.categories:
        for _, case, seed in plan.cases:
            metrics = {"image_auroc": 0.9} | ({"pixel_pro": 0.8, "pixel_auroc": 0.7} if category in with_masks else {})
            record = {"metrics": metrics, "facts": {}, "warnings": [], "surroundings": {}, "identity": {}}
            record |= {"seconds": {"fit": 1.0, "score": 1.0}, "finished": ""}
            outcome.records[category, case.key, seed] = record
    return outcome


@pytest.mark.parametrize("study", ["V", "VIII", None])
def test_averages_over_the_categories_with_masks_say_so(tmp_path, study):
    studies = () if study is None else (STUDIES[study],)
    plan = Plan(FOLDER, tmp_path, ("a", "b", "c"), "default", {}, studies)
    for table in tables_of(plan, outcome_of(plan, "ac")):
        notes = [note for note in table.notes if "with masks" in note]
        assert notes == ["Averages of pixel AUROC and PRO are over 2 of 3 categories, those with masks: a, c."]
        assert not [note for note in table.notes if "do not compare" in note]
    for table in tables_of(plan, outcome_of(plan, "abc")):
        assert not [note for note in table.notes if "with masks" in note]


def test_a_name_is_no_markup(tmp_path):
    plan = Plan(FOLDER, tmp_path, ("<b>a|b", "c"), "default", {}, ())
    write_outputs(plan, outcome_of(plan, ()), tmp_path)
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| &lt;b>a\\|b |" in text
    assert "<b>" not in text
    assert "<b>a|b" not in (tmp_path / "results.html").read_text(encoding="utf-8")
