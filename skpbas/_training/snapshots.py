"""Fitted attributes that a fit replaces in one step, so that threads may predict while another one fits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Self


class SnapshotMixin:
    """Gives an estimator a state that is either the last fit's or the one before, and never some of both.

    ``fit`` ends with :meth:`_replace_fitted`. A method that reads more than one fitted attribute reads them from one
    :meth:`_snapshot`.
    """

    def _replace_fitted(self, fitted: Mapping[str, Any], *, without: Collection[str] = ()) -> Self:
        """Set all fitted attributes in one step, and drop those named by ``without``."""
        kept = {name: value for name, value in vars(self).copy().items() if name not in without}
        self.__dict__ = {**kept, **fitted}  # a new one: snapshots of the former go on undisturbed
        return self

    def _snapshot(self) -> Self:
        """Return a view of this estimator that no later fit reaches; nothing is copied."""
        view = object.__new__(type(self))
        view.__dict__ = vars(self)
        return view
