"""Splitters that train on good images only, and validation without defective images."""

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
    """What the splitters share: y is read, and training rows are good ones."""

    n_splits: int
    _reads_groups: ClassVar[bool] = False

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[_Rows, _Rows]]:
        """Generate rows to train on and rows to test on.

        Parameters
        ----------
        X : sequence of length n
            Only its length is looked at; None: that of y.
        y : labels or masks
            Labels (n,): +1 good, -1 anomalous. Or masks, as for :meth:`skpbas.PBASDetector.fit`.
        groups : array-like of shape (n,), default=None
            Which rows belong together; only :class:`GroupNormalKFold` reads it, and needs it.

        Yields
        ------
        train : ndarray
            Good rows.
        test : ndarray
            Good and anomalous rows.

        Raises
        ------
        InvalidTargetError
            y or groups are missing or cannot be read, or there are too few rows.
        """
        name = type(self).__name__
        if y is None:
            raise InvalidTargetError(
                f"{name} needs y: labels (+1 normal, -1 anomalous) or masks. For normal images alone, "
                "skpbas.model_selection.synthetic_validation makes X and y with defects"
            )
        anomalous = anomalous_rows(y, len(y if X is None else X))
        if groups is not None and not self._reads_groups:
            raise InvalidTargetError(
                f"{name} does not read groups: GroupNormalKFold keeps the images of a group on one side of every split"
            )
        n_normal, n_anomalous = int((~anomalous).sum()), int(anomalous.sum())
        for train, test in self._splits(anomalous, groups):
            train = train[~anomalous[train]]
            n_test = int(anomalous[test].sum())
            if len(train) < _SMALLEST_TRAINING or n_test == 0 or n_test == len(test):
                raise InvalidTargetError(
                    f"{self!r} leaves {len(train)} normal images to train on, and {len(test) - n_test} normal and "
                    f"{n_test} anomalous ones to test on; expected at least {_SMALLEST_TRAINING}, 1 and 1. y has "
                    f"{n_normal} normal and {n_anomalous} anomalous images"
                )
            yield train, test

    @abstractmethod
    def _splits(self, anomalous: NDArray[np.bool_], groups: Any) -> Iterator[tuple[_Rows, _Rows]]:
        """Generate rows (training rows may still be anomalous) by a splitter of scikit-learn's."""

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of splits.

        Parameters
        ----------
        X, y, groups : object
            Not looked at.

        Returns
        -------
        int
        """
        return self.n_splits


class NormalKFold(_NormalSplitter):
    """K folds: train on good images only, test on good and anomalous ones.

    Every image is in exactly one test fold. The good ones are cut into k folds as by ``KFold``; the anomalous ones are
    dealt out in turn, so that a list sorted by kind of defect gives every fold some of each kind. Training rows are the
    good ones of the other folds.

    Parameters
    ----------
    n_splits : int, default=5
        Folds k, 2 or more, and no more than there are good, or anomalous, images.
    shuffle : bool, default=False
        Mix the good and the anomalous images, each among themselves, before they are cut and dealt out.
    random_state : int, RandomState or None, default=None
        Order of ``shuffle``. An int gives the same folds at every call; None other ones. numpy's global stream is
        neither read nor moved.

    See Also
    --------
    GroupNormalKFold : For several images of one part.
    NormalShuffleSplit : For few anomalous images: all are in every test set.

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
        normal, bad = np.flatnonzero(~anomalous), np.flatnonzero(anomalous)
        if self.n_splits > min(len(normal), len(bad)):
            raise InvalidTargetError(
                f"{self!r} needs {self.n_splits} normal and {self.n_splits} anomalous images or more, and y has "
                f"{len(normal)} normal and {len(bad)} anomalous: lower n_splits, or use NormalShuffleSplit, which puts "
                "all anomalous images into every test set"
            )
        if self.shuffle:
            bad = random.permutation(bad)
        fold_of_row = np.empty(len(anomalous), np.intp)
        fold_of_row[bad] = np.arange(len(bad)) % self.n_splits
        for fold, (_, test) in enumerate(folds.split(normal)):
            fold_of_row[normal[test]] = fold
        return PredefinedSplit(fold_of_row).split()


class NormalShuffleSplit(_NormalSplitter):
    """Repeated random splits of the good images; every test set has all anomalous ones.

    For few anomalous images, where folds would leave one or two to a test set. Test sets overlap, so that
    ``cross_val_predict`` does not take it.

    Parameters
    ----------
    n_splits : int, default=10
        Number of splits, 1 or more.
    test_size : float or int, default=None
        Good images to test on: a share in (0, 1), or a number. None: what ``train_size`` leaves, or 0.25.
    train_size : float or int, default=None
        Good images to train on: a share in (0, 1), or a number. None: what ``test_size`` leaves.
    random_state : int, RandomState or None, default=None
        An int gives the same splits at every call; None other ones. numpy's global stream is neither read nor moved.

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
        normal, bad = np.flatnonzero(~anomalous), np.flatnonzero(anomalous)
        if len(normal) < 1 + _SMALLEST_TRAINING or len(bad) == 0:
            raise InvalidTargetError(
                f"{self!r} needs {1 + _SMALLEST_TRAINING} normal images and 1 anomalous or more, and y has "
                f"{len(normal)} normal and {len(bad)} anomalous"
            )
        test_size = 0.25 if self.test_size is None and self.train_size is None else self.test_size
        random = np.random.RandomState(draw_seed(self.random_state))
        splitter = ShuffleSplit(self.n_splits, test_size=test_size, train_size=self.train_size, random_state=random)
        for train, test in splitter.split(normal):
            yield normal[train], np.sort(np.concatenate([normal[test], bad]))


class GroupNormalKFold(_NormalSplitter):
    """K folds of groups: images of one part, or of one source, never lie on both sides of a split.

    Whole groups are dealt out to k folds, as evenly in good and in anomalous images as that allows, so that each fold
    has both. Training rows are the good ones of the other folds; every image is in exactly one test fold.

    Parameters
    ----------
    n_splits : int, default=5
        Folds k, 2 or more.
    shuffle : bool, default=False
        Mix groups of the same size before they are dealt out.
    random_state : int, RandomState or None, default=None
        Order of ``shuffle``. An int gives the same folds at every call; None other ones. numpy's global stream is
        neither read nor moved.

    Notes
    -----
    With scikit-learn's metadata routing enabled it asks for ``groups`` without being told to; without routing
    ``search.fit(X, y, groups=groups)`` reaches it too.

    See Also
    --------
    synthetic_validation : Its groups keep a synthetic defect on its image's side.

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
        KFold(self.n_splits, shuffle=self.shuffle, random_state=self.random_state)  # checks the three
        if groups is None:
            raise InvalidTargetError(
                "GroupNormalKFold needs groups=: for each image the name or number of its part; NormalKFold takes "
                "every image for a part of its own"
            )
        names = np.asarray(groups)
        if names.shape != anomalous.shape:
            raise InvalidTargetError(f"groups has shape {names.shape}; expected ({len(anomalous)},), an entry an image")
        group = np.unique(names, return_inverse=True)[1]
        good = np.bincount(group, ~anomalous)
        bad = np.bincount(group, anomalous)
        both, only_good, only_bad = (good > 0) & (bad > 0), bad == 0, good == 0
        if self.n_splits > both.sum() + min(only_good.sum(), only_bad.sum()):
            raise InvalidTargetError(
                f"{self!r} cannot put good and anomalous images into every fold: {both.sum()} groups have both, "
                f"{only_good.sum()} only good and {only_bad.sum()} only anomalous images; lower n_splits"
            )
        order = np.arange(len(good))
        if self.shuffle:
            np.random.RandomState(draw_seed(self.random_state)).shuffle(order)
        order = order[np.argsort(-(good + bad)[order], kind="stable")]  # large groups first, small ones even out
        fold_of_group = np.empty(len(order), np.intp)
        share = np.stack([good / good.sum(), bad / bad.sum()])
        filled = np.zeros((2, self.n_splits))
        # A fold that lacks what a kind of groups brings comes first, so that every fold ends up with both.
        for kind, counted in ((both, [0, 1]), (only_bad, [1]), (only_good, [0])):
            for g in order[kind[order]]:
                fold = int(np.argmin(filled[counted].sum(axis=0)))
                fold_of_group[g] = fold
                filled[:, fold] += share[:, g]
        return PredefinedSplit(fold_of_group[group]).split()
