"""scikit-learn callbacks during a fit: the tasks reported to them and the detector available to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from skpbas._compat import draws_progress
from skpbas._training.loop import TrainedHead


class FitTasks:
    """The tasks of one fit, in order: "features", one "epoch" after another, "threshold".

    Parameters
    ----------
    detector : estimator
        The estimator being fitted. Callbacks need scikit-learn 1.9; older versions notify none.
    X, y : images and labels or masks
        As ``fit`` received them.
    n_epochs : int
        Largest number of epochs.
    """

    def __init__(self, detector: Any, X: Any, y: Any, n_epochs: int) -> None:
        self.data = {"estimator": detector, "X": X, "y": y}
        self.context: Any = None
        if hasattr(detector, "set_callbacks"):
            self.context = detector._init_callback_context(max_subtasks=n_epochs + 2)  # + features, threshold
            self.context.call_on_fit_task_begin(**self.data)

    @property
    def drawn_by_sklearn(self) -> bool:
        """Whether this fit, or a search around it, has a scikit-learn ProgressBar, which other bars would garble."""
        return self.context is not None and draws_progress(self.context)

    @contextmanager
    def task(self, name: str) -> Iterator[None]:
        """Notify callbacks of a part of the fit; their return values are ignored."""
        context = self.begin(name)
        yield
        if context is not None:
            context.call_on_fit_task_end(**self.data)

    def epochs(self, detector_of: Callable[[TrainedHead], object]) -> EpochTasks:
        """Return a listener for the training loop; ``detector_of`` makes the fitted detector of a trained head."""
        return EpochTasks(self, detector_of)

    def end(self) -> None:
        """Notify callbacks that the fit has ended."""
        if self.context is not None:
            self.context.call_on_fit_task_end(**self.data, reconstruction_attributes={})

    def begin(self, name: str) -> Any:
        """Notify callbacks that a task begins; return its context, None if there are no callbacks."""
        if self.context is None:
            return None
        return self.context.subcontext(task_name=name).call_on_fit_task_begin(**self.data)


class EpochTasks:
    """Notifies callbacks of epochs, and tells the training loop if one of them requests to stop."""

    def __init__(self, tasks: FitTasks, detector_of: Callable[[TrainedHead], object]) -> None:
        self.tasks, self.detector_of = tasks, detector_of
        self._context: Any = None

    def begin_epoch(self) -> None:
        """Begin the task of an epoch."""
        self._context = self.tasks.begin("epoch")

    def end_epoch(self, head: Callable[[], TrainedHead]) -> bool:
        """End the task, and return whether a callback requests to stop.

        ``head`` is called only if a callback asks for the fitted detector.
        """
        if self._context is None:
            return False
        stop = self._context.call_on_fit_task_end(
            **self.tasks.data, reconstruction_attributes=lambda: vars(self.detector_of(head()))
        )
        return bool(stop)
