import numpy as np
import pandas as pd
import pytest

from histogep.cnv.arms import MIN_SHIFT, rank_genes, score_arms, shuffle_runs
from histogep.cnv.controls import check_held_out

N = 4000


@pytest.fixture(scope="module")
def genome():
    """Return the arm of each of 4,000 genes and their mean expression."""
    names = [f"{number}{side}" for number in range(1, 21) for side in "pq"]
    return np.repeat(names, N // len(names)), np.random.default_rng(0).lognormal(0, 1, N)


def _clusters(rng):
    """Return a contrast with 150 clusters of 3 to 15 neighbours that go up or down together."""
    values = rng.normal(0, 0.3, N)
    for _ in range(150):
        size = int(rng.integers(3, 16))
        start = int(rng.integers(N - size))
        values[start : start + size] += rng.choice([-1, 1]) * rng.uniform(0.3, 1.5)
    return values


def test_clusters_of_neighbours_are_no_arm_and_a_gained_arm_is(genome):
    arms, level = genome
    for seed in range(10):
        values = _clusters(np.random.default_rng(seed))
        assert not score_arms(values, level, arms, permutations=199).table["altered"].any()
    for arm, shift in (("3q", 0.6), ("7p", -0.6)):
        table = score_arms(values + shift * (arms == arm), level, arms, permutations=199).table
        found = table[table["altered"]].set_index("arm")
        assert list(found.index) == [arm]
        assert (
            np.sign(found.loc[arm, ["score", "z"]].astype(float)).tolist() == [np.sign(shift)] * 2
        )
        assert abs(found.loc[arm, "score"]) >= MIN_SHIFT


def test_a_quarter_of_an_arm_is_left_out_however_far_it_moves(genome):
    arms, level = genome
    values = np.random.default_rng(1).normal(0, 0.3, N)
    own = np.flatnonzero(arms == "9q")
    values[own[20:40]] += 5
    table = score_arms(values, level, arms, permutations=199).table.set_index("arm")
    assert not table["altered"].any()
    assert abs(table.loc["9q", "score"]) < 0.1


def test_several_contrasts_share_one_family(genome):
    arms, level = genome
    values = np.random.default_rng(2).normal(0, 0.3, (3, N))
    values[1] += 0.4 * (arms == "2p")
    scores = score_arms(values, level, arms, permutations=199)
    altered = scores.table[scores.table["altered"]]
    assert altered[["contrast", "arm"]].to_numpy().tolist() == [[1, "2p"]]
    assert scores.strongest == pytest.approx(altered["z"].iloc[0])
    alone = score_arms(values[1], level, arms, permutations=199)
    assert np.quantile(scores.null, 0.95) > np.quantile(alone.null, 0.95)


def test_what_follows_expression_is_no_shift(genome):
    _, level = genome
    noise = np.random.default_rng(3).normal(0, 0.1, N)
    scores = rank_genes(np.log(level) + noise, level)
    assert abs(np.corrcoef(scores, np.log(level))[0, 1]) < 0.35
    assert scores.mean() == pytest.approx(0, abs=1e-6)
    assert scores.std() == pytest.approx(1, abs=0.05)
    # Ranks do not see how far a gene moves.
    far = noise.copy()
    far[noise.argmax()] = 100
    np.testing.assert_allclose(rank_genes(far, level), rank_genes(noise, level))


def test_runs_change_places_and_stay_whole():
    order = shuffle_runs(1000, np.random.default_rng(0), length=10)
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert (np.diff(order) == 1).mean() == pytest.approx(0.9, abs=0.02)
    np.testing.assert_array_equal(
        np.sort(shuffle_runs(3, np.random.default_rng(0), length=10)), range(3)
    )


def test_no_arm_with_genes_enough_is_altered():
    scores = score_arms(np.ones(6), np.ones(6), ["1p"] * 3 + ["1q"] * 3, permutations=19)
    assert scores.table.empty
    constant = score_arms(np.zeros(200), np.ones(200), ["1p"] * 100 + ["1q"] * 100, permutations=99)
    assert not constant.table["altered"].any()
    assert (constant.table["score"] == 0).all()


@pytest.mark.parametrize(
    ("verdicts", "share", "verdict"),
    [
        ({"p1": "pass", "p2": "pass", "p3": "fail"}, 2 / 3, "pass"),
        ({"p1": "pass", "p2": "fail"}, 0.5, "fail"),
        ({"p1": "pass", "p2": "not applicable"}, 1.0, "pass"),
        ({"p1": "not applicable"}, 0.0, "fail"),
    ],
)
def test_most_held_out_patients_must_agree(verdicts, share, verdict):
    table = pd.DataFrame({"patient": list(verdicts), "verdict": list(verdicts.values())})
    # A clone of a patient says nothing of tumour against reference.
    clones = table.assign(contrast="clone 0", verdict="fail")
    found = check_held_out(pd.concat([table.assign(contrast="tumour"), clones])).iloc[0]
    assert found["value"] == pytest.approx(share)
    assert found["verdict"] == verdict


def test_every_section_of_a_patient_must_agree():
    table = pd.DataFrame(
        {"patient": ["p1", "p1"], "contrast": "tumour", "verdict": ["pass", "fail"]}
    )
    assert check_held_out(table).iloc[0]["verdict"] == "fail"
    assert check_held_out(None).iloc[0]["verdict"] == "not applicable"
