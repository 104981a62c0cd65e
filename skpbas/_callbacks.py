"""scikit-learn's callbacks in a fit: which there are, what they are told, and the detector that they may ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from sklearn.callback import (
    AutoPropagatedCallback,
    CallbackContext,
    CallbackSupportMixin,
    FitCallback,
    ProgressBar,
)
from sklearn.utils._param_validation import InvalidParameterError

from skpbas._training import Completion, Scorer, TrainedHead

_OF_A_RUNNING_FIT = ("_callback_fit_ctx", "_skl_callbacks_to_teardown", "_parent_callback_ctx")
_COMPLETED = ("_scorer", "offset_")
_HOOKS = "setup, teardown, on_fit_task_begin and on_fit_task_end"


class FitTasks:
    """The tasks of one fit, in their order: "features", one "epoch" after the other, "threshold".

    Parameters
    ----------
    detector : estimator
        Being fitted.
    context : CallbackContext
        Of the whole fit.
    X, y : images and labels or masks
        As ``fit`` was given them.
    """

    def __init__(self, detector: Any, context: CallbackContext, X: Any, y: Any) -> None:
        self.detector, self.context = detector, context
        self.data = {"estimator": detector, "X": X, "y": y}

    @property
    def drawn_by_sklearn(self) -> bool:
        """Whether a ProgressBar of this fit, or of a search around it, draws: other bars would garble it."""
        context = self.context
        while context is not None:
            if any(isinstance(callback, ProgressBar) for callback in context._callbacks):
                return True
            context = context.parent
        return False

    @contextmanager
    def task(self, name: str) -> Iterator[None]:
        """Tell callbacks of a part of the fit; what they answer is not heeded."""
        context = self._begin(name)
        yield
        context.call_on_fit_task_end(**self.data)

    def epochs(self, state_of: Callable[[TrainedHead], dict[str, Any]]) -> EpochTasks:
        """Return what tells callbacks of epochs; ``state_of`` makes attributes of a detector that ends with a head."""
        return EpochTasks(self, state_of)

    def end(self) -> None:
        """Tell callbacks that the detector is fitted."""
        self.context.call_on_fit_task_end(**self.data, reconstruction_attributes={})

    def _begin(self, name: str) -> CallbackContext:
        return self.context.subcontext(task_name=name).call_on_fit_task_begin(**self.data)


class EpochTasks:
    """Tells callbacks of epochs, and the training loop whether one of them stops it."""

    def __init__(self, tasks: FitTasks, state_of: Callable[[TrainedHead], dict[str, Any]]) -> None:
        self.tasks, self.state_of = tasks, state_of

    def begin_epoch(self) -> None:
        """Begin the task of an epoch."""
        self._context = self.tasks._begin("epoch")

    def end_epoch(self, head: Callable[[], TrainedHead]) -> bool:
        """End it, and return whether a callback asks for no further one.

        ``head`` is called where a callback asks for the fitted detector.
        """

        def attributes() -> dict[str, Any]:
            detector = vars(self.tasks.detector)
            kept = {k: v for k, v in detector.items() if k not in (*_OF_A_RUNNING_FIT, *_COMPLETED)}
            return {"__dict__": kept | self.state_of(head())}  # whole: nothing stays of an earlier fit

        return bool(self._context.call_on_fit_task_end(**self.tasks.data, reconstruction_attributes=attributes))


class TakesCallbacks(CallbackSupportMixin):  # type: ignore[misc]
    """Callbacks by the parameter ``callbacks`` and by scikit-learn's ``set_callbacks``: a fit calls both.

    Clones share the objects of the parameter, as they share those that were set: what a callback collects in a search
    is found in the one that the user holds.
    """

    callbacks: Any
    _scorer: Scorer

    def _begin_fit(self, X: Any, y: Any, n_epochs: int) -> FitTasks:
        """Set the callbacks up, and tell them that a fit begins."""
        context = self._init_callback_context(max_subtasks=n_epochs + 2)  # the features, and the threshold
        context.call_on_fit_task_begin(estimator=self, X=X, y=y)
        return FitTasks(self, context, X, y)

    def _init_callback_context(self, **task: Any) -> CallbackContext:
        own = callback_list(self.callbacks)
        propagated = [type(callback).__name__ for callback in own if isinstance(callback, AutoPropagatedCallback)]
        if propagated and hasattr(self, "_parent_callback_ctx"):
            raise InvalidParameterError(
                f"callbacks={self.callbacks!r}: {', '.join(propagated)} belongs on the outermost estimator, from which "
                "scikit-learn passes it on: leave it out here, and call set_callbacks of the search or pipeline"
            )
        before = vars(self).get("_skl_callbacks")
        self._skl_callbacks = own + [c for c in before or [] if all(c is not other for other in own)]
        try:
            return super()._init_callback_context(**task)
        finally:
            if before is None:
                del self._skl_callbacks
            else:
                self._skl_callbacks = before

    def __sklearn_clone__(self) -> Self:
        bare = self.__copy__()
        bare.callbacks = None  # or they would be copied one by one
        cloned: Self = super(TakesCallbacks, bare).__sklearn_clone__()
        cloned.callbacks = self.callbacks
        return cloned

    def __copy__(self) -> Self:
        copied = object.__new__(type(self))
        copied.__dict__.update({k: v for k, v in vars(self).items() if k not in _OF_A_RUNNING_FIT})
        return copied

    if not TYPE_CHECKING:  # mypy would take every attribute for one of these

        def __getattr__(self, name: str) -> Any:
            # called for what is not there: a detector from the middle of a fit gets these when asked for them
            completion = vars(self).get("_completion") if name in _COMPLETED else None
            if completion is None:
                return object.__getattribute__(self, name)  # raises what Python always says
            self._scorer = completion.scorer
            if name == "offset_":
                self.offset_ = completion.offset
                del self._completion  # and with it the training features
            return vars(self)[name]

    def __getstate__(self) -> dict[str, Any]:
        if "_completion" in vars(self):
            _ = self.offset_
        return dict(super().__getstate__())


def completed(completion: Completion) -> dict[str, Any]:
    """Return the attributes that a detector from the middle of a fit has not got yet."""
    return dict(zip(_COMPLETED, (completion.scorer, completion.offset), strict=True))


def callback_list(callbacks: Any) -> list[Any]:
    """Return the parameter ``callbacks``, checked, as a list.

    Raises
    ------
    InvalidParameterError
        One of them is not a callback of scikit-learn's.
    """
    if callbacks is None:
        return []
    if not isinstance(callbacks, (list, tuple)):
        callbacks = [callbacks]
    for index, callback in enumerate(callbacks):
        if isinstance(callback, type):
            raise InvalidParameterError(f"callbacks[{index}] is the class {callback.__name__}: give an instance of it")
        if not isinstance(callback, FitCallback):
            raise InvalidParameterError(
                f"callbacks[{index}] is {callback!r}, which is no callback of scikit-learn's: it must have the methods "
                f"{_HOOKS} (sklearn.callback.FitCallback)"
            )
    return list(callbacks)
