"""One optimization step after the other against the reference's numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import GOLDEN

from skpbas.core.networks import Discriminator, Projector
from skpbas.core.objective import PBASObjective
from skpbas.core.patch_scores import DiscriminatorScorer
from skpbas.core.synthesis import along_ray, gaussian

NAMES = {
    "projector.linear.weight": "projector.layers.0fc.weight",
    "projector.linear.bias": "projector.layers.0fc.bias",
    "discriminator.hidden.weight": "discriminator.body.block1.0.weight",
    "discriminator.hidden.bias": "discriminator.body.block1.0.bias",
    "discriminator.norm.weight": "discriminator.body.block1.1.weight",
    "discriminator.norm.bias": "discriminator.body.block1.1.bias",
    "discriminator.norm.running_mean": "discriminator.body.block1.1.running_mean",
    "discriminator.norm.running_var": "discriminator.body.block1.1.running_var",
    "discriminator.norm.num_batches_tracked": "discriminator.body.block1.1.num_batches_tracked",
    "discriminator.output.weight": "discriminator.tail.0.weight",
}
# Batch norm cancels the bias before it, so its gradient is zero but for rounding, and Adam scales any gradient to a
# full step: the reference's value is amplified noise, which no other machine repeats. Nothing but the running mean
# reads it, so it is taken from the reference before every step.
NOISE = "discriminator.hidden.bias"


@pytest.fixture(scope="module")
def golden():
    return {k: torch.from_numpy(np.asarray(v)) for k, v in np.load(GOLDEN / "golden_training.npz").items()}


def objective_with(golden, prefix, **params):
    generator = torch.Generator().manual_seed(0)
    settings = {"synthesis": "ray", "alpha": float(golden["alpha"]), "noise_std": 0.015, **params}
    objective = PBASObjective(
        Projector(12, generator), Discriminator(12, 10, generator), golden["center"], generator=generator, **settings
    )
    state = {ours: golden[f"{prefix}.{theirs}"] for ours, theirs in NAMES.items()}
    objective.load_state_dict({**state, "center": golden["center"]})
    return objective


def close(actual, expected):
    torch.testing.assert_close(actual.detach().double(), expected.double(), atol=1e-5, rtol=0)


def test_five_steps_equal_the_reference_in_every_value_gradient_and_weight(golden):
    objective = objective_with(golden, "init")
    decoupled = {"weight_decay": 1e-2, "decoupled_weight_decay": True}
    optimizer = torch.optim.Adam(
        [
            {"params": objective.projector.parameters(), "lr": 1e-2, "weight_decay": 1e-5},
            {"params": objective.discriminator.parameters(), "lr": 2e-2, **decoupled},
        ]
    )
    before = "init"
    for i in range(5):
        step = f"step{i}"
        with torch.no_grad():
            objective.get_parameter(NOISE).copy_(golden[f"{before}.{NAMES[NOISE]}"])
        terms = objective(golden[f"{step}.features"])
        terms.projected.retain_grad()
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()

        close(terms.projected, golden[f"{step}.projected"])
        assert torch.equal(terms.nearest, golden[f"{step}.nearest"])
        close(terms.anomalies, golden[f"{step}.anomalies"])
        close(torch.sigmoid(terms.normal_logits[:, 0]), golden[f"{step}.normal_scores"][:, 0])
        close(torch.sigmoid(terms.anomaly_logits[:, 0]), golden[f"{step}.anomaly_scores"][:, 0])
        close(terms.center_loss, golden[f"{step}.radius"])
        close(terms.center_loss, golden[f"{step}.loss_center"])
        close(terms.normal_loss, golden[f"{step}.loss_normal"])
        close(terms.anomaly_loss, golden[f"{step}.loss_anomaly"])
        close(terms.projected.grad, golden[f"{step}.grad_projected"])
        before = f"{step}.after"
        state = objective.state_dict()
        for ours, theirs in NAMES.items():
            if ours != NOISE:
                close(state[ours], golden[f"{before}.{theirs}"])


def test_patch_and_image_scores_equal_the_reference_after_training(golden):
    objective = objective_with(golden, "step4.after").eval()
    features = golden["inference.features"]  # (B, P, d), as if of one level
    one_level = SimpleNamespace(outputs=[slice(0, features.shape[2])])
    scorer = DiscriminatorScorer(one_level, objective.projector, objective.discriminator)
    logits = scorer([features.transpose(1, 2).unsqueeze(3)])
    close(torch.sigmoid(logits), golden["inference.patch_scores"])
    close(torch.sigmoid(logits.amax(1)), golden["inference.image_scores"])


def test_the_bias_before_batch_norm_has_no_gradient_but_rounding(golden):
    objective = objective_with(golden, "init").double()
    bias = objective.get_parameter(NOISE).requires_grad_(True)
    objective(golden["step0.features"].double()).total.backward()
    assert bias.grad.abs().max() < 1e-15


def test_every_anomaly_lies_alpha_times_the_radius_beyond_its_feature():
    u, c = torch.randn(50, 8), torch.randn(50, 8)
    v = along_ray(u, c, torch.tensor(2.0), 0.3)
    torch.testing.assert_close(torch.linalg.vector_norm(v - u, dim=1), torch.full((50,), 0.6))
    assert (torch.linalg.vector_norm(v - c, dim=1) > torch.linalg.vector_norm(u - c, dim=1)).all()


def test_the_step_along_the_ray_is_a_constant_for_the_gradient():
    u = torch.randn(5, 3, requires_grad=True)
    radius = torch.linalg.vector_norm(u, dim=1).mean()
    along_ray(u, torch.zeros(5, 3), radius, 0.3).sum().backward()
    assert torch.equal(u.grad, torch.ones(5, 3))


def test_a_feature_on_its_center_gives_no_nan_in_values_or_gradients(golden):
    objective = objective_with(golden, "init")
    with torch.no_grad():
        objective.projector.linear.weight.copy_(torch.eye(12))
        objective.projector.linear.bias.zero_()
    terms = objective(golden["center"].clone())
    terms.total.backward()
    assert terms.center_loss == 0
    assert terms.anomalies.isfinite().all()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)


def test_heads_learn_what_each_would_learn_alone(golden):
    def objective(discriminator):
        settings = {"synthesis": "ray", "alpha": 0.3, "noise_std": 0.015, "generator": torch.Generator()}
        return PBASObjective(
            Projector(12, torch.Generator().manual_seed(1), "xavier"), discriminator, golden["center"], **settings
        )

    together = objective(Discriminator(12, 10, torch.Generator().manual_seed(2), n_heads=3))
    terms = together(golden["step0.features"])
    terms.total.backward()
    losses, pull = [], torch.zeros(12, 12)
    for head, units in enumerate(torch.arange(30).split(10)):
        alone = objective(Discriminator(12, 10, torch.Generator()))
        with torch.no_grad():
            alone.discriminator.hidden.weight.copy_(together.discriminator.hidden.weight[units])
            alone.discriminator.output.weight.copy_(together.discriminator.output.weight[[head]])
        of_head = alone(golden["step0.features"])
        of_discriminator = of_head.normal_loss + of_head.anomaly_loss
        of_discriminator.backward()
        losses.append(of_discriminator)
        pull += alone.projector.linear.weight.grad
        close(together.discriminator.hidden.weight.grad[units], alone.discriminator.hidden.weight.grad)
        close(together.discriminator.output.weight.grad[[head]], alone.discriminator.output.weight.grad)
    close(terms.normal_loss + terms.anomaly_loss, sum(losses))
    together.zero_grad()
    fresh = together(golden["step0.features"])
    (fresh.normal_loss + fresh.anomaly_loss).backward()
    close(together.projector.linear.weight.grad, pull)


def test_gaussian_synthesis_adds_noise_of_the_given_deviation():
    u = torch.randn(4000, 6)
    noise = gaussian(u, 0.015, torch.Generator().manual_seed(0)) - u
    assert noise.std().item() == pytest.approx(0.015, rel=0.03)
    assert noise.mean().abs() < 1e-3


def test_without_synthesis_only_the_center_term_remains(golden):
    objective = PBASObjective(
        Projector(12, torch.Generator()),
        None,
        golden["center"],
        synthesis=None,
        alpha=0.3,
        noise_std=0.1,
        generator=torch.Generator(),
    )
    terms = objective(golden["step0.features"])
    assert list(terms.losses()) == ["center"]
    assert terms.total == terms.center_loss
