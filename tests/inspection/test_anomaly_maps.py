"""Pictures of anomaly maps: one color scale for a detector, contours at the threshold, boxes in pixels of the image."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import small_detector, textured_images

from skpbas._cli.colormap import color_table
from skpbas.errors import InvalidTargetError
from skpbas.inspection import AnomalyMapDisplay

plt = pytest.importorskip("matplotlib.pyplot")


def hill(shape=(40, 60), center=(20, 30), height=0.9, base=0.3, width=6.0):
    """An anomaly map with one round peak."""
    rows, columns = np.indices(shape)
    squared = (rows - center[0]) ** 2 + (columns - center[1]) ** 2
    return np.float32(base + (height - base) * np.exp(-squared / (2 * width**2)))


def image(shape=(40, 60)):
    return np.full((*shape, 3), 128, np.uint8)


def contours(ax):
    return [c for c in ax.collections if type(c).__name__ == "QuadContourSet"]


def boxes(ax):
    return [patch for patch in ax.patches if type(patch).__name__ == "Rectangle"]


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def interpolated(values, column, row):
    top, left = int(np.floor(row)), int(np.floor(column))
    bottom, right = min(top + 1, values.shape[0] - 1), min(left + 1, values.shape[1] - 1)
    down, along = row - top, column - left
    upper = (1 - along) * values[top, left] + along * values[top, right]
    lower = (1 - along) * values[bottom, left] + along * values[bottom, right]
    return (1 - down) * upper + down * lower


def test_the_contour_runs_where_the_map_equals_the_threshold():
    anomaly_map = hill()
    display = AnomalyMapDisplay.from_predictions([image()], [anomaly_map], map_threshold=0.6)
    for ax in display.ax_[0]:
        (lines,) = contours(ax)
        assert list(lines.levels) == [0.6]
        points = np.concatenate([path.vertices for path in lines.get_paths()])
        assert len(points) > 20
        assert [interpolated(anomaly_map, x, y) for x, y in points] == pytest.approx([0.6] * len(points), abs=1e-5)


def test_two_pictures_of_a_detector_have_one_scale_whatever_their_maps():
    low, high = (
        AnomalyMapDisplay.from_predictions([image()], [hill(height=height)], map_threshold=0.6)
        for height in (0.4, 0.98)
    )
    for display in (low, high):
        (drawn,) = display.ax_[0, 1].images
        assert (drawn.norm.vmin, drawn.norm.vmax) == pytest.approx((0.3, 0.8))
        assert (display.colorbar_.norm.vmin, display.colorbar_.norm.vmax) == pytest.approx((0.3, 0.8))
        middle = np.array(drawn.cmap(drawn.norm(0.6))[:3]) * 255
        assert middle == pytest.approx(color_table()[[127, 128]].mean(axis=0), abs=2)


def test_a_good_part_is_dark():
    display = AnomalyMapDisplay.from_predictions([image()], [hill(height=0.41, base=0.4)], map_threshold=0.6)
    (drawn,) = display.ax_[0, 1].images
    assert np.asarray(drawn.to_rgba(drawn.get_array()))[..., :3].mean() < 0.25
    assert contours(display.ax_[0, 1]) == []


def test_boxes_and_their_sizes_are_in_pixels_of_the_image():
    anomaly_map = np.full((40, 60), 0.2, np.float32)
    anomaly_map[10:17, 20:43] = 0.9
    display = AnomalyMapDisplay.from_predictions([image()], [anomaly_map], map_threshold=0.6)
    (box,) = boxes(display.ax_[0, 0])
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (19.5, 9.5, 23, 7)
    assert [text.get_text() for text in display.ax_[0, 0].texts] == ["23 × 7 px"]


@pytest.mark.parametrize("rows", [(0, 40), (0, 5), (35, 40), (10, 12)])
def test_the_size_of_a_box_is_written_inside_the_picture(rows):
    anomaly_map = np.full((40, 60), 0.2, np.float32)
    anomaly_map[slice(*rows), 20:43] = 0.9
    display = AnomalyMapDisplay.from_predictions([image()], [anomaly_map], map_threshold=0.6)
    display.figure_.canvas.draw()
    (label,) = display.ax_[0, 0].texts
    inner, outer = label.get_window_extent(), display.ax_[0, 0].get_window_extent()
    assert outer.x0 <= inner.x0 < inner.x1 <= outer.x1
    assert outer.y0 <= inner.y0 < inner.y1 <= outer.y1


def test_a_map_of_another_size_is_stretched_to_its_image():
    small = np.full((4, 4), 0.2, np.float32)
    small[2:, 2:] = 0.9
    display = AnomalyMapDisplay.from_predictions([image((40, 80))], [small], map_threshold=0.55)
    (box,) = boxes(display.ax_[0, 0])
    assert (box.get_x() + box.get_width(), box.get_y() + box.get_height()) == (79.5, 39.5)
    assert (box.get_width(), box.get_height()) == pytest.approx((40, 20), abs=2)
    (drawn,) = display.ax_[0, 1].images
    assert drawn.get_array().shape == (40, 80)


def test_images_keep_their_aspect_ratio():
    shapes = [(20, 80), (60, 30)]
    display = AnomalyMapDisplay.from_predictions(
        [image(shape) for shape in shapes], [hill(shape) for shape in shapes], map_threshold=0.6
    )
    display.figure_.canvas.draw()
    for row, (height, width) in zip(display.ax_, shapes, strict=True):
        for ax in row:
            box = ax.get_window_extent()
            assert box.height / box.width == pytest.approx(height / width, rel=0.02)


def test_a_mask_is_outlined_and_named_in_the_legend():
    mask = np.zeros((40, 60), bool)
    mask[15:25, 25:35] = True
    images, maps = [image(), image()], [hill(), hill()]
    display = AnomalyMapDisplay.from_predictions(images, maps, map_threshold=0.6, masks=[mask, None])
    assert [list(c.levels) for c in contours(display.ax_[0, 0])] == [[0.5], [0.6]]
    assert [list(c.levels) for c in contours(display.ax_[1, 0])] == [[0.6]]
    assert "true defect" in legend_texts(display.figure_)
    without = AnomalyMapDisplay.from_predictions(images, maps, map_threshold=0.6)
    assert "true defect" not in legend_texts(without.figure_)


def test_what_was_not_inspected_is_gray_and_named_in_the_legend():
    anomaly_map = hill()
    anomaly_map[:, :10] = np.nan
    display = AnomalyMapDisplay.from_predictions([image()], [anomaly_map], map_threshold=0.6)
    (drawn,) = display.ax_[0, 1].images
    colors = np.asarray(drawn.to_rgba(drawn.get_array()))
    assert colors[5, 5, :3] == pytest.approx(128 / 255, abs=0.01)
    assert "not inspected" in legend_texts(display.figure_)


@pytest.mark.parametrize("value", [0.0, 0.6, 1.0, np.nan])
def test_a_flat_map_is_drawn_without_contours(value):
    flat = np.full((40, 60), value, np.float32)
    display = AnomalyMapDisplay.from_predictions([image()], [flat], map_threshold=0.6)
    display.figure_.canvas.draw()
    assert contours(display.ax_[0, 1]) == []


@pytest.mark.parametrize("threshold", [0.0, 1e-7, 0.9999, 1.0])
def test_a_threshold_at_the_end_of_the_range_can_be_drawn(threshold):
    AnomalyMapDisplay.from_predictions([image()], [hill()], map_threshold=threshold).figure_.canvas.draw()


def test_an_overlay_is_more_transparent_where_the_map_is_low():
    display = AnomalyMapDisplay.from_predictions([image()], [hill()], map_threshold=0.6, kind="overlay")
    assert display.ax_.shape == (1, 1)
    _, overlay = display.ax_[0, 0].images
    opacity = np.asarray(overlay.get_alpha())
    assert opacity[0, 0] == pytest.approx(0, abs=1e-6)
    assert opacity[20, 30] == 0.75


def test_several_images_share_a_row():
    display = AnomalyMapDisplay.from_predictions([image()] * 3, [hill()] * 3, map_threshold=0.6, n_columns=2)
    places = [[ax.get_subplotspec().colspan.start for ax in row] for row in display.ax_]
    assert places == [[0, 1], [2, 3], [0, 1]]


def test_a_single_axes_of_the_caller_is_divided():
    figure, (left, right) = plt.subplots(1, 2, layout="constrained")
    display = AnomalyMapDisplay.from_predictions([image()] * 2, [hill()] * 2, map_threshold=0.6, ax=left)
    assert display.figure_ is figure
    assert display.ax_.shape == (2, 2)
    figure.canvas.draw()
    assert max(ax.get_position().x1 for ax in display.ax_.flat) <= right.get_position().x0


def test_another_number_of_axes_is_an_error_that_says_how_many_are_needed():
    _, axes = plt.subplots(1, 3)
    with pytest.raises(ValueError, match=r"3 axes: expected one, or 2 images x 2 panels"):
        AnomalyMapDisplay.from_predictions([image()] * 2, [hill()] * 2, map_threshold=0.6, ax=axes)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"map_threshold": 3}, ValueError, r"map_threshold=3: expected a number in \[0, 1\]"),
        ({"map_threshold": np.nan}, ValueError, "map_threshold=nan"),
        ({"masks": [np.ones((4, 4), bool)]}, InvalidTargetError, r"masks\[0\] is 4 x 4 pixels and its image 40 x 60"),
        ({"masks": [None, None]}, ValueError, "masks has 2 entries for 1 images"),
        ({"names": ["a", "b"]}, ValueError, "names has 2 entries for 1 images"),
        ({"kind": "heat"}, ValueError, "kind='heat': choose one of 'both', 'map', 'overlay'"),
        ({"n_columns": 0}, ValueError, "n_columns=0"),
        ({"min_area": 0}, ValueError, "min_area=0"),
    ],
)
def test_a_wrong_argument_is_an_error_that_names_it(options, error, message):
    with pytest.raises(error, match=message):
        AnomalyMapDisplay.from_predictions([image()], [hill()], **{"map_threshold": 0.6, **options})


def spotted(images):
    """The images with a white square, and the masks of these."""
    images, masks = images.copy(), np.zeros(images.shape[:3], bool)
    images[:, 20:36, 24:40] = 255
    masks[:, 20:36, 24:40] = True
    return images, masks


def test_a_detector_draws_what_it_says_of_images(fitted, good_images):
    images, masks = spotted(textured_images(2, seed=9))
    X = [*good_images[:1], *images]
    display = AnomalyMapDisplay.from_estimator(fitted, X, [None, *masks], names=["good", "a", "b"])
    titles = [ax.get_title(loc="left") for ax in display.ax_[:, 0]]
    expected = zip(["good", "a", "b"], fitted.verdicts(X), fitted.p_values(X), strict=True)
    assert titles == [f"{name}\n{verdict}, p = {p_value:.2g}" for name, verdict, p_value in expected]
    regions = fitted.find_regions(X)
    for row, found in zip(display.ax_, regions, strict=True):
        drawn = {(box.get_y() + 0.5, box.get_x() + 0.5, box.get_height(), box.get_width()) for box in boxes(row[0])}
        assert drawn == {region.bbox for region in found}
    assert len(regions[1]) > 0


@pytest.mark.filterwarnings("ignore:.*discards up to 33% of the area")
@pytest.mark.parametrize("params", [{"resize": "crop"}, {"tile": 64}], ids=str)
def test_crops_and_tiles_and_gray_images_are_drawn_whole(params):
    images = textured_images(6, side=96)[:, :64, :, 0]
    detector = small_detector(max_epochs=1, **params).fit(list(images))
    display = AnomalyMapDisplay.from_estimator(detector, list(images[:2]))
    assert [ax.images[0].get_array().shape for ax in display.ax_[:, 1]] == [(64, 96)] * 2
    assert ("not inspected" in legend_texts(display.figure_)) == (params == {"resize": "crop"})


def test_files_are_named_by_folder_and_file(fitted, good_images, tmp_path):
    from PIL import Image

    (tmp_path / "good").mkdir()
    Image.fromarray(good_images[0]).save(tmp_path / "good" / "007.png")
    display = AnomalyMapDisplay.from_estimator(fitted, [tmp_path / "good" / "007.png"])
    assert display.ax_[0, 0].get_title(loc="left").startswith("good/007.png\n")
