"""The HTML report: what is in the file, and what a browser makes of it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from helpers import SHARED, small_detector, textured_images
from PIL import Image
from scipy import ndimage
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from skpbas import PBASDetector
from skpbas.__main__ import main
from skpbas._cli import report as command
from skpbas._cli.console import UsageError
from skpbas._features.results import Result
from skpbas.calibration import ConformalThreshold
from skpbas.errors import InvalidImageError, InvalidTargetError, StorageError
from skpbas.export import to_onnx
from skpbas.inspection import write_report
from skpbas.inspection._report import page, records
from skpbas.inspection._report.outlines import as_path, outlines
from skpbas.inspection._report.pictures import heat, legend, photo, photo_bytes, share_of_page
from skpbas.masks import ignoring
from skpbas.runtime import OnnxDetector

ATTACK = "</script><script>window.attacked = 1</script><img src=x onerror='window.attacked = 2'>\"&amp;"


class Parsed(HTMLParser):
    """The elements of a page: names, attributes and texts, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[list] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        self.elements.append(["", {}, ""])  # what follows belongs to no element

    def handle_data(self, data):
        if self.elements:
            self.elements[-1][2] += data

    def of(self, tag):
        return [(attributes, text) for name, attributes, text in self.elements if name == tag]

    def text_of(self, identifier):
        return next(text for _, attributes, text in self.elements if attributes.get("id") == identifier)

    @property
    def data(self):
        return json.loads(self.text_of("data"))

    def picture(self, i):
        return json.loads(self.text_of(f"picture-{i}"))


def parsed(path: Path) -> Parsed:
    return Parsed(path.read_text(encoding="utf-8"))


def parts(seed: int = 5, n_good: int = 6, n_defective: int = 5) -> tuple[list[np.ndarray], np.ndarray, list]:
    """Images of 64 x 96 pixels, their labels, and masks of the defective ones."""
    images = list(textured_images(n_good + n_defective, 96, seed)[:, :64])
    masks = [None] * len(images)
    for i in range(n_good, len(images)):
        masks[i] = np.zeros((64, 96), bool)
        masks[i][20:38, 30:60] = True
        images[i] = np.where(masks[i][..., None], np.uint8(20 * (i - n_good)), images[i])
    return images, np.array([1] * n_good + [-1] * n_defective), masks


@pytest.fixture(scope="module")
def detector() -> PBASDetector:
    return small_detector(max_epochs=1).set_params(backbone="embedded").fit(textured_images(12, 96)[:, :64])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Files of the parts in MVTec AD's layout, and one that is no image."""
    root = tmp_path_factory.mktemp("data") / "Prüfling"
    images, labels, masks = parts()
    for i, (image, label, mask) in enumerate(zip(images, labels, masks, strict=True)):
        kind = "good" if label == 1 else "dent"
        (root / "test" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / "test" / kind / f"{i}.png")
        if mask is not None:
            (root / "ground_truth" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(root / "ground_truth" / kind / f"{i}_mask.png")
    (root / "test" / "good" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but then nothing")
    return root


@pytest.fixture(scope="module")
def listed(folder):
    return command.images_in(folder)


@pytest.fixture(scope="module")
def written(detector, listed, tmp_path_factory):
    """A report with everything in it, and what the function returned."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    paths, labels, masks = listed
    return path, write_report(detector, paths, path, labels=labels, masks=masks, title=f"Line 4 {ATTACK}")


@pytest.fixture(scope="module")
def readable(listed):
    return [path for path in listed[0] if path.name != "broken.png"]


# The numbers ----------------------------------------------------------------------------------------------


def test_margins_p_values_and_verdicts_are_those_of_the_detector(detector, written, readable):
    records = parsed(written[0]).data["records"]
    by_name = {record["name"]: record for record in records}
    of_files = [by_name[f"{path.parent.name}/{path.name}"] for path in readable]
    assert len(by_name) == len(readable)
    np.testing.assert_array_equal([one["margin"] for one in of_files], detector.decision_function(readable))
    np.testing.assert_array_equal([one["p"] for one in of_files], detector.p_values(readable))
    np.testing.assert_array_equal([one["verdict"] for one in of_files], detector.verdicts(readable))
    margins = [record["margin"] for record in records]
    assert margins == sorted(margins)


def test_the_summary_counts_what_predict_flags(detector, written, readable, listed):
    summary = written[1]
    flagged = detector.predict(readable) == -1
    defective = np.array([path.parent.name == "dent" for path in readable])
    assert summary.n_anomalous == flagged.sum()
    assert summary.n_inspected == len(readable)
    assert (summary.false_alarms, summary.misses) == ((flagged & ~defective).sum(), (~flagged & defective).sum())
    assert (summary.n_good, summary.n_defective) == ((~defective).sum(), defective.sum())
    assert f"{len(readable)} images were inspected: {flagged.sum()} anomalous" in str(summary)


def test_regions_are_those_of_find_regions_in_pixels_of_the_image(detector, written, readable):
    by_name = {record["name"]: record for record in parsed(written[0]).data["records"]}
    n_regions = 0
    for path, regions in zip(readable, detector.find_regions(readable), strict=True):
        record = by_name[f"{path.parent.name}/{path.name}"]
        assert record["n"] == len(regions)
        for found, region in zip(record["regions"], regions, strict=False):
            top, left, height, width = region.bbox
            assert np.abs(np.subtract(found["box"], (left, top, width, height))).max() <= 1  # rounding at the edge
            assert found["score"] == pytest.approx(region.score, abs=1e-3)
        n_regions += len(regions)
    assert n_regions > 0


def test_an_unreadable_image_is_listed_with_the_reason_and_the_others_are_inspected(written, readable):
    text = " ".join(text for _, text in [*parsed(written[0]).of("td"), *parsed(written[0]).of("bdi")])
    (name,) = written[1].unreadable
    assert name.endswith("broken.png")
    assert "good/broken.png" in text
    assert " is not an image that Pillow can read" in f" {text}"
    assert len(parsed(written[0]).data["records"]) == len(readable)


def test_a_report_of_unreadable_images_only_says_so(detector, tmp_path):
    summary = write_report(detector, [tmp_path / "1.png", tmp_path / "2.png"], tmp_path / "report.html")
    assert (summary.n_inspected, len(summary.unreadable)) == (0, 2)
    assert "2 images not readable" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_an_iterator_gives_the_report_of_a_list(detector, tmp_path):
    images, _, _ = parts()
    write_report(detector, images, tmp_path / "list.html")
    write_report(detector, iter(images), tmp_path / "iterator.html")
    assert parsed(tmp_path / "list.html").data == parsed(tmp_path / "iterator.html").data


def test_without_labels_nothing_is_said_of_false_alarms(detector, tmp_path):
    summary = write_report(detector, parts()[0], tmp_path / "report.html")
    assert (summary.false_alarms, summary.misses, summary.n_good) == (None, None, None)
    assert parsed(tmp_path / "report.html").data["known"] is False
    assert "False alarms" not in str(summary)


def test_masks_alone_say_which_images_are_defective(detector, tmp_path):
    images, labels, masks = parts()
    summary = write_report(detector, images, tmp_path / "report.html", masks=masks)
    assert (summary.n_good, summary.n_defective) == ((labels == 1).sum(), (labels == -1).sum())


def test_the_training_images_are_drawn_at_their_margins_as_if_they_were_new(detector, written):
    data = parsed(written[0]).data
    scores = detector._judge().normal_scores
    np.testing.assert_allclose(data["training"], scores - detector.offset_, rtol=1e-3)
    expected = [p for p in detector.verdicts(parts()[0]) if p == "unsure"]
    unsure = [record["margin"] for record in data["records"] if record["verdict"] == "unsure"]
    assert len(unsure) == len(expected)
    assert all(0 <= margin < data["unsure"] for margin in unsure)


@pytest.mark.parametrize("cv", [None, 2])
def test_a_conformal_threshold_decides_in_its_report(tmp_path, cv):
    images, labels, _ = parts()
    wrapped = small_detector(max_epochs=1).set_params(backbone="embedded")
    detector = ConformalThreshold(wrapped, max_false_alarm_rate=0.3, cv=cv, random_state=0).fit(textured_images(12, 64))
    summary = write_report(detector, images, tmp_path / "report.html", labels=labels)
    assert summary.n_anomalous == (detector.predict(images) == -1).sum()
    records = parsed(tmp_path / "report.html").data["records"]
    assert [record["margin"] < 0 for record in records] == [record["verdict"] == "anomalous" for record in records]


def test_an_exported_detector_writes_a_report(detector, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra onnx is not installed")
    to_onnx(detector, tmp_path / "part.onnx")
    exported = OnnxDetector(tmp_path / "part.onnx", provider="onnxruntime", n_threads=1)
    images, labels, _ = parts()
    summary = write_report(exported, images, tmp_path / "report.html", labels=labels)
    assert summary.n_anomalous == (detector.predict(images) == -1).sum()
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "torch of the export" in text
    with pytest.raises(ValueError, match=r"unsure_rate=0\.1: an exported detector"):
        write_report(exported, images, tmp_path / "report.html", unsure_rate=0.1)


def test_images_of_another_light_are_named(detector, tmp_path):
    dark = [np.uint8(image * 0.4) for image in parts()[0]]
    write_report(detector, dark, tmp_path / "report.html")
    page_text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Not like the training images" in page_text
    assert f"{len(dark)} of {len(dark)} images are darker than any of the good images of fit" in page_text


def test_settings_that_are_not_the_defaults_are_shown_with_the_defaults(written):
    cells = [text for _, text in parsed(written[0]).of("td")]
    at = cells.index("&quot;embedded&quot;".replace("&quot;", '"'))
    assert cells[at + 1] == '"wide_resnet50_2"'


def test_an_image_is_unsure_up_to_the_given_rate(detector, tmp_path):
    images, _, _ = parts()
    summary = write_report(detector, images, tmp_path / "report.html", unsure_rate=0.5)
    assert summary.n_unsure == (detector.verdicts(images, 0.5) == "unsure").sum()


def test_images_with_ignored_regions_are_scored_without_them(detector, tmp_path):
    images, _, masks = parts()
    without = ignoring(images, np.pad(masks[-1][16:48, 24:72], ((16, 16), (24, 24))))
    write_report(detector, without, tmp_path / "report.html")
    margins = [record["margin"] for record in parsed(tmp_path / "report.html").data["records"]]
    np.testing.assert_array_equal(margins, np.sort(detector.decision_function(without)))


# The file -------------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_from_anywhere(written):
    document = parsed(written[0])
    for _, attributes, _ in document.elements:
        for name in ("src", "href", "action", "data", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    (style,) = [text for _, text in document.of("style")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_allows_exactly_the_style_and_the_script_of_the_page(written):
    document = parsed(written[0])
    (policy,) = [a["content"] for a, _ in document.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    (style,) = [text for _, text in document.of("style")]
    (script,) = [text for attributes, text in document.of("script") if not attributes]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert re.findall(r"'sha256-([^']+)'", policy) == digests
    assert "unsafe" not in policy


def test_hostile_text_stays_text(written):
    document = parsed(written[0])
    assert document.of("img") == []
    assert all(a.get("type") == "application/json" for a, _ in document.of("script")[:-1])
    assert document.of("title")[0][1] == f"Line 4 {ATTACK}"
    assert document.of("h1")[0][1] == f"Line 4 {ATTACK}"


def test_embedded_data_cannot_end_their_element():
    text = page._json({"name": ATTACK, "more": "<!-- \u2028"})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"name": ATTACK, "more": "<!-- \u2028"}


def test_a_name_that_is_no_unicode_is_shown_with_its_bytes(detector, tmp_path):
    write_report(detector, [tmp_path / "part\udcff.png", tmp_path / "x" / "b.png"], tmp_path / "report.html")
    assert "part\\udcff.png" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_pictures_are_as_wide_and_high_as_the_images(written):
    document = parsed(written[0])
    for i in range(len(document.data["records"])):
        picture = document.picture(i)
        assert picture["size"] == [96, 64]
        assert Image.open(io.BytesIO(base64.b64decode(picture["photo"]))).size == (96, 64)


def points_of(path: str) -> np.ndarray:
    """The points x, y of a path of curves."""
    curves = [re.findall(r"(-?[\d.]+),(-?[\d.]+)", curve) for curve in path.split("Z") if curve]
    return np.concatenate([np.cumsum(np.array(curve, float), axis=0) for curve in curves])


def test_the_outline_of_a_mask_is_in_pixels_of_the_image(written):
    document = parsed(written[0])
    for i, record in enumerate(document.data["records"]):
        outline = document.picture(i)["truth"]
        assert bool(outline) == record["defective"]
        if outline:
            points = points_of(outline)
            np.testing.assert_allclose([*points.min(0), *points.max(0)], [30, 20, 60, 38], atol=0.11)


@pytest.mark.filterwarnings("ignore:.*discards up to:UserWarning")
def test_maps_and_contours_lie_where_a_crop_has_seen_the_image(tmp_path):
    cropping = small_detector(max_epochs=1, resize="crop", image_size=48).set_params(backbone="embedded")
    cropping.fit(textured_images(8, 96)[:, :64])
    images, labels, masks = parts()
    write_report(cropping, images, tmp_path / "report.html", labels=labels, masks=masks)
    document = parsed(tmp_path / "report.html")
    pictures = [document.picture(i) for i in range(len(images))]
    assert all(picture["view"] == [16, 0, 64, 64] for picture in pictures)
    points = np.concatenate([points_of(picture["contour"]) for picture in pictures if picture["contour"]])
    assert points[:, 0].min() >= 15.9
    assert points[:, 0].max() <= 80.1


def test_a_thousand_images_of_noise_with_maps_full_of_regions_need_less_than_30_mb():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (700, 900, 3), np.uint8)
    anomaly_map = ndimage.gaussian_filter(rng.normal(size=(256, 336)), 4)
    anomaly_map = np.float32((anomaly_map - anomaly_map.min()) / np.ptp(anomaly_map))
    curves = as_path(outlines(anomaly_map, 0.6), lambda curve: curve * 2.7)
    regions = [{"box": [1000, 1000, 100, 100], "area": 10000, "score": 0.123}] * 20
    others = {"heat": heat(anomaly_map, 0.6), "contour": curves, "truth": curves}
    taken = len(json.dumps([others, regions]))
    of_photo = len(photo(noise, 640, photo_bytes(share_of_page(1000), taken)))
    assert of_photo > 4000
    assert taken + of_photo + 1000 < 30_000  # with its row, the name aside


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_photo_shows_images_of_every_type_alike(dtype):
    gray = np.tile(np.linspace(0, 1, 90), (60, 1))
    scale = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    shown = Image.open(io.BytesIO(base64.b64decode(photo((gray * scale).astype(dtype), 640, 50_000))))
    np.testing.assert_allclose(np.asarray(shown.convert("L")), 255 * gray, atol=6)


def test_the_file_is_replaced_as_a_whole_or_not_at_all(detector, tmp_path, monkeypatch):
    target = tmp_path / "report.html"
    target.write_text("the old one")

    def fails(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(StorageError, match="the disk is full"):
        write_report(detector, parts()[0][:2], target)
    assert target.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [target]


# What is refused ------------------------------------------------------------------------------------------


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_scored(detector, tmp_path, monkeypatch):
    monkeypatch.setattr(PBASDetector, "score_stream", None)
    with pytest.raises(StorageError, match=re.escape(f"there is no folder {tmp_path / 'no'}")):
        write_report(detector, parts()[0], tmp_path / "no" / "report.html")
    with pytest.raises(StorageError, match="is a folder: give the report a name"):
        write_report(detector, parts()[0], tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"labels": [1, -1]}, InvalidTargetError, "labels has 2 entries for 11 images"),
        ({"labels": [0, 1] * 5 + [0]}, InvalidTargetError, "labels contains 0, 1"),
        ({"masks": [np.eye(7)] * 11}, InvalidTargetError, r"masks\[0\] is 7 x 7 and its image 64 x 96"),
        ({"unsure_rate": 0.7}, ValueError, "unsure_rate=0.7"),
        ({"picture_size": 10}, ValueError, "picture_size=10: expected a whole number of pixels"),
        ({"picture_size": True}, ValueError, "picture_size=True"),
    ],
)
def test_wrong_options_are_named(detector, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        write_report(detector, parts()[0], tmp_path / "report.html", **options)
    assert list(tmp_path.iterdir()) == []


def test_labels_of_an_iterator_are_refused_with_the_way_out(detector, tmp_path):
    images, labels, _ = parts()
    with pytest.raises(InvalidTargetError, match=r"pass list\(images\)"):
        write_report(detector, iter(images), tmp_path / "report.html", labels=labels)


def test_no_images_are_refused(detector, tmp_path):
    with pytest.raises(InvalidImageError, match="there is nothing to report"):
        write_report(detector, iter(()), tmp_path / "report.html")


def test_what_is_no_fitted_detector_is_refused(detector, tmp_path):
    with pytest.raises(NotFittedError):
        write_report(PBASDetector(), parts()[0], tmp_path / "report.html")
    with pytest.raises(TypeError, match="detector is a Pipeline"):
        write_report(make_pipeline(detector), parts()[0], tmp_path / "report.html")


# Pictures -------------------------------------------------------------------------------------------------


def rgba(anomaly_map, threshold):
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(heat(np.float32(anomaly_map), threshold)))).convert("RGBA")
    )


def test_the_threshold_has_one_color_whatever_else_is_in_a_map():
    threshold = 0.58
    alone, beside = np.full((8, 8), threshold), np.full((8, 8), threshold)
    beside[:, 4:] = 0.99
    assert rgba(alone, threshold)[0, 0].tolist() == rgba(beside, threshold)[0, 0].tolist()
    color = rgba(alone, threshold)[0, 0, :3].astype(int)
    middle = legend(13)[6]
    assert np.abs(color - [int(middle[i : i + 2], 16) for i in (1, 3, 5)]).max() <= 6  # one of 64 colors


def test_a_good_part_does_not_glow():
    good = ndimage.gaussian_filter(np.random.default_rng(0).random((64, 64)), 6)
    assert heat(np.float32(0.45 * good / good.max()), 0.58) is None
    assert rgba(np.linspace(0, 1, 64)[None].repeat(8, 0), 0.58)[0, :30, 3].max() == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_contour_runs_where_the_interpolated_map_has_the_level(seed):
    values = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(40, 60)), 3)
    level = float(np.quantile(values, 0.8))
    points = np.concatenate(outlines(values, level))
    inner = points[(points > 0.5).all(1) & (points < np.array(values.shape) - 0.5).all(1)]
    assert len(inner) > 50
    np.testing.assert_allclose(ndimage.map_coordinates(values, inner.T - 0.5, order=1), level, atol=1e-9)


def test_each_region_and_each_hole_has_one_closed_curve():
    mask = np.zeros((20, 30))
    mask[2:12, 3:20] = 1
    mask[5:8, 8:12] = 0
    mask[15:19, 25:30] = 1  # at the edge
    curves = outlines(mask, 0.5)
    assert len(curves) == 3
    for curve in curves:
        gaps = np.abs(curve - np.roll(curve, 1, axis=0)).max(1)
        assert gaps.max() <= 1
    areas = [0.5 * np.sum(y * np.roll(x, -1) - x * np.roll(y, -1)) for y, x in (curve.T for curve in curves)]
    assert np.abs(np.sort(np.abs(areas)) - [12, 20, 170]).max() <= 0.5  # corners are cut
    assert (np.array(areas) > 0).sum() in (1, 2)  # the hole runs the other way around


def test_colors_of_text_have_enough_contrast_in_both_modes():
    def luminance(color):
        channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    style = page._resource("report.css")
    for block in re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL):
        colors = {
            name: value * 2 if len(value) == 4 else value for name, value in re.findall(r"--(\w+): (#\w+)", block)
        }
        colors = {name: value if len(value) == 7 else "#" + value[1:4] * 2 for name, value in colors.items()}
        for text in ("text", "quiet", "link", "anomalous", "unsure", "normal", "unreadable"):
            for ground in ("page", "panel"):
                low, high = sorted((luminance(colors[text]), luminance(colors[ground])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


# The command ----------------------------------------------------------------------------------------------


def test_the_command_writes_a_report_and_says_what_it_found(detector, folder, tmp_path, capsys):
    saved, page = str(tmp_path / "part.skpbas"), str(tmp_path / "report.html")
    detector.save(saved)
    assert main(["report", saved, str(folder), "-o", page, "--device", "cpu"]) == 3  # one cannot be read
    lines = capsys.readouterr().out.splitlines()
    assert "11 images were inspected" in lines[0]
    assert any(line.startswith("Misses: ") for line in lines)
    assert "<title>Inspection of Prüfling</title>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert main(["report", saved, str(folder / "test" / "dent"), "-o", page]) == 0


def test_a_folder_is_read_by_its_layout(folder, tmp_path):
    images, labels, masks = command.images_in(folder)
    assert [label == 1 for label in labels] == [path.parent.name == "good" for path in images]
    assert [mask is None for mask in masks] == [label == 1 for label in labels]
    assert command.images_in(folder / "test") == (images, labels, masks)
    assert command.images_in(folder / "test" / "dent")[1:] == (None, None)
    for name in ("a", "b"):
        (tmp_path / "shifts" / name).mkdir(parents=True)
        shutil.copy(images[0], tmp_path / "shifts" / name / "1.png")
    assert len(command.images_in(tmp_path / "shifts")[0]) == 2
    with pytest.raises(UsageError, match="no such folder"):
        command.images_in(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no image files"):
        command.images_in(tmp_path / "empty")


def test_a_file_that_is_written_again_meanwhile_has_no_picture_of_another_part(detector, folder, tmp_path, monkeypatch):
    first, second = (tmp_path / f"{i}.png" for i in range(2))
    for path in (first, second):
        shutil.copy(folder / "test" / "good" / "0.png", path)
    recorded = records._recorded

    def replacing(result, item, *rest):
        if item == second:
            Image.new("RGB", (96, 64)).save(second)
        return recorded(result, item, *rest)

    monkeypatch.setattr(records, "_recorded", replacing)
    summary = write_report(detector, [first, second], tmp_path / "report.html")
    assert len(summary.unreadable) == 1
    assert "written again while the report was made" in (tmp_path / "report.html").read_text(encoding="utf-8")


# In a browser ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, written):
    """Open a page, by default the report; at the end nothing has failed, and nothing but the file was requested."""
    contexts, faults = [], []

    def open_page(path=written[0], width=1280, height=800, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(20_000)
        tab.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("request", lambda request: faults.append(request.url) if not _is_own(request.url, path) else None)
        tab.goto(path.as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def _is_own(url: str, path: Path) -> bool:
    return url.startswith("data:") or urlparse(url).path == urlparse(path.as_uri()).path


def shown_names(tab):
    return tab.eval_on_selector_all("#table tbody tr:not([hidden]) .name", "cells => cells.map(c => c.textContent)")


def names_by(records, key, reverse=False):
    return [record["name"] for record in sorted(records, key=key, reverse=reverse)]


def test_a_click_on_a_heading_sorts_and_a_second_one_turns_the_order(opened, written):
    tab, records = opened(), parsed(written[0]).data["records"]
    assert shown_names(tab) == names_by(records, lambda record: record["margin"])
    heading = tab.locator("#table thead th.name")
    heading.locator("button").click()

    def number(record):
        kind, file = record["name"].split("/")
        return kind, int(file.removesuffix(".png"))

    assert shown_names(tab) == names_by(records, number)
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").press("Enter")
    assert shown_names(tab) == names_by(records, number, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    assert tab.locator("[aria-sort]").count() == 1
    for key in ("margin", "p", "n"):
        tab.locator(f"[data-key={key}]").click()
        values = {record["name"]: record[key] for record in records}
        assert [values[name] for name in shown_names(tab)] == sorted(values.values())


def test_filters_show_the_images_of_a_name_and_a_verdict(opened, written):
    tab, records = opened(), parsed(written[0]).data["records"]
    tab.fill("#search", "DENT png")
    assert set(shown_names(tab)) == {record["name"] for record in records if record["name"].startswith("dent")}
    tab.fill("#search", "nothing has this name")
    assert shown_names(tab) == []
    assert tab.locator("#none").is_visible()
    tab.fill("#search", "")
    for verdict in ("anomalous", "unsure", "normal"):
        tab.select_option("#show", verdict)
        expected = [record["name"] for record in records if record["verdict"] == verdict]
        assert shown_names(tab) == expected
        assert tab.inner_text("#shown") == f"{len(expected)} of {len(records)} shown"


def counted(tab, identifier):
    return int(tab.inner_text(f"#{identifier}").split(" of ")[0])


def test_the_slider_counts_as_predict_does_and_as_another_threshold_would(opened, written, detector, readable):
    tab = opened()
    margins = detector.decision_function(readable)
    defective = np.array([path.parent.name == "dent" for path in readable])

    def check(flagged):
        assert counted(tab, "flagged") == flagged.sum()
        assert counted(tab, "false-alarms") == (flagged & ~defective).sum()
        assert counted(tab, "misses") == (~flagged & defective).sum()

    check(detector.predict(readable) == -1)
    seen = set()
    for position in (0, 150, 600, 850, 1000):
        tab.eval_on_selector("#threshold", f"s => {{ s.value = {position}; s.dispatchEvent(new Event('input')); }}")
        threshold = float(tab.inner_text("#chosen").split(" < ")[1])
        check(margins < threshold)
        seen.add(counted(tab, "flagged"))
        for chosen in ("flagged", "false alarms", "misses"):
            tab.select_option("#show", chosen)
            assert len(shown_names(tab)) == counted(tab, chosen.replace(" ", "-"))
    assert {0, len(readable)} <= seen
    tab.select_option("#show", "false alarms")
    assert len(shown_names(tab)) == (~defective).sum()
    tab.click("#reset")
    assert "the detector's own threshold" in tab.inner_text("#chosen")
    check(detector.predict(readable) == -1)
    tab.focus("#threshold")
    tab.keyboard.press("ArrowLeft")
    check(margins < float(tab.inner_text("#chosen").split(" < ")[1]))


def test_the_viewer_is_used_with_the_keyboard(opened, written):
    tab = opened()
    names = shown_names(tab)
    tab.locator("#table thead button").last.focus()
    tab.keyboard.press("Tab")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    assert tab.locator("#viewer").is_visible()
    assert tab.inner_text("#viewer-name") == names[1]
    tab.keyboard.press("ArrowRight")
    assert tab.inner_text("#viewer-name") == names[2]
    for _ in names:
        tab.keyboard.press("ArrowRight")
    assert tab.inner_text("#viewer-name") == names[-1]
    tab.keyboard.press("ArrowLeft")
    assert tab.inner_text("#viewer-name") == names[-2]
    tab.keyboard.press("Escape")
    assert not tab.locator("#viewer").is_visible()
    tab.wait_for_function("name => document.activeElement.ariaLabel === `Show ${name}`", arg=names[-2])


def test_the_viewer_draws_the_image_at_its_aspect_ratio_with_what_is_switched_on(opened, written):
    tab = opened()
    tab.locator("#table tbody .picture button").first.click()
    box = tab.locator("#drawing image").first.bounding_box()
    assert box["width"] / box["height"] == pytest.approx(96 / 64, rel=0.01)
    record = parsed(written[0]).data["records"][0]
    assert tab.locator("#drawing rect.box").count() == len(record["regions"]) > 0
    for layer, marks in (("boxes", "rect"), ("contour", "path.back"), ("truth", "path.truth")):
        assert tab.locator(f"#drawing {marks}").count() > 0
        tab.uncheck(f"[data-layer={layer}]")
        assert tab.locator(f"#drawing {marks}").count() == 0
    tab.uncheck("[data-layer=heat]")
    assert tab.locator("#drawing image").count() == 1
    assert "margin" in tab.inner_text("#facts").lower()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_the_page_without_scrolling_sideways(opened, scheme):
    tab = opened(width=375, height=700, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 375
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 380) == (scheme == "light")
    for cell in ("picture", "name"):
        assert tab.locator(f"#table tbody .{cell}").first.bounding_box()["width"] > 60
    tab.locator("#table tbody .picture button").first.click()
    assert tab.locator("#viewer").bounding_box()["width"] <= 375
    assert tab.evaluate("document.querySelector('#viewer').scrollWidth") <= 375


def test_a_print_has_the_pictures_of_the_rows_and_no_controls(opened):
    tab = opened()
    tab.select_option("#show", "anomalous")
    tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    tab.emulate_media(media="print")
    for control in ("#threshold", "#search", "#show", "#print"):
        assert not tab.locator(control).is_visible()
    rows = tab.locator("#table tbody tr:not([hidden])")
    assert rows.count() == tab.locator("#table tbody tr:not([hidden]) .picture svg").count() > 0
    assert tab.pdf(format="A4").startswith(b"%PDF")


def test_hostile_names_run_nothing(opened, detector, tmp_path):
    missing = tmp_path / ATTACK
    path = tmp_path / "report.html"
    images, _, _ = parts()
    if os.name == "nt":
        pytest.skip("Windows has no such file names")
    name = tmp_path / "images" / f"Teil ü {ATTACK}.png"
    name.parent.mkdir(parents=True)
    Image.fromarray(images[-1]).save(name)
    Image.fromarray(images[0]).save(tmp_path / "images" / "plain.png")
    write_report(detector, [name, tmp_path / "images" / "plain.png", missing], path, title=ATTACK)
    tab = opened(path)
    expected = str(name.relative_to(tmp_path))
    assert tab.title() == ATTACK
    assert expected in [f"images/{shown}" if not shown.startswith("images") else shown for shown in shown_names(tab)]
    tab.locator("#table tbody .picture button").first.click()
    assert tab.evaluate("typeof window.attacked") == "undefined"
    assert tab.locator("img").count() == 0
    assert ATTACK in tab.inner_text("#unreadable")


class Quick:
    """A detector of random scores."""

    map_shape_, offset_, map_threshold_, resize = (32, 32), -1.0, 0.6, "stretch"

    def score_stream(self, images, *, on_error, maps):
        rng = np.random.default_rng(0)
        for index, _ in enumerate(images):
            score = rng.normal(-0.5, 0.3)
            anomaly_map = ndimage.gaussian_filter(rng.random((32, 32), np.float32), 1)
            label, verdict = (1, "normal") if score >= -1 else (-1, "anomalous")
            yield Result(index, f"images[{index}]", score, label, 0.5, anomaly_map, None, verdict)


def test_pictures_far_below_are_decoded_when_they_come_near(opened, tmp_path):
    write_report(Quick(), [parts()[0][0]] * 250, tmp_path / "report.html")
    tab = opened(tmp_path / "report.html")
    tab.wait_for_selector("#table tbody tr:first-child svg")
    assert tab.locator("#table tbody svg").count() < 60
    tab.locator("#table tbody tr").last.scroll_into_view_if_needed()
    tab.wait_for_selector("#table tbody tr:last-child svg")
    assert tab.locator("#table tbody svg").count() < 60


def test_a_report_without_a_readable_image_opens(opened, detector, tmp_path):
    write_report(detector, [tmp_path / "gone.png"], tmp_path / "report.html")
    tab = opened(tmp_path / "report.html")
    assert tab.inner_text("#unreadable").splitlines()[-1].split() == ["gone.png", "no", "such", "file"]


def test_real_images_make_a_report(opened, tmp_path):
    if not SHARED.is_dir():
        pytest.skip(f"the shared measurement data is not at {SHARED}")
    from skpbas.datasets import list_images

    folder = SHARED / "data" / "mvtec" / "bottle"
    detector = small_detector(max_epochs=1, image_size=64).fit(list_images(folder / "train" / "good")[:8])
    images, labels, masks = command.images_in(folder)
    write_report(detector, images[::9], tmp_path / "report.html", labels=labels[::9], masks=masks[::9])
    assert len(shown_names(opened(tmp_path / "report.html"))) == len(images[::9])
