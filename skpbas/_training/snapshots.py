"""Fitted attributes that a fit replaces in one step, so that threads may predict while another one fits."""

from __future__ import annotations

from typing import Self


class SnapshotMixin:
    """Gives an estimator a state that is either the last fit's or the one before, and never some of both.

    ``fit`` assigns the fitted attributes to a :meth:`_draft` and ends with :meth:`_adopt`. A method that reads more
    than one fitted attribute reads them from one :meth:`_snapshot`.
    """

    def _draft(self) -> Self:
        """Return a shallow copy of this estimator, to be changed."""
        draft = object.__new__(type(self))
        draft.__dict__ = vars(self).copy()
        return draft

    def _adopt(self, draft: Self) -> Self:
        """Take all attributes of a draft in one step."""
        self.__dict__ = vars(draft)  # another dict: snapshots keep the former one
        return self

    def _snapshot(self) -> Self:
        """Return a view of this estimator that no later fit changes; nothing is copied."""
        view = object.__new__(type(self))
        view.__dict__ = vars(self)
        return view
