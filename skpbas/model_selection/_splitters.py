"""Splitters that put only normal images into training sets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import BaseCrossValidator, KFold, PredefinedSplit, ShuffleSplit

from skpbas._inputs.parameters import draw_seed
from skpbas._inputs.targets import anomalous_rows
from skpbas.errors import InvalidTargetError

_Rows = NDArray[np.intp]
_SMALLEST_TRAINING = 2  # images that PBASDetector.fit needs


class _NormalSplitter(BaseCrossValidator):  # type: ignore[misc]
    """Base class of the splitters: reads y and removes anomalous rows from training sets."""

    n_splits: int
    _reads_groups: ClassVar[bool] = False

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[_Rows, _Rows]]:
        """Generate indices of training and test rows.

        Parameters
        ----------
        X : sequence of length n
            Only its length is used; None: that of y.
        y : labels or masks
            Labels (n,): +1 normal, -1 anomalous. Or masks, as for :meth:`skpbas.PBASDetector.fit`.
        groups : array-like of shape (n,), default=None
            Group of each row; required by :class:`GroupNormalKFold`, not accepted by the others.

        Yields
        ------
        train : ndarray
            Normal rows.
        test : ndarray
            Normal and anomalous rows.

        Raises
        ------
        InvalidTargetError
            y or groups are missing or invalid, or there are too few rows.
        """
        name = type(self).__name__
        if y is None:
            raise InvalidTargetError(
                f"{name} needs y: labels (+1 normal, -1 anomalous) or masks. Without anomalous images, "
                "skpbas.model_selection.synthetic_validation makes X and y with defects"
            )
        anomalous = anomalous_rows(y, len(y if X is None else X))
        if groups is not None and not self._reads_groups:
            raise InvalidTargetError(
                f"{name} does not support groups; use GroupNormalKFold, which keeps the images of a group together"
            )
        n_normal, n_anomalous = int((~anomalous).sum()), int(anomalous.sum())
        for train, test in self._splits(anomalous, groups):
            train = train[~anomalous[train]]
            n_test = int(anomalous[test].sum())
            if len(train) < _SMALLEST_TRAINING or n_test == 0 or n_test == len(test):
                raise InvalidTargetError(
                    f"{self!r} leaves {len(train)} normal images for training, and {len(test) - n_test} normal and "
                    f"{n_test} anomalous ones for testing; expected at least {_SMALLEST_TRAINING}, 1 and 1. y has "
                    f"{n_normal} normal and {n_anomalous} anomalous images"
                )
            yield train, test

    @abstractmethod
    def _splits(self, anomalous: NDArray[np.bool_], groups: Any) -> Iterator[tuple[_Rows, _Rows]]:
        """Generate indices of training and test rows; training rows may still be anomalous."""

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of splits.

        Parameters
        ----------
        X, y, groups : object
            Ignored.

        Returns
        -------
        int
        """
        return self.n_splits


class NormalKFold(_NormalSplitter):
    """K-fold cross-validation that trains on normal images only and tests on normal and anomalous ones.

    Every image is in exactly one test fold. Normal images are split into k folds as by ``KFold``; anomalous ones are
    assigned to the folds in turn, so that a list sorted by defect type gives every fold some of each type. The training
    set of a fold is the normal images of the other folds.

    Parameters
    ----------
    n_splits : int, default=5
        Number of folds k, at least 2 and at most the number of normal images and of anomalous images.
    shuffle : bool, default=False
        Shuffle the normal and the anomalous images, separately, before splitting.
    random_state : int, RandomState or None, default=None
        Order of ``shuffle``. An int gives the same folds in every call, None different ones. numpy's global random
        state is neither read nor changed.

    See Also
    --------
    GroupNormalKFold : For several images per part.
    NormalShuffleSplit : For few anomalous images, all of which are in every test set.

    Examples
    --------
    >>> from skpbas.model_selection import NormalKFold
    >>> y = [1, 1, 1, 1, -1, -1, -1]
    >>> for train, test in NormalKFold(2).split(y, y):
    ...     print(train, test)
    [2 3] [0 1 4 6]
    [0 1] [2 3 5]
    """

    def __init__(self, n_splits: int = 5, *, shuffle: bool = False, random_state: Any = None) -> None:
        self.n_splits = n_splits
        self.shuffle = shuffle
        self.random_state = random_state

    def _splits(self, anomalous: NDArray[np.bool_], groups: Any) -> Iterator[tuple[_Rows, _Rows]]:
        random = np.random.RandomState(draw_seed(self.random_state)) if self.shuffle else self.random_state
        folds = KFold(self.n_splits, shuffle=self.shuffle, random_state=random)
        normal, anomalies = np.flatnonzero(~anomalous), np.flatnonzero(anomalous)
        if self.n_splits > min(len(normal), len(anomalies)):
            raise InvalidTargetError(
                f"{self!r} needs at least {self.n_splits} normal and {self.n_splits} anomalous images, but y has "
                f"{len(normal)} normal and {len(anomalies)} anomalous: lower n_splits, or use NormalShuffleSplit, with "
                "all anomalous images in every test set"
            )
        if self.shuffle:
            anomalies = random.permutation(anomalies)
        fold_of_row = np.empty(len(anomalous), np.intp)
        fold_of_row[anomalies] = np.arange(len(anomalies)) % self.n_splits
        for fold, (_, test) in enumerate(folds.split(normal)):
            fold_of_row[normal[test]] = fold
        return PredefinedSplit(fold_of_row).split()


class NormalShuffleSplit(_NormalSplitter):
    """Repeated random splits of the normal images, with all anomalous images in every test set.

    For few anomalous images, when folds would have only one or two per test set. Test sets overlap, so
    ``cross_val_predict`` does not accept it.

    Parameters
    ----------
    n_splits : int, default=10
        Number of splits, 1 or more.
    test_size : float or int, default=None
        Normal images in the test set: a fraction in (0, 1), or a number. None: the complement of ``train_size``, or
        0.25.
    train_size : float or int, default=None
        Normal images in the training set: a fraction in (0, 1), or a number. None: the complement of ``test_size``.
    random_state : int, RandomState or None, default=None
        An int gives the same splits in every call, None different ones. numpy's global random state is neither read
        nor changed.

    See Also
    --------
    NormalKFold : Every image is in exactly one test fold.

    Examples
    --------
    >>> from skpbas.model_selection import NormalShuffleSplit
    >>> y = [1, 1, 1, 1, -1, -1]
    >>> for train, test in NormalShuffleSplit(2, random_state=0).split(y, y):
    ...     print(len(train), len(test))
    3 3
    3 3
    """

    def __init__(
        self,
        n_splits: int = 10,
        *,
        test_size: float | int | None = None,
        train_size: float | int | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_splits = n_splits
        self.test_size = test_size
        self.train_size = train_size
        self.random_state = random_state

    def _splits(self, anomalous: NDArray[np.bool_], groups: Any) -> Iterator[tuple[_Rows, _Rows]]:
        normal, anomalies = np.flatnonzero(~anomalous), np.flatnonzero(anomalous)
        if len(normal) < 1 + _SMALLEST_TRAINING or len(anomalies) == 0:
            raise InvalidTargetError(
                f"{self!r} needs at least {1 + _SMALLEST_TRAINING} normal images and 1 anomalous image, but y has "
                f"{len(normal)} normal and {len(anomalies)} anomalous"
            )
        test_size = 0.25 if self.test_size is None and self.train_size is None else self.test_size
        random = np.random.RandomState(draw_seed(self.random_state))
        splitter = ShuffleSplit(self.n_splits, test_size=test_size, train_size=self.train_size, random_state=random)
        for train, test in splitter.split(normal):
            yield normal[train], np.sort(np.concatenate([normal[test], anomalies]))


class GroupNormalKFold(_NormalSplitter):
    """K-fold cross-validation that keeps groups, such as the images of one part, on one side of every split.

    Whole groups are assigned to k folds, balanced in normal and in anomalous images, so that each fold has both. The
    training set of a fold is the normal images of the other folds; every image is in exactly one test fold.

    Parameters
    ----------
    n_splits : int, default=5
        Number of folds k, at least 2.
    shuffle : bool, default=False
        Shuffle groups of the same size before assigning them.
    random_state : int, RandomState or None, default=None
        Order of ``shuffle``. An int gives the same folds in every call, None different ones. numpy's global random
        state is neither read nor changed.

    Notes
    -----
    With scikit-learn's metadata routing enabled, it requests ``groups`` by default; without routing,
    ``search.fit(X, y, groups=groups)`` works too.

    See Also
    --------
    synthetic_validation : Returns groups that keep each synthetic defect with its source image.

    Examples
    --------
    >>> from skpbas.model_selection import GroupNormalKFold
    >>> y = [1, 1, -1, 1, -1, 1, 1, -1]
    >>> part = ["a", "a", "a", "b", "b", "c", "d", "d"]
    >>> for train, test in GroupNormalKFold(3).split(y, y, part):
    ...     print(train, test)
    [3 5 6] [0 1 2]
    [0 1 6] [3 4 5]
    [0 1 3 5] [6 7]
    """

    __metadata_request__split: ClassVar[dict[str, bool]] = {"groups": True}
    _reads_groups = True

    def __init__(self, n_splits: int = 5, *, shuffle: bool = False, random_state: Any = None) -> None:
        self.n_splits = n_splits
        self.shuffle = shuffle
        self.random_state = random_state

    def _splits(self, anomalous: NDArray[np.bool_], groups: Any) -> Iterator[tuple[_Rows, _Rows]]:
        KFold(self.n_splits, shuffle=self.shuffle, random_state=self.random_state)  # validates the parameters
        if groups is None:
            raise InvalidTargetError(
                "GroupNormalKFold needs groups=, the name or number of the part in each image; to treat every image as "
                "its own part, use NormalKFold"
            )
        names = np.asarray(groups)
        if names.shape != anomalous.shape:
            raise InvalidTargetError(
                f"groups has shape {names.shape}; expected ({len(anomalous)},), one entry per image"
            )
        group = np.unique(names, return_inverse=True)[1]
        normal = np.bincount(group, ~anomalous)
        anomalies = np.bincount(group, anomalous)
        both, only_normal, only_anomalies = (normal > 0) & (anomalies > 0), anomalies == 0, normal == 0
        if self.n_splits > both.sum() + min(only_normal.sum(), only_anomalies.sum()):
            raise InvalidTargetError(
                f"{self!r} cannot put normal and anomalous images into every fold: {both.sum()} groups have both, "
                f"{only_normal.sum()} only normal and {only_anomalies.sum()} only anomalous images; lower n_splits"
            )
        order = np.arange(len(normal))
        if self.shuffle:
            np.random.RandomState(draw_seed(self.random_state)).shuffle(order)
        order = order[np.argsort(-(normal + anomalies)[order], kind="stable")]  # largest first, small ones even out
        fold_of_group = np.empty(len(order), np.intp)
        share = np.stack([normal / normal.sum(), anomalies / anomalies.sum()])
        filled = np.zeros((2, self.n_splits))
        # Each group goes to the fold with the smallest share of its classes, so that every fold ends up with both.
        for kind, counted in ((both, [0, 1]), (only_anomalies, [1]), (only_normal, [0])):
            for g in order[kind[order]]:
                fold = int(np.argmin(filled[counted].sum(axis=0)))
                fold_of_group[g] = fold
                filled[:, fold] += share[:, g]
        return PredefinedSplit(fold_of_group[group]).split()
