"""Train projector and discriminator as the package does, with another objective or with further callbacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from skorch.callbacks import Callback

from skpbas._features.sampling import TrainingFeatures
from skpbas._training.loop import new_net, new_objective
from skpbas._training.settings import TrainingSettings
from skpbas.core.objective import PBASObjective


def train(
    features: TrainingFeatures,
    settings: TrainingSettings,
    make: Callable[..., PBASObjective] = PBASObjective,
    callbacks: Sequence[Callback] = (),
) -> PBASObjective:
    """Train to the last step.

    Parameters
    ----------
    features : TrainingFeatures
    settings : TrainingSettings
    make : callable, default=PBASObjective
        Makes the objective, from the arguments of :class:`PBASObjective`.
    callbacks : sequence of skorch.callbacks.Callback
        Called after the package's own.

    Returns
    -------
    PBASObjective
        With the trained networks, in evaluation mode.
    """
    objective = new_objective(features, settings, make)
    net = new_net(objective, settings, features.n_images, "")
    net.callbacks.extend((type(callback).__name__, callback) for callback in callbacks)
    net.initialize()
    net.notify("on_train_begin", X=features, y=None)
    net.fit_loop(features)
    net.notify("on_train_end", X=features, y=None)
    return objective.eval()
