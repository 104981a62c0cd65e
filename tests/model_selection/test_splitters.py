"""Splitters: training sets are normal, every test fold has both classes, and groups stay together."""

import numpy as np
import pytest
import sklearn
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import KFold

from skpbas.errors import InvalidTargetError
from skpbas.model_selection import GroupNormalKFold, NormalKFold, NormalShuffleSplit


def labels_of(n_normal, n_anomalous, seed=0):
    return np.random.default_rng(seed).permutation([1] * n_normal + [-1] * n_anomalous)


def splits(splitter, y, groups=None):
    return list(splitter.split(np.zeros(len(y)), y, groups))


def check_parts(y, train, test):
    """Training rows are normal, test rows have both classes, and no row is in both sets."""
    assert (y[train] == 1).all()
    assert len(train) >= 2
    assert set(y[test]) == {1, -1}
    assert np.intersect1d(train, test).size == 0
    assert len(set(train)) == len(train)
    assert len(set(test)) == len(test)


@given(st.data())
def test_every_row_is_tested_once_and_all_other_normal_rows_are_trained_on(data):
    k = data.draw(st.integers(2, 6))
    y = labels_of(data.draw(st.integers(k + 2, 30)), data.draw(st.integers(k, 30)), data.draw(st.integers(0, 99)))
    shuffle = data.draw(st.booleans())
    folds = splits(NormalKFold(k, shuffle=shuffle, random_state=3 if shuffle else None), y)
    assert len(folds) == k == NormalKFold(k).get_n_splits()
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(y)))
    for train, test in folds:
        check_parts(y, train, test)
        assert sorted(train) == sorted(set(np.flatnonzero(y == 1)) - set(test))
    sizes = np.array([[np.sum(y[test] == kind) for _, test in folds] for kind in (1, -1)])
    assert (np.ptp(sizes, axis=1) <= 1).all()


def test_normal_rows_are_split_as_by_kfold():
    y = labels_of(11, 5)
    normal = np.flatnonzero(y == 1)
    for (train, test), (kept, left_out) in zip(splits(NormalKFold(3), y), KFold(3).split(normal), strict=True):
        np.testing.assert_array_equal(train, normal[kept])
        np.testing.assert_array_equal(test[y[test] == 1], normal[left_out])


def test_a_list_sorted_by_defect_type_gives_every_fold_each_type():
    y = np.array([1] * 9 + [-1] * 9)
    kind = np.array([""] * 9 + ["crack"] * 3 + ["stain"] * 3 + ["dent"] * 3)
    for _, test in splits(NormalKFold(3), y):
        assert set(kind[test]) == {"", "crack", "stain", "dent"}


@pytest.mark.parametrize("splitter", [NormalKFold(3), NormalShuffleSplit(3, random_state=0)])
def test_masks_split_like_the_equivalent_labels(splitter, tmp_path):
    y = labels_of(9, 6)
    masks = np.zeros((15, 8, 8), np.uint8)
    masks[y == -1, 2:4, 2:4] = 255
    paths = [None if label == 1 else tmp_path / f"{i}.png" for i, label in enumerate(y)]
    for path, mask in zip(paths, masks, strict=True):
        if path is not None:
            Image.fromarray(mask).save(path)
    expected = splits(splitter, y)
    for target in (masks, list(masks), [mask if mask.any() else None for mask in masks], paths):
        for found, wanted in zip(splits(splitter, target), expected, strict=True):
            np.testing.assert_array_equal(np.concatenate(found), np.concatenate(wanted))


@pytest.mark.parametrize(
    "splitter", [NormalKFold(3, shuffle=True, random_state=7), NormalShuffleSplit(4, random_state=7)]
)
def test_a_seed_gives_the_same_splits_and_none_does_not_change_the_global_random_state(splitter):
    y = labels_of(20, 9)

    def rows(splitter):
        return [tuple(np.concatenate(fold)) for fold in splits(splitter, y)]

    assert rows(splitter) == rows(splitter)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    other = sklearn.base.clone(splitter, safe=False)
    other.random_state = None
    assert rows(other) != rows(other)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    other.random_state = np.random.RandomState(0)
    assert rows(other) != rows(other)


@pytest.mark.parametrize(
    ("sizes", "n_train", "n_test"),
    [({}, 15, 5), ({"test_size": 0.4}, 12, 8), ({"train_size": 6}, 6, 14), ({"train_size": 6, "test_size": 4}, 6, 4)],
)
def test_a_shuffle_split_tests_on_all_anomalous_rows(sizes, n_train, n_test):
    y = labels_of(20, 3)
    folds = splits(NormalShuffleSplit(6, random_state=0, **sizes), y)
    assert len(folds) == 6 == NormalShuffleSplit(6).get_n_splits()
    for train, test in folds:
        check_parts(y, train, test)
        assert (len(train), np.sum(y[test] == 1), np.sum(y[test] == -1)) == (n_train, n_test, 3)
    assert len({tuple(test) for _, test in folds}) == 6


@st.composite
def grouped(draw):
    """Normal and anomalous rows in groups, and a number of folds that may or may not be possible."""
    rows = st.tuples(st.sampled_from([0, 2, 3, 5]), st.integers(0, 5)).filter(any)  # 2: trainable without the group
    sizes = draw(st.lists(rows, min_size=3, max_size=14))
    normal, anomalies = np.array(sizes).T
    both, only_normal, only_anomalies = (
        ((normal > 0) & (anomalies > 0)).sum(),
        (anomalies == 0).sum(),
        (normal == 0).sum(),
    )
    max_k = int(both + min(only_normal, only_anomalies))
    k = draw(st.integers(2, max(2, min(5, max_k))))
    labels = np.concatenate([[1] * g + [-1] * b for g, b in sizes]).astype(int)
    groups = np.repeat(np.arange(len(sizes)), normal + anomalies)
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(len(labels))
    return k, labels[order], groups[order], k <= max_k


@given(grouped(), st.booleans())
def test_groups_stay_together_and_every_fold_has_both_classes_if_possible(case, shuffle):
    k, y, groups, possible = case
    splitter = GroupNormalKFold(k, shuffle=shuffle, random_state=1 if shuffle else None)
    if not possible:
        with pytest.raises(InvalidTargetError, match="cannot put normal and anomalous images into every fold"):
            splits(splitter, y, groups)
        return
    folds = splits(splitter, y, groups)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(y)))
    for train, test in folds:
        check_parts(y, train, test)
        assert set(groups[train]).isdisjoint(groups[test])
        assert sorted(train) == [i for i in np.flatnonzero(y == 1) if groups[i] not in set(groups[test])]


def test_groups_of_one_row_are_balanced_as_by_kfold():
    y = labels_of(17, 10)
    folds = splits(GroupNormalKFold(5), y, np.arange(27))
    assert sorted(np.sum(y[test] == 1) for _, test in folds) == [3, 3, 3, 4, 4]
    assert [np.sum(y[test] == -1) for _, test in folds] == [2] * 5


def test_groups_may_be_strings_and_can_be_shuffled():
    y = np.array([1, -1] * 12)
    parts = np.repeat([f"part {i}" for i in range(12)], 2)
    tests = {tuple(splits(GroupNormalKFold(3, shuffle=True, random_state=s), y, parts)[0][1]) for s in range(5)}
    assert len(tests) > 1
    for train, test in splits(GroupNormalKFold(3, shuffle=True, random_state=0), y, list(parts)):
        assert set(parts[train]).isdisjoint(parts[test])


@pytest.mark.parametrize(
    ("splitter", "y", "groups", "message"),
    [
        (NormalKFold(3), None, None, "NormalKFold needs y: labels .*synthetic_validation"),
        (NormalKFold(3), [0, 0, 1, 1], None, r"y contains 0, 1; expected \+1 .*np\.where\(y == 1, -1, 1\)"),
        (NormalKFold(3), [True, False, True], None, "y contains False, True; expected"),
        (NormalKFold(3), [1, 1, 2], None, "y contains 1, 2; expected"),
        (
            NormalKFold(3),
            [1] * 9 + [-1] * 2,
            None,
            "needs at least 3 normal and 3 anomalous .* 9 normal and 2 anomalous.*Shuffle",
        ),
        (
            NormalKFold(2),
            [1, 1, 1, -1, -1],
            None,
            "leaves 1 normal images.*y has 3 normal and 2 anomalous",
        ),
        (NormalKFold(2), [1, 1, 1, -1, -1], [0] * 5, "NormalKFold does not support groups; use GroupNormalKFold"),
        (NormalShuffleSplit(), [1, 1, 1, -1], [0] * 4, "NormalShuffleSplit does not support groups"),
        (NormalShuffleSplit(), [1, 1, 1, 1], None, "y has 4 normal and 0 anomalous"),
        (NormalShuffleSplit(), [1, 1, -1, -1], None, "y has 2 normal and 2 anomalous"),
        (GroupNormalKFold(2), [1, 1, -1, -1], None, "GroupNormalKFold needs groups=.*NormalKFold"),
        (GroupNormalKFold(2), [1, 1, -1, -1], [0, 1], r"groups has shape \(2,\); expected \(4,\)"),
        (GroupNormalKFold(2), [1, 1, 1, -1], [0, 1, 2, 3], "0 groups have both, 3 only normal and 1 only anomalous"),
    ],
)
def test_impossible_splits_are_rejected_with_the_numbers(splitter, y, groups, message):
    with pytest.raises(InvalidTargetError, match=message):
        list(splitter.split(np.zeros(3 if y is None else len(y)), y, groups))


def test_y_of_the_wrong_length_is_rejected():
    with pytest.raises(InvalidTargetError, match="y has 4 entries for 5 images"):
        next(NormalKFold(2).split(np.zeros(5), [1, 1, -1, -1]))


@pytest.mark.parametrize(
    "splitter", [NormalKFold(1), NormalKFold(2, random_state=0), NormalShuffleSplit(test_size=2.5), GroupNormalKFold(1)]
)
def test_invalid_parameters_are_rejected_as_by_sklearn(splitter):
    with pytest.raises(ValueError, match=r"n_splits|random_state|test_size"):
        splits(splitter, labels_of(9, 5), np.arange(14) if isinstance(splitter, GroupNormalKFold) else None)


def test_the_repr_of_a_splitter_has_its_parameters():
    assert repr(NormalKFold(3, shuffle=True, random_state=0)) == "NormalKFold(n_splits=3, random_state=0, shuffle=True)"
    assert repr(GroupNormalKFold(4)) == "GroupNormalKFold(n_splits=4, random_state=None, shuffle=False)"
    assert "NormalShuffleSplit(n_splits=10" in repr(NormalShuffleSplit())


def test_only_the_group_splitter_requests_groups():
    with sklearn.config_context(enable_metadata_routing=True):
        assert GroupNormalKFold().get_metadata_routing().split.requests == {"groups": True}
        assert GroupNormalKFold().set_split_request(groups="part").get_metadata_routing().split.requests == {
            "groups": "part"
        }
        assert NormalKFold().get_metadata_routing().split.requests == {}
        assert NormalShuffleSplit().get_metadata_routing().split.requests == {}
