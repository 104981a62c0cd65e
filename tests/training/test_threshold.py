"""The automatic threshold, on scores of a known distribution and on unseen images."""

import warnings

import numpy as np
import pytest
import torch
from helpers import small_detector, textured_images

from skpbas._training.threshold import auto_offset, discriminator_bias, offset_of_ratios
from skpbas.core.patch_scores import DiscriminatorScorer, FusedScorer
from skpbas.errors import TrainingError


def gumbel(rng, n, mean=0.0, std=1.0):
    return mean + std * (rng.gumbel(size=n) - np.euler_gamma) * np.sqrt(6) / np.pi


def false_alarms(n_train, gap, spread, n_sets=300, seed=0):
    """False alarm rate over many training sets; unseen logits are shifted by gap and scaled by spread."""
    rng = np.random.default_rng(seed)
    rates = []
    for _ in range(n_sets):
        scores = -gumbel(rng, n_train)
        seen, unseen = -gumbel(rng, n_train // 2), -gumbel(rng, n_train // 2, gap, spread)
        rates.append((-gumbel(rng, 500, gap, spread) < auto_offset(scores, (seen, unseen))).mean())
    return np.mean(rates)


@pytest.mark.parametrize(("gap", "spread"), [(0, 1), (2, 1.5), (20, 5)])
@pytest.mark.parametrize("n_train", [100, 400])
def test_about_one_in_a_hundred_unseen_normal_images_is_flagged_for_any_gap(n_train, gap, spread):
    assert 0.004 < false_alarms(n_train, gap, spread) < 0.03


@pytest.mark.parametrize("n_train", [4, 6, 10, 20])
def test_few_training_images_do_not_cause_many_false_alarms(n_train):
    assert false_alarms(n_train, 2, 1.5) < 0.08


def test_the_threshold_is_equivariant_to_shifting_and_scaling_scores():
    a, b, c = (-np.random.default_rng(i).gumbel(size=60) for i in range(3))
    moved = auto_offset(3 * a - 7, (3 * b - 7, 3 * c - 7))
    assert moved == pytest.approx(3 * auto_offset(a, (b, c)) - 7)


def test_equal_scores_flag_no_training_image():
    same = np.full(10, -2.0)
    assert auto_offset(same, (same[:5], same[5:])) == -2.0
    assert auto_offset(same[:3]) == -2.0


@pytest.mark.parametrize("n_train", [20, 100, 400])
def test_scores_of_training_images_as_if_new_need_no_second_head(n_train):
    rng = np.random.default_rng(0)
    rates = [(-gumbel(rng, 500) < auto_offset(-gumbel(rng, n_train), shift=0.0)).mean() for _ in range(300)]
    assert 0.004 < np.mean(rates) < 0.03


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("n_train", [10, 20, 100, 400])
def test_about_the_wanted_share_of_ratios_with_gumbel_logarithms_is_flagged(n_train, rate):
    rng = np.random.default_rng(0)

    def ratios(n):
        return np.exp(gumbel(rng, n, mean=0.5, std=0.1))

    rates = [(-ratios(500) < offset_of_ratios(ratios(n_train), rate)).mean() for _ in range(300)]
    assert 0.4 * rate < np.mean(rates) < (3 * rate if rate < 0.1 else 1.2 * rate)


def test_the_offset_of_ratios_scales_with_them_and_is_finite_for_two_extreme_values():
    ratios = 0.5 + np.random.default_rng(0).lognormal(size=30)
    assert offset_of_ratios(100 * ratios) == pytest.approx(100 * offset_of_ratios(ratios))
    assert -np.inf < offset_of_ratios(np.array([0.0, 1e3])) < -1e3


@pytest.mark.parametrize("n_train", [2, 3, 5, 10])
def test_few_or_equal_ratios_do_not_let_everything_pass(n_train):
    equal = offset_of_ratios(np.full(n_train, 2.0))
    assert -4.0 < equal < -2.2  # as for the spread that most products have
    two_close = offset_of_ratios(np.linspace(1.9, 2.1, n_train))
    assert -4.5 < two_close < -2.2


@pytest.mark.parametrize("score", ["fused", "discriminator"])
def test_unseen_normal_images_pass_and_corrupted_ones_are_flagged(score):
    detector = small_detector(patch_score=score, max_epochs=30).set_params(backbone="embedded").fit(textured_images(24))
    unseen = textured_images(40, seed=1)
    corrupted = unseen.copy()
    corrupted[:, 16:48, 16:48] = [255, 0, 0]
    assert (detector.predict(unseen) == -1).mean() <= 0.1
    assert (detector.predict(corrupted) == -1).mean() >= 0.9


@pytest.mark.parametrize("n_images", [2, 3, 4, 5])
def test_few_images_have_a_finite_threshold_below_their_own_scores(n_images):
    images = textured_images(n_images)
    detector = small_detector(max_epochs=2).fit(images)
    assert np.isfinite(detector.offset_)
    assert (detector.predict(images) == 1).all()


@pytest.mark.parametrize("share", [0.05, 0.25])
def test_contamination_flags_that_share_of_training_images_and_no_more_of_unseen_ones(share):
    images, unseen = textured_images(40), textured_images(60, seed=1)
    detector = small_detector(max_epochs=10, contamination=share, precision="float32")
    detector = detector.set_params(backbone="embedded").fit(images)
    assert (detector.predict(images) == -1).sum() == round(share * len(images))
    error = np.sqrt(share * (1 - share) * (1 / len(images) + 1 / len(unseen)))
    assert (detector.predict(unseen) == -1).mean() <= share + 2 * error


@pytest.mark.parametrize("contamination", ["auto", 0.1])
@pytest.mark.parametrize("patch_score", ["fused", "discriminator"])
def test_fit_refuses_training_scores_that_are_not_finite(contamination, patch_score, monkeypatch):
    def overflowing(scorer, scores, grid_shape):
        return torch.full((len(scores),), torch.inf)

    for kind in (FusedScorer, DiscriminatorScorer):
        monkeypatch.setattr(kind, "image_scores", overflowing)
    detector = small_detector(max_epochs=1, patch_score=patch_score, contamination=contamination)
    with pytest.raises(TrainingError, match=r"scores of 6 of 6 training images are not finite.*lower projector_lr and"):
        detector.fit(textured_images(6))
    assert not hasattr(detector, "offset_")


def test_a_larger_false_alarm_rate_lowers_both_thresholds_and_changes_no_score():
    images = textured_images(12)
    strict, lenient = (
        small_detector(max_epochs=2, false_alarm_rate=rate).fit(images) for rate in (0.01, np.float32(0.2))
    )
    np.testing.assert_array_equal(strict.score_samples(images), lenient.score_samples(images))
    assert lenient.offset_ > strict.offset_
    assert lenient.map_threshold_ < strict.map_threshold_


@pytest.mark.parametrize(("n", "n_different"), [(4, 4), (10, 1)])
def test_few_or_equal_images_are_warned_of_and_do_not_let_everything_pass(n, n_different):
    images = textured_images(n_different)[np.arange(n) % n_different]
    message = rf"{n_different} different images of {n} show little .* threshold is a guess: give 20 or more"
    with pytest.warns(UserWarning, match=message):
        detector = small_detector(n_exemplars=64).set_params(backbone="embedded").fit(images)
    damaged = textured_images(4, seed=2).copy()
    damaged[:, 20:44, 20:44] = 0
    assert (detector.predict(damaged) == -1).all()


def test_two_images_are_warned_of_and_their_threshold_is_not_out_of_reach():
    with pytest.warns(UserWarning, match="2 different images of 2"):
        detector = small_detector(max_epochs=1).fit(textured_images(2))
    assert detector.offset_ > 3 * detector.training_scores_.min()


def test_five_images_are_enough_for_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_detector(max_epochs=1).fit(textured_images(5))


def test_contamination_does_not_change_the_scores():
    images = textured_images(10)
    auto, fixed = (small_detector(max_epochs=2, contamination=c).fit(images) for c in ("auto", 0.1))
    np.testing.assert_array_equal(auto.score_samples(images), fixed.score_samples(images))


def test_what_the_discriminator_has_not_seen_matters_the_more_the_fewer_images_it_has_seen():
    biases = np.array([discriminator_bias(n) for n in (10, 20, 40, 100, 1000)])
    np.testing.assert_allclose(biases[:3], [1.13, 1.08, 1.04], atol=0.006)  # measured
    assert (np.diff(biases) < 0).all()
    assert 1 < biases[-1] < 1.005


def test_fewer_than_ten_images_are_taken_for_ten_so_that_their_threshold_errs_toward_flagging():
    assert discriminator_bias(2) == discriminator_bias(10)
