"""Labels and masks: everybody who reads y reads the same, and what is not labels or masks is refused, never guessed."""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import small_detector, textured_images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.base import BaseEstimator, OutlierMixin

from skpbas._inputs.targets import anomalous_rows, normal_rows
from skpbas.calibration import ConformalThreshold
from skpbas.datasets import make_inspection_images
from skpbas.errors import InvalidTargetError
from skpbas.metrics import image_auroc
from skpbas.model_selection import NormalKFold
from skpbas.scorers import image_auroc_scorer

LABELS = [1] * 8 + [-1] * 4


class Plain(OutlierMixin, BaseEstimator):
    """A sample is its own score; remembers what it was fitted on."""

    def fit(self, X, y=None):
        self.seen_ = np.ravel(X)
        return self

    def score_samples(self, X):
        return np.ravel(X)


class Column:
    """The part of a table's column that the package uses, with labels of the rows that are not their positions."""

    def __init__(self, values, dtype=object):
        self.values = np.array(values, dtype=dtype)
        self.dtype = self.values.dtype

    def __len__(self):
        return len(self.values)

    def __getitem__(self, label):
        return self.values[len(self) - 1 - label]

    def __iter__(self):
        return iter(self.values)

    def to_numpy(self):
        return self.values


def frame(values):
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"label": values}, index=range(len(values))[::-1])


class ArrayLike:
    """Converts to an array, and does nothing else."""

    def __init__(self, values):
        self.values = np.array(values)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)


FORMS = {
    "list": list,
    "tuple": tuple,
    "ints": np.array,
    "int8": lambda labels: np.array(labels, np.int8),
    "floats": lambda labels: np.array(labels, float),
    "float16": lambda labels: np.array(labels, np.float16),
    "objects": lambda labels: np.array(labels, object),
    "objects of all kinds": lambda labels: np.array(
        [(int, float, np.int16, np.float32, Fraction)[i % 5](label) for i, label in enumerate(labels)], object
    ),
    "column": lambda labels: np.array(labels)[:, None],
    "column of lists": lambda labels: [[label] for label in labels],
    "column of objects": lambda labels: np.array(labels, object)[:, None],
    "arrays of no dimension": lambda labels: [np.array(label) for label in labels],
    "tensor": torch.tensor,
    "tensors": lambda labels: [torch.tensor(label) for label in labels],
    "a table's column": Column,
    "an array of another library": ArrayLike,
    "series": lambda labels: frame(labels)["label"],
    "series of nullable numbers": lambda labels: frame(labels)["label"].astype("Int64"),
    "series of objects": lambda labels: frame(labels)["label"].astype(object),
    "frame": frame,
}


def readers(images):
    """What reads y, by name: each takes y and returns the rows that it takes for normal."""
    rows = np.arange(float(len(images)))[:, None]

    def by_fit(y):
        detector = small_detector(max_epochs=1, layers=("layer1",), hidden_dim=8)
        return detector.fit(images, y).n_samples_fit_

    def by_threshold(y):
        model = ConformalThreshold(Plain(), max_false_alarm_rate=0.4, random_state=0).fit(rows, y)
        return sorted([*model.detector_.seen_, *model.calibration_scores_])

    def by_splitter(y):
        return sorted(np.concatenate([train for train, _ in NormalKFold(2).split(rows, y)]))

    return {"fit": by_fit, "threshold": by_threshold, "splitter": by_splitter}


@pytest.mark.parametrize("form", FORMS)
def test_labels_mean_the_same_to_everybody_in_every_form(form):
    y = FORMS[form](LABELS)
    read = readers(textured_images(12, side=32))
    assert read["fit"](y) == 8
    assert read["threshold"](y) == list(range(8))
    assert read["splitter"](y) == list(range(8))
    scores = np.random.default_rng(5).normal(size=12)
    assert image_auroc_scorer(Plain(), scores, y) == image_auroc(LABELS, -scores)


@given(st.lists(st.sampled_from([-1, 1]), min_size=1, max_size=30), st.sampled_from(sorted(set(FORMS) - {"frame"})))
def test_rows_of_minus_one_are_anomalous(labels, form):
    y = FORMS[form](labels)
    assert anomalous_rows(y, len(labels)).tolist() == [label == -1 for label in labels]
    assert normal_rows(y, len(labels)).tolist() == [i for i, label in enumerate(labels) if label == 1]


@pytest.mark.parametrize("y", [None, [1] * 12, np.ones(12), [None] * 12, [""] * 12])
def test_all_images_are_normal_where_y_says_so_or_marks_nothing(y):
    assert normal_rows(y, 12).tolist() == list(range(12))


ZERO_ONE = [0] * 8 + [1] * 4
WORDS = ["good"] * 8 + ["crack", "cut", "cut", "crack"]
UNREADABLE = {
    "zeros and ones": (np.array(ZERO_ONE), r"contains 0, 1; .*np\.where\(y == 1, -1, 1\) if 1 marks anomalous"),
    "a list of zeros and ones": (ZERO_ONE, r"np\.where\(np\.asarray\(y\) == 1, -1, 1\) if 1 marks anomalous"),
    "zeros and ones as floats": (np.array(ZERO_ONE, float), "contains 0, 1; expected"),
    "objects": (np.array(ZERO_ONE, object), "contains 0, 1; expected"),
    "zeros": (np.zeros(12, int), r"contains 0; .*np\.where\(y == 1, -1, 1\)"),
    "booleans": (np.array(ZERO_ONE, bool), r"False, True; .*np\.where\(y, -1, 1\) if True marks anomalous"),
    "booleans as objects": (np.array(ZERO_ONE, bool).astype(object), "contains False, True; expected"),
    "a list of booleans": ([False] * 8 + [True] * 4, r"np\.where\(np\.asarray\(y\), -1, 1\)"),
    "all True": (np.ones(12, bool), r"contains True; .*np\.where\(y, 1, -1\) if normal"),
    "all False": (np.zeros(12, bool), "contains False; expected"),
    "booleans and numbers": ([True] * 8 + [-1] * 4, r"mixes booleans \(y\[0\] is True\) and numbers"),
    "three values": (np.array([1] * 6 + [0] * 2 + [-1] * 4), "contains -1, 0, 1; .*leave out the images of 0"),
    "classes": (np.array([0, 1, 2] * 4), r"contains 0, 1, 2; .*np\.where\(y == 0, 1, -1\) if 0 marks normal"),
    "two other values": (np.array([5, 7] * 6), r"contains 5, 7; .*np\.where\(y == 5, 1, -1\)"),
    "halves": (np.array([0.5, 1] * 6), "contains 0.5, 1; expected"),
    "many values": (np.arange(12.0), r"0, 1, 2, 3, 4, \.\.\.; .*np\.where\(normal, 1, -1\)"),
    "infinity": (np.array([1, np.inf] * 6), "contains 1, inf"),
    "NaN": (np.where(np.arange(12) == 3, np.nan, LABELS), r"y\[3\] is nan \(1 of 12 entries are missing\)"),
    "only NaN": (np.full(12, np.nan), r"y\[0\] is nan \(12 of 12 .*y=None if all images are normal"),
    "NaN as an object": (np.array([*LABELS[:-1], np.nan], object), r"y\[11\] is nan"),
    "None": ([None, *LABELS[1:]], r"y\[0\] is None \(1 of 12"),
    "an empty word": (np.array(["", *LABELS[1:]], object), r'the words ""'),
    "words": (WORDS, r'the words "crack", "cut", "good"; .*np\.where\(np\.asarray\(y\) == "good", 1, -1\)'),
    "an array of words": (np.array(WORDS), r'np\.where\(np\.asarray\(y\) == "good", 1, -1\)'),
    "words as objects": (np.array(WORDS, object), r'np\.where\(np\.asarray\(y\) == "good", 1, -1\)'),
    "words in a table": (Column(WORDS), r'np\.where\(np\.asarray\(y\) == "good", 1, -1\)'),
    "words in capitals": (["OK"] * 8 + ["Bad"] * 4, r'== "OK", 1, -1\) if "OK" marks normal images'),
    "unknown words": (["b"] * 8 + ["a"] * 4, r'== "a", 1, -1\) if "a" marks normal images'),
    "words and none": (["crack"] * 8 + [""] * 4, r'== "", 1, -1\)'),
    "numbers as words": (["1"] * 8 + ["-1"] * 4, r"np\.asarray\(y, dtype=float\)"),
    "words with quotation marks": (['a "b"'] * 12, r'== "a \\"b\\"", 1, -1\)'),
    "dicts": ([{"label": 1}] * 12, r"y\[0\] is a dict; expected"),
    "complex numbers": (np.array(LABELS, complex), "y contains complex128"),
    "dates": (np.array(["2026-01-01"] * 12, "datetime64[D]"), "y contains datetime64"),
    "bytes": (np.array([b"good"] * 12), "y contains .S4"),
    "a matrix": (np.ones((12, 3)), r"labels \(n,\) or masks \(n, H, W\), got shape \(12, 3\)"),
    "rows": ([[1, 0]] * 12, r"y\[0\]: a mask must be .* \(H, W\).*got shape \(2,\)"),
    "ragged rows": ([[[1, 0], [1]]] * 12, r"y\[0\]: a mask must be .* \(H, W\)"),
    "one word": ("good", "got str"),
    "a dict": (dict.fromkeys(range(12), 1), "got dict"),
    "a set": (set(range(12)), "got set"),
    "a number": (5, "got int"),
    "an array of no dimension": (np.array(5), "got ndarray"),
    "a generator": ((label for label in LABELS), "got generator"),
    "too few": (LABELS[:3], "y has 3 entries for 12 images"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_is_neither_labels_nor_masks_is_refused_by_everybody_who_trains(case):
    y, message = UNREADABLE[case]
    for read in readers(textured_images(12, side=32)).values():
        with pytest.raises(InvalidTargetError, match=message):
            read(y)


@pytest.mark.parametrize("case", ["zeros and ones", "a list of zeros and ones", "booleans", "a list of booleans"])
def test_scorers_read_zeros_and_ones_with_one_for_anomalous(case):
    scores = np.random.default_rng(5).normal(size=12)
    assert image_auroc_scorer(Plain(), scores, UNREADABLE[case][0]) == image_auroc(LABELS, -scores)


CONVERTIBLE = [
    *((case, np.array(LABELS)) for case in UNREADABLE if re.match(r"zeros and|a list of|booleans as|booleans$", case)),
    *((case, np.array(LABELS)) for case in UNREADABLE if case.startswith(("words", "an array of w", "numbers as"))),
]


@pytest.mark.parametrize(("case", "expected"), CONVERTIBLE)
def test_the_conversion_in_the_message_makes_labels_of_just_that_y(case, expected):
    if case in ("words with quotation marks", "words and none"):
        expected = np.ones(12) if "marks" in case else -expected
    y, _ = UNREADABLE[case]
    with pytest.raises(InvalidTargetError) as error:
        normal_rows(y, 12)
    code = re.search(r"Convert it with (np\..*?\))( if |$)", str(error.value)).group(1)
    converted = eval(code, {"np": np, "y": y})  # noqa: S307
    np.testing.assert_array_equal(converted, expected)
    np.testing.assert_array_equal(normal_rows(converted, 12), np.flatnonzero(expected == 1))


@given(st.lists(st.one_of(st.integers(-2, 3), st.booleans(), st.none(), st.floats(), st.text(max_size=3)), min_size=1))
def test_only_plus_and_minus_one_are_ever_read_as_labels(values):
    plain = all(isinstance(v, (int, float)) and not isinstance(v, bool) and v in (-1, 1) for v in values)
    missing = all(v is None or v != v or (isinstance(v, str) and not v.strip()) for v in values)
    y = np.empty(len(values), object)
    y[:] = values
    for form in (values, y):
        if plain:
            assert anomalous_rows(form, len(values)).tolist() == [v == -1 for v in values]
        elif missing:
            assert not anomalous_rows(form, len(values)).any()
        else:
            with pytest.raises(InvalidTargetError):
                anomalous_rows(form, len(values))


def test_the_kinds_of_defects_of_a_data_set_are_no_labels_and_the_error_shows_how_to_make_some():
    data = make_inspection_images(4, 2, size=64, random_state=0)
    with pytest.raises(InvalidTargetError, match=r'np\.where\(np\.asarray\(y\) == "good", 1, -1\)'):
        small_detector().fit(data.images, data.defect_types)


# Masks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def mask_file(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[4:9, 4:9] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), "", " "])
@pytest.mark.parametrize("container", [list, Column, lambda values: np.array(values, object)])
def test_rows_of_a_table_without_a_mask_are_normal(missing, container, mask_file):
    y = container([missing] * 8 + [str(mask_file)] * 4)
    read = readers(textured_images(12, side=32))
    assert read["fit"](y) == 8
    assert read["threshold"](y) == list(range(8))
    assert read["splitter"](y) == list(range(8))
    scores = np.random.default_rng(5).normal(size=12)
    assert image_auroc_scorer(Plain(), scores, y) == image_auroc(LABELS, -scores)


def test_rows_of_pandas_without_a_mask_are_normal(mask_file):
    pandas = pytest.importorskip("pandas")
    paths = [np.nan] * 8 + [str(mask_file)] * 4
    for column in (pandas.Series(paths), pandas.Series(paths, dtype="string"), pandas.DataFrame({"mask": paths})):
        assert normal_rows(column, 12).tolist() == list(range(8))
        assert normal_rows(column[:8], 8).tolist() == list(range(8))


def test_masks_and_labels_in_one_sequence_are_refused_by_the_entry_that_differs(mask_file):
    with pytest.raises(InvalidTargetError, match=r"cannot read a mask: y\[1\] \(good\): no such file"):
        normal_rows([str(mask_file), "good"], 2)
    with pytest.raises(InvalidTargetError, match=r"y\[1\]: a mask must be .* \(H, W\)"):
        normal_rows([mask_file, 1], 2)
    with pytest.raises(InvalidTargetError, match='the words "good"'):
        normal_rows(["good", mask_file], 2)
    with pytest.raises(InvalidTargetError, match=r"y\[1\] is a PosixPath|y\[1\] is a WindowsPath"):
        normal_rows([1, mask_file], 2)


@pytest.mark.parametrize(
    "y", [[float("nan")] * 3, np.full(3, np.nan), np.full(3, np.nan, object), [None, np.nan, None]]
)
def test_nothing_but_nan_is_neither_labels_nor_masks(y):
    with pytest.raises(InvalidTargetError, match=r"y\[0\] is (nan|None) .*pass y=None if all images are normal"):
        normal_rows(y, 3)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([None, None, "scratch"], r'words "scratch".*Convert it with \[-1 if word else 1 for word in y\]'),
        ([1, 1, -(10**400)], "numbers that are too large"),
        ([1, 1.0000001, -1], r"y contains -1, 1, 1\.0000001"),
        (np.ma.array([1, 1, -1], mask=[0, 1, 0]), "hidden entries"),
        (torch.zeros(3, 4, 4).to_sparse(), "y is a tensor that cannot be converted"),
    ],
)
def test_what_looks_like_labels_is_refused_with_what_it_is(y, message):
    with pytest.raises(InvalidTargetError, match=message):
        normal_rows(y, 3)


def test_tensors_of_any_type_are_labels_and_masks():
    labels = torch.tensor([1, -1, 1])
    for y in (labels, labels.bfloat16(), labels.float().requires_grad_()):
        assert normal_rows(y, 3).tolist() == [0, 2]
    masks = torch.zeros(3, 4, 4)
    masks[1, 2, 2] = 1
    for y in (masks, masks.bfloat16(), masks.requires_grad_(), list(masks.bfloat16())):
        assert normal_rows(y, 3).tolist() == [0, 2]


def test_a_tensor_of_masks_is_read():
    masks = torch.zeros((3, 4, 5), dtype=torch.uint8)
    masks[1, 2, 3] = 1
    assert anomalous_rows(masks, 3).tolist() == [False, True, False]


def test_every_reader_warns_once_of_graded_masks_with_file_levels_and_rule(tmp_path):
    graded = np.zeros((32, 32), np.uint8)
    graded[4:9, 4:9] = np.arange(25).reshape(5, 5) * 10
    path = tmp_path / "graded.png"
    Image.fromarray(graded).save(path)
    y = [None] * 8 + [path] * 4
    message = (
        r"4 masks .* y\[8\] \(.*graded\.png\) contains 25 values, 0, 10, .*240\. Pixels above half of the type's range"
    )
    for read in readers(textured_images(12, side=32)).values():
        with pytest.warns(UserWarning, match="masks") as caught:
            read(y)
        assert [bool(re.search(message, str(w.message))) for w in caught] == [True]
    with pytest.warns(UserWarning, match="masks") as caught:
        image_auroc_scorer(Plain(), np.arange(12.0), y, masks=y)
    assert [bool(re.search(message.replace("y", "masks", 1), str(w.message))) for w in caught] == [True]
