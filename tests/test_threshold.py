"""The automatic threshold, against scores whose law is known."""

import numpy as np
import pytest

from skpbas._threshold import _RATIO, _SHIFT, auto_offset


def false_alarms(n_train, n_sets=400, n_unseen=500, seed=0):
    """Share of unseen good images flagged, over many training sets of Gumbel logits."""
    rng = np.random.default_rng(seed)
    rates = []
    for _ in range(n_sets):
        offset = auto_offset(-rng.gumbel(size=n_train))
        # unseen images score higher and spread more than seen ones, by what was measured
        deviation = np.pi / np.sqrt(6)
        unseen = np.euler_gamma + _SHIFT * deviation + _RATIO * (rng.gumbel(size=n_unseen) - np.euler_gamma)
        rates.append((-unseen < offset).mean())
    return np.mean(rates)


@pytest.mark.parametrize("n_train", [50, 200, 1000])
def test_about_one_in_a_hundred_unseen_good_images_is_flagged(n_train):
    assert 0.006 < false_alarms(n_train) < 0.02


@pytest.mark.parametrize("n_train", [3, 5, 10, 20])
def test_few_training_images_do_not_bring_many_false_alarms(n_train):
    assert false_alarms(n_train) < 0.04


def test_shifted_and_stretched_scores_shift_and_stretch_the_threshold():
    scores = -np.random.default_rng(0).gumbel(size=60)
    assert auto_offset(3 * scores - 7) == pytest.approx(3 * auto_offset(scores) - 7)


def test_equal_scores_flag_no_training_image():
    assert auto_offset(np.full(10, -2.0)) == -2.0
