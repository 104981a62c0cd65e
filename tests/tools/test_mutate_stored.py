"""No damage to a stored detector or to an entry of ``memory`` changes scores in silence."""

import mutate_stored


def test_sixty_mutations_give_no_wrong_score(tmp_path):
    outcomes = mutate_stored.run(60, seed=1, folder=tmp_path)
    assert sum(map(sum, (counts.values() for counts in outcomes.values()))) == 60
    assert [kind for kind, counts in outcomes.items() if counts[mutate_stored.WRONG]] == []
    assert outcomes["pickle"]["refused by the package"] > 0
    assert outcomes["joblib"]["refused by the package"] > 0
    assert outcomes["entry"]["equal scores, entries written again"] > 5


def test_scores_that_differ_would_be_found(tmp_path):
    experiment = mutate_stored.Experiment(tmp_path)
    other = [result + 1e-6 for result in experiment.expected]
    assert mutate_stored.equal(experiment.expected, experiment.expected)
    assert not mutate_stored.equal(other, experiment.expected)
