"""The command benchmark: its figures, interruptions, failures, studies, published figures and files."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from benchmark_helpers import QUICK, SIDE, command, lines_of, make_category, save
from helpers import GOLDEN, ROOT
from scipy import ndimage

from skpbas import PBASDetector
from skpbas.__main__ import main
from skpbas._benchmark import runs
from skpbas._benchmark.dilated_pro import dilated_pro
from skpbas._benchmark.grids import main_grid, protocol_grid
from skpbas._benchmark.measuring import MISSES, Protocol, share_of
from skpbas._benchmark.outputs import write_outputs
from skpbas._benchmark.published import AVERAGE, figure, methods, published
from skpbas._benchmark.runs import Outcome, Plan, case_of
from skpbas._benchmark.sources import DATA_SETS
from skpbas._benchmark.studies import FULL, PRESETS, STUDIES, base_parameters, check_parameters, parameters_of
from skpbas._benchmark.tables import tables_of
from skpbas.datasets import load_mvtec, make_inspection_images
from skpbas.errors import InvalidTargetError
from skpbas.masks import to_map_size
from skpbas.metrics import miss_rate
from skpbas.scorers import AnomalyScorer

SAME_FILES = ("results.csv", "tables.csv", "results.json", "results.md")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, kind in (("bottle", "fabric"), ("screw", "wood")):
        make_category(folder / name, kind)
    return folder


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """The files of a benchmark of two categories with two seeds, with all comparison columns."""
    output = tmp_path_factory.mktemp("finished")
    assert main(command(root, output, "--seeds", "0", "1", "--best-epoch", "--dilated-pro", dataset="mvtec")) == 0
    return output


# Figures


def test_figures_are_those_of_the_estimator_called_by_hand(root, finished):
    train, test = load_mvtec(root, "bottle"), load_mvtec(root, "bottle", "test")
    detector = PBASDetector(**QUICK, device="cpu", random_state=1, memory=finished / "features").fit(train.images)
    expected = AnomalyScorer()(detector, test.images, test.masks)
    scores = -detector.score_samples(test.images)
    expected |= {
        name: miss_rate(test.labels, scores, rate) for name, rate in zip(MISSES, (0.01, 0.02, 0.05), strict=True)
    }
    masks = to_map_size(test.masks, test.images, detector)
    expected["pixel_pro_dilated"] = dilated_pro(masks, detector.anomaly_map(test.images))
    [line] = [one for one in lines_of(finished / "results.csv") if (one["category"], one["seed"]) == ("bottle", "1")]
    assert {name: float(line[name]) for name in expected} == expected
    assert (line["n_train"], line["n_test_good"], line["n_test_defective"], line["n_epochs"]) == ("5", "4", "3", "2")


def test_the_best_epoch_is_that_of_detectors_trained_for_one_and_two_epochs(root, finished):
    pytest.importorskip("sklearn.callback", reason="callbacks need scikit-learn 1.9")
    train, test = load_mvtec(root, "screw"), load_mvtec(root, "screw", "test")
    found = []
    for n_epochs in (1, 2):
        parameters = {**QUICK, "max_epochs": n_epochs}
        detector = PBASDetector(**parameters, device="cpu", random_state=0, memory=finished / "features")
        found.append(AnomalyScorer()(detector.fit(train.images), test.images, test.masks))
    best = max(found, key=lambda one: (one["image_auroc"], one["pixel_auroc"]))
    [line] = [one for one in lines_of(finished / "results.csv") if (one["category"], one["seed"]) == ("screw", "0")]
    assert line["best_epoch_on_test"] == str(1 + found.index(best))
    assert {name: float(line[f"best_epoch_on_test_{name}"]) for name in best} == best


def slow_dilated_pro(masks, maps):
    """The released code's procedure, one threshold and one image after another."""
    low, high = maps.min(), maps.max()
    overlaps, rates = [], []
    for threshold in np.arange(low, high, (high - low) / 200):
        flagged = maps > threshold
        of_regions = []
        for mask, one in zip(masks, flagged, strict=True):
            dilated = ndimage.binary_dilation(one, np.ones((5, 5)))
            regions, n = ndimage.label(mask, np.ones((3, 3)))
            of_regions += [dilated[regions == region].mean() for region in range(1, n + 1)]
        overlaps.append(np.mean(of_regions))
        rates.append(flagged[~masks].mean())
    kept = np.array(rates) < 0.3
    rates, overlaps = np.array(rates)[kept] / np.array(rates)[kept].max(), np.array(overlaps)[kept]
    return sum((rates[i] - rates[i + 1]) * (overlaps[i] + overlaps[i + 1]) / 2 for i in range(len(rates) - 1))


@pytest.mark.parametrize("case", range(4))
def test_the_dilated_pro_is_that_of_the_released_code(case):
    with np.load(GOLDEN / "golden_metrics.npz") as golden:
        masks, maps = golden[f"case{case}.masks"].astype(bool), golden[f"case{case}.maps"]
        printed = float(golden[f"case{case}.pro_dilated_200"])
    assert dilated_pro(masks, maps) == pytest.approx(printed, abs=2e-9)


def test_the_dilated_pro_is_that_of_a_loop_over_thresholds():
    rng = np.random.default_rng(3)
    masks = ndimage.gaussian_filter(rng.normal(size=(4, 24, 20)), (0, 2, 2)) > 0.12
    maps = ndimage.gaussian_filter(rng.normal(size=(4, 24, 20)) + masks, (0, 1, 1))
    assert dilated_pro(masks, maps) == pytest.approx(slow_dilated_pro(masks, maps), abs=1e-12)


def test_the_dilated_pro_of_flat_maps_or_without_defects_is_an_error():
    with pytest.raises(InvalidTargetError, match="not all equal"):
        dilated_pro([np.eye(3, dtype=bool)], [np.ones((3, 3), np.float32)])
    with pytest.raises(InvalidTargetError, match="defective"):
        dilated_pro([None], [np.arange(9, dtype=np.float32).reshape(3, 3)])


def test_a_larger_share_of_the_training_images_has_all_of_a_smaller():
    images = list(range(40))
    shares = [set(share_of(images, share, seed=5)) for share in (0.2, 0.4, 1.0)]
    assert [len(one) for one in shares] == [8, 16, 40]
    assert shares[0] < shares[1] < shares[2]
    assert share_of(images, 0.2, seed=6) != share_of(images, 0.2, seed=5)


# Interruptions and failures


def contents(output):
    return {name: (output / name).read_bytes() for name in SAME_FILES}


def without_times(page):
    return re.sub(r'<section id="times">.*?</section>', "", page, flags=re.DOTALL)


def test_a_killed_benchmark_goes_on_to_the_same_files(root, finished, tmp_path, monkeypatch):
    options = ("--seeds", "0", "1", "--best-epoch", "--dilated-pro")
    arguments = command(root, tmp_path, *options, dataset="mvtec")
    code = (
        f"import sys, torch; torch.set_num_threads({torch.get_num_threads()}); from skpbas.__main__ import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT
    )
    while not list(tmp_path.glob("runs/*.json")) and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    n_kept = len(list(tmp_path.glob("runs/*.json")))
    assert n_kept > 0
    measured = []
    measure = runs.measure
    monkeypatch.setattr(runs, "measure", lambda *of, **options: (measured.append(options), measure(*of, **options))[1])
    assert main(arguments) == 0
    assert len(measured) == 4 - n_kept
    assert contents(tmp_path) == contents(finished)
    pages = [without_times((output / "results.html").read_text(encoding="utf-8")) for output in (tmp_path, finished)]
    assert pages[0] == pages[1]


def test_an_interrupted_benchmark_leaves_no_half_written_file(root, tmp_path, monkeypatch):
    measure = runs.measure

    def interrupted(parameters, images, **options):
        if "screw" in str(images.train[0]):
            raise KeyboardInterrupt
        return measure(parameters, images, **options)

    monkeypatch.setattr(runs, "measure", interrupted)
    assert main(command(root, tmp_path)) == 130
    assert [line["category"] for line in lines_of(tmp_path / "results.csv")] == ["bottle"]
    assert not list(tmp_path.rglob("*.part"))


def test_a_failing_category_is_reported_and_the_others_are_done(root, tmp_path, capsys):
    data, output = tmp_path / "data", tmp_path / "out"
    shutil.copytree(root, data)
    image = data / "bottle" / "train" / "good" / "0.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:100])
    shutil.rmtree(data / "screw" / "test" / "cut")
    make_category(data / "wood", "wood", seed=2)
    assert main(command(data, output)) == 3
    said = capsys.readouterr()
    assert "bottle" in said.out
    assert "0.png" in said.err
    assert [line["category"] for line in lines_of(output / "results.csv")] == ["wood"]
    failures = {one["category"]: one["reason"] for one in json.loads((output / "results.json").read_text())["failures"]}
    assert list(failures) == ["screw", "bottle"]  # what is missing is known before anything is computed
    assert "every test image is good" in failures["screw"]
    for name in ("results.md", "results.html"):
        assert "every test image is good" in (output / name).read_text(encoding="utf-8")
    image.write_bytes(whole)
    assert main(command(data, output, "--categories", "bottle", "wood")) == 0
    assert "1 of 2 runs were finished before" in capsys.readouterr().err


def test_files_of_weights_count_by_their_content(tmp_path):
    keys = []
    for i, content in enumerate((b"1", b"1", b"2")):
        path = tmp_path / str(i) / "weights.pth"
        path.parent.mkdir()
        path.write_bytes(content)
        keys.append(case_of(FULL, {"backbone": "resnet18", "weights": str(path)}).key)
    assert keys[0] == keys[1] != keys[2]
    with pytest.raises(ValueError, match="no file"):
        _ = case_of(FULL, {"weights": str(tmp_path / "absent.pth")}).key


def test_progress_estimates_the_time_left():
    said = []
    progress = runs._Progress(said.append, [10.0, 10.0, 20.0])
    for i in range(2):
        progress.begin(f"run {i}")
        progress.done(f"run {i}", {"metrics": {"image_auroc": 0.5}, "seconds": {"fit": 50.0, "score": 10.0}})
    progress.begin("run 2")
    assert "left" not in said[0]
    assert said[2] == "[2/3] run 1 ...; about 3 min left"
    assert said[-1] == "[3/3] run 2 ...; about 2 min left"


# Studies


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
def test_every_study_has_valid_detectors_with_every_preset(study, preset):
    base = base_parameters(preset, {})
    made = [PBASDetector(**parameters_of(setting, base)) for setting in study.settings]
    for detector in made:
        check_parameters(detector.get_params(deep=False))
    names = [setting.name for setting in study.settings]
    assert len(set(names)) == len(names)


def test_the_ablations_differ_in_what_their_names_say():
    made = {s.name: PBASDetector(**parameters_of(s, PRESETS["paper"])) for s in STUDIES["V"].settings}
    assert [(one.synthesis, one.center_init) for one in made.values()] == [
        (None, "mean"),
        (None, "alignment"),
        ("gaussian", "alignment"),
        ("ray", "alignment"),
    ]
    assert made["ABL + RBO, ray synthesis"].get_params() == PBASDetector(**PRESETS["paper"]).get_params()


def test_studies_share_the_runs_that_they_have_in_common():
    studies = tuple(STUDIES[name] for name in ("V", "VI", "VII", "fig12", "fig13"))
    plan = Plan(DATA_SETS["mvtec"], ROOT, ("bottle",), "paper", PRESETS["paper"], studies)
    keys = [case.key for _, case, _ in plan.cases]
    full = case_of(FULL, PRESETS["paper"]).key
    # V, VI, VII and Fig. 13 have the full method once, Fig. 12 in each of its four parts
    assert keys.count(full) == 8
    assert len(keys) - len(set(keys)) == 7 + 2  # and V and VI share the two that are ABL alone


def test_a_setting_with_another_backbone_does_not_take_the_weights_of_the_first():
    base = {"backbone": "resnet18", "weights": "resnet18.pth"}
    weights = {s.name: parameters_of(s, base)["weights"] for s in STUDIES["fig12"].settings}
    assert weights["backbone resnet18"] == weights["patch size 5"] == "resnet18.pth"
    assert weights["backbone resnet50"] == "imagenet"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--table", "III"], "--dataset visa"),
        (["--set", "colour=1"], "'colour'"),
        (["--set", "alpha"], "NAME=VALUE"),
        (["--set", "alpha=-1"], "alpha"),
        (["--set", "patch_size=4"], "odd"),
        (["--seeds", "-1"], "-1"),
        (["--root", "absent"], "absent"),
        (["--n-jobs", "0"], "n_jobs"),
    ],
)
def test_wrong_use_is_named_and_leaves_nothing(root, tmp_path, capsys, options, words):
    output = tmp_path / "out"
    assert main([*command(root, output, dataset="mvtec"), *options]) == 2
    assert words in capsys.readouterr().err
    assert not output.exists()


# Published figures


def test_published_figures_are_complete():
    rows = published()
    known = {name: [*one.known, AVERAGE] for name, one in DATA_SETS.items()}
    assert [row for table, row in rows if table == "I"] == known["mvtec"]
    assert [row for table, row in rows if table == "II"] == known["mvtec"]
    for name in ("I", "II"):
        study = STUDIES[name]
        for row in known["mvtec"]:
            for method in methods(name):
                absent = [m for m in study.metrics if figure(name, row, m, method) is None]
                assert absent == (["pixel_pro"] if (name, method) == ("II", "CutPaste") else [])
    for name in ("III", "IV"):
        assert all((one, m) in rows[name, AVERAGE] for one in methods(name) for m in STUDIES[name].metrics)
    for name in ("V", "VI", "VII"):
        metrics = STUDIES[name].metrics[: 2 if name == "VII" else 3]
        assert [row for table, row in rows if table == name] == [s.name for s in STUDIES[name].settings]
        assert all(figure(name, s.name, m) is not None for s in STUDIES[name].settings for m in metrics)
    assert all(figure("VIII", f"seed {seed}", m) is not None for seed in range(5) for m in STUDIES["VIII"].metrics)


@pytest.mark.parametrize(("table", "metric"), [("I", "image_auroc"), ("II", "pixel_auroc"), ("II", "pixel_pro")])
def test_published_averages_are_those_of_the_published_rows(table, metric):
    mean = statistics.fmean(figure(table, category, metric) for category in DATA_SETS["mvtec"].known)
    assert figure(table, AVERAGE, metric) == pytest.approx(mean, abs=0.11)  # both are rounded or cut


# Tables


def plan_of(data_set, names, seeds=None, **protocol):
    data = DATA_SETS[data_set]
    studies = tuple(STUDIES[name] for name in names)
    return Plan(data, ROOT, data.known, "default", {}, studies, seeds, Protocol(**protocol))


def made_outcome(plan, without=()):
    """Records with figures from a generator."""
    rng = np.random.default_rng(0)
    outcome = Outcome({}, [])
    for category in plan.categories:
        for _, case, seed in plan.cases:
            metrics = {
                name: float(rng.uniform(0.8, 1)) for name in ("image_auroc", "pixel_auroc", "pixel_pro", *MISSES)
            }
            metrics |= {"image_ap": 0.9, "pixel_ap": 0.4, "pixel_pro_dilated": 0.99}
            facts = {"n_train": 5, "n_test_good": 4, "n_test_defective": 3, "n_epochs": 1}
            record = {"metrics": metrics, "facts": facts, "warnings": [], "surroundings": {}, "identity": {}}
            record |= {"seconds": {"fit": 1.0, "score": 1.0}, "finished": ""}
            if (category, seed) not in without:
                outcome.records.setdefault((category, case.key, seed), record)
    return outcome


def test_averages_are_over_categories_first_and_differences_from_the_paper():
    plan = plan_of("mvtec", ["I"], (0, 1))
    outcome = made_outcome(plan)
    table = tables_of(plan, outcome)[-1]
    key = case_of(FULL, {}).key
    found = np.array(
        [
            [100 * outcome.records[category, key, seed]["metrics"]["image_auroc"] for seed in (0, 1)]
            for category in plan.categories
        ]
    )
    average = table.rows[-1]
    assert average.label == AVERAGE
    assert average.values["image_auroc"].mean == pytest.approx(found.mean())
    assert average.values["image_auroc"].deviation == pytest.approx(found.mean(axis=0).std(ddof=1))
    assert average.difference("image_auroc") == pytest.approx(found.mean() - 99.8)
    assert table.rows[-4].difference("image_auroc") == pytest.approx(found[-3].mean() - 100)
    header, rows = main_grid(table)
    assert header[:5] == ["category", "image AUROC", "paper", "difference", "NoCoAD"]
    assert rows[0][4] == "99.1"


def test_an_average_over_fewer_categories_is_compared_with_the_same_ones_of_the_paper():
    plan = plan_of("mvtec", ["I", "V"], (0, 1))
    without = [(category, 1) for category in plan.categories[2:]]
    first, second, components = (table for table in tables_of(plan, made_outcome(plan, without)))
    assert [row.label for row in second.rows] == ["carpet", "grid", AVERAGE]
    assert second.rows[-1].published["image_auroc"] == 100.0
    assert any("leather" in note for note in second.notes)
    assert first.rows[-1].published["pixel_pro"] == pytest.approx((95.8 + 97.9) / 2)
    assert components.rows[0].published["image_auroc"] == 96.3
    assert components.rows[0].difference("image_auroc") is None
    assert any("no difference" in note for note in components.notes)


def test_a_table_of_metrics_has_a_row_for_each():
    plan = plan_of("visa", ["III"], dilated_pro=True)
    every, table = tables_of(plan, made_outcome(plan))
    header, rows = main_grid(table)
    assert header[:5] == ["average", "this run", "paper", "difference", "NoCoAD"]
    assert rows[3] == ["pixel AP", "40.0", "47.6", "−7.6", *rows[3][4:]]
    assert "paper" not in main_grid(every)[0]  # which has averages only
    header, rows = protocol_grid(every)
    assert header == ["", "metric", "last epoch", "last epoch, dilated PRO", "paper"]
    assert rows[-1][0] == AVERAGE
    assert rows[-1][3:] == ["99.0", "93.3"]


def test_every_table_can_be_written(tmp_path):
    plan = plan_of("mvtec", ["I", "II", "V", "VI", "VII", "VIII", "fig12", "fig13"])
    paths = write_outputs(plan, made_outcome(plan), tmp_path)
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    for study in plan.studies:
        assert f"## {study.heading}\n" in text
    assert {path.name for path in paths} >= {*SAME_FILES, "times.csv", "results.html"}
    figures = lines_of(tmp_path / "tables.csv")
    [line] = [one for one in figures if (one["table"], one["row"], one["metric"]) == ("VII", "20 %", "image_auroc")]
    assert line["paper"] == "96.9"
    assert float(line["difference"]) == pytest.approx(float(line["percent"]) - 96.9, abs=1e-6)
    assert [one["row"] for one in figures if one["table"] == "VIII"][-3:] == ["mean"] * 3


def test_comparison_columns_are_named_for_what_they_are(finished):
    text = (finished / "results.md").read_text(encoding="utf-8")
    assert "selected by test labels" in text
    assert "it is no result" in text
    protocols = {line["protocol"] for line in lines_of(finished / "tables.csv")}
    assert protocols == {
        "last epoch",
        "best epoch on the test set",
        "last epoch, dilated PRO",
        "best epoch on the test set, dilated PRO",
    }


def test_images_without_masks_have_no_pixel_metrics(root, tmp_path):
    data, output = tmp_path / "parts", tmp_path / "out"
    shutil.copytree(root / "bottle", data)
    shutil.rmtree(data / "ground_truth")
    assert main(command(data, output, "--dilated-pro")) == 0
    [line] = lines_of(output / "results.csv")
    assert (line["data_set"], line["category"]) == ("parts", "parts")
    assert {"image_auroc", *MISSES} <= set(line)
    assert not [name for name in line if name.startswith("pixel")]


class _References(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [
            (tag, name, value) for name, value in attrs if name in ("src", "href", "srcset", "action", "style")
        ]


def test_the_page_refers_to_nothing(finished):
    page = (finished / "results.html").read_text(encoding="utf-8")
    references = _References()
    references.feed(page)
    assert references.found == []
    assert not {"script", "link", "iframe", "img"} & set(references.tags)
    assert references.tags.count("svg") > 3
    for word in ("http:", "https:", "url(", "@import"):
        assert word not in page
    assert "default-src 'none'" in page


def test_the_files_name_the_weights_without_their_folder(tmp_path):
    weights = tmp_path / "private" / "weights.pth"
    weights.parent.mkdir()
    weights.write_bytes(b"")
    plan = plan_of("mvtec", ["I"])
    plan = dataclasses.replace(plan, base={"backbone": "resnet18", "weights": str(weights)})
    for path in write_outputs(plan, made_outcome(plan), tmp_path):
        assert "private" not in path.read_text(encoding="utf-8")
    assert "weights=weights.pth" in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_visa_is_measured_by_its_split_file(tmp_path):
    parts = make_inspection_images(6, 2, kind="wood", size=SIDE, random_state=4)
    lines = ["object,split,label,image,mask"]
    for i, (image, label, mask) in enumerate(zip(parts.images, parts.labels, parts.masks, strict=True)):
        save(image, tmp_path / "candle" / f"{i}.png")
        split, kind = "train" if i < 4 else "test", "normal" if label == 1 else "anomaly"
        if label == -1:
            save(255 * np.uint8(mask), tmp_path / "candle" / f"{i}_mask.png")
        lines.append(f"candle,{split},{kind},candle/{i}.png,{'' if label == 1 else f'candle/{i}_mask.png'}")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_text("\n".join(lines))
    assert main(command(tmp_path, tmp_path / "out", "--table", "III", dataset="visa")) == 0
    [line] = lines_of(tmp_path / "out" / "results.csv")
    assert (line["category"], line["n_train"], line["n_test_defective"]) == ("candle", "4", "2")
    figures = [one for one in lines_of(tmp_path / "out" / "tables.csv") if one["table"] == "III"]
    assert [one["paper"] for one in figures] == ["97.7", "98.1", "98.6", "47.6", "93.3"]
    assert {one["difference"] for one in figures} == {""}  # the paper's are averages over all categories
