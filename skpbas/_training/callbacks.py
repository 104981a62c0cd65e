"""scikit-learn's callbacks in a fit: which tasks they see, and the detector that they may ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from skpbas._compat import draws_progress
from skpbas._training.loop import TrainedHead


class FitTasks:
    """The tasks of one fit, in their order: "features", one "epoch" after the other, "threshold".

    Parameters
    ----------
    detector : estimator
        Being fitted. Callbacks need scikit-learn 1.9; before that there are none to notify.
    X, y : images and labels or masks
        As ``fit`` received them.
    n_epochs : int
        At most.
    """

    def __init__(self, detector: Any, X: Any, y: Any, n_epochs: int) -> None:
        self.data = {"estimator": detector, "X": X, "y": y}
        self.context: Any = None
        if hasattr(detector, "set_callbacks"):
            self.context = detector._init_callback_context(max_subtasks=n_epochs + 2)  # the features, and the threshold
            self.context.call_on_fit_task_begin(**self.data)

    @property
    def drawn_by_sklearn(self) -> bool:
        """Whether a ProgressBar of this fit, or of a search around it, draws: other bars would garble it."""
        return self.context is not None and draws_progress(self.context)

    @contextmanager
    def task(self, name: str) -> Iterator[None]:
        """Notify callbacks of a part of the fit; what they return is ignored."""
        context = self.begin(name)
        yield
        if context is not None:
            context.call_on_fit_task_end(**self.data)

    def epochs(self, detector_of: Callable[[TrainedHead], object]) -> EpochTasks:
        """Return the listener of the training loop; ``detector_of`` makes the detector that a trained head leads to."""
        return EpochTasks(self, detector_of)

    def end(self) -> None:
        """Notify callbacks that the detector is fitted."""
        if self.context is not None:
            self.context.call_on_fit_task_end(**self.data, reconstruction_attributes={})

    def begin(self, name: str) -> Any:
        """Notify callbacks that a task begins; return its context, None if there are no callbacks."""
        if self.context is None:
            return None
        return self.context.subcontext(task_name=name).call_on_fit_task_begin(**self.data)


class EpochTasks:
    """Notifies callbacks of epochs, and the training loop of whether one of them stops it."""

    def __init__(self, tasks: FitTasks, detector_of: Callable[[TrainedHead], object]) -> None:
        self.tasks, self.detector_of = tasks, detector_of
        self._context: Any = None

    def begin_epoch(self) -> None:
        """Begin the task of an epoch."""
        self._context = self.tasks.begin("epoch")

    def end_epoch(self, head: Callable[[], TrainedHead]) -> bool:
        """End it, and return whether a callback requests that it be the last.

        ``head`` is called only if a callback asks for the fitted detector.
        """
        if self._context is None:
            return False
        stop = self._context.call_on_fit_task_end(
            **self.tasks.data, reconstruction_attributes=lambda: vars(self.detector_of(head()))
        )
        return bool(stop)
