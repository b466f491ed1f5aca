from __future__ import annotations

import numpy as np
import pytest

from histogep.models.blend import (
    NOISE_LIMITS,
    SHARES,
    Candidate,
    LeftOut,
    candidates,
    cross_fitted_score,
    mix,
    score_candidates,
    weigh,
)
from histogep.models.selection import section_score

N_SNAPSHOTS, N_PROGRAMMES, N_GENES = 3, 6, 20


def make_left_out(seed, patient, *, light=0.5, network=0.5):
    """One section whose light head and last snapshot follow the truth as much as is asked for."""
    rng = np.random.default_rng(seed)
    programmes = rng.normal(size=(80, N_PROGRAMMES))
    decoder = np.random.default_rng(99).normal(size=(N_PROGRAMMES, N_GENES))
    truth = programmes @ decoder + 2 * rng.normal(size=(80, N_GENES))
    truth[:, -1] = 0.0  # a gene that does not vary
    said = [network * programmes + rng.normal(size=programmes.shape) for _ in range(N_SNAPSHOTS)]
    beside = light * programmes @ decoder + 2 * rng.normal(size=truth.shape)
    said = np.stack(said)
    return LeftOut(
        patient,
        truth - truth.mean(0),
        beside - beside.mean(0),
        said - said.mean(1, keepdims=True),
        decoder,
    )


FOUND = candidates(N_SNAPSHOTS, N_PROGRAMMES)


def predicted(section, one):
    if not one.share:
        return section.light
    network = section.programmes[one.snapshot][:, : one.rank] @ section.decoder[: one.rank]
    return (1 - one.share) * section.light + one.share * network


def test_the_light_head_alone_is_a_candidate_once():
    assert FOUND[0] == Candidate(0.0, 0, 0)
    assert [one.share for one in FOUND].count(0.0) == 1
    assert {one.share for one in FOUND} == set(SHARES)
    assert len(FOUND) == len(set(FOUND)) == 1 + 4 * 3 * 2
    assert max(one.rank for one in FOUND) == N_PROGRAMMES
    assert all(one.share == 1.0 for one in candidates(2, 16, shares=(1.0,)))


def test_scores_from_cross_products_are_those_of_the_predictions():
    section = make_left_out(0, "P")
    scores = score_candidates(section, FOUND)
    expected = [section_score(predicted(section, one), section.truth) for one in FOUND]
    assert scores == pytest.approx(np.array(expected), abs=1e-10)


def test_a_mixture_is_the_weighted_mean_of_its_candidates():
    section = make_left_out(1, "P")
    weights = np.random.default_rng(0).dirichlet(np.ones(len(FOUND)))
    mixture = mix(weights, FOUND, (N_SNAPSHOTS, N_PROGRAMMES))
    expected = sum(w * predicted(section, one) for w, one in zip(weights, FOUND, strict=True))
    assert mixture.of(section) == pytest.approx(expected, abs=1e-10)


def share_of(sections):
    scores = np.array([score_candidates(one, FOUND) for one in sections]).T
    weights, noise = weigh(scores, [one.patient for one in sections], FOUND)
    assert weights.sum() == pytest.approx(1.0)
    assert NOISE_LIMITS[0] <= noise <= NOISE_LIMITS[1]
    return 1 - mix(weights, FOUND, (N_SNAPSHOTS, N_PROGRAMMES)).light


def test_the_share_follows_what_left_out_patients_show():
    better = [make_left_out(i, f"P{i}", light=0.1, network=1.0) for i in range(6)]
    worse = [make_left_out(i, f"P{i}", light=1.0, network=0.0) for i in range(6)]
    assert share_of(better) > 0.7
    assert share_of(worse) < 0.1


def test_with_nobody_left_out_all_shares_count_the_same():
    weights, _ = weigh(np.zeros((len(FOUND), 0)), [], FOUND)
    by_share = [sum(w for w, o in zip(weights, FOUND, strict=True) if o.share == s) for s in SHARES]
    assert by_share == pytest.approx([0.2] * 5)


def test_few_patients_are_believed_less():
    """The same gain over one patient and over eight."""
    gains = np.array([0.02 if one.share else 0.0 for one in FOUND])
    none = [weigh(np.tile(gains[:, None], n), list("abcdefgh"[:n]), FOUND)[0][0] for n in (1, 2, 8)]
    assert 0.2 > none[0] > none[1] >= none[2]
    assert none[0] > 0.05


def test_sections_of_a_patient_count_as_one():
    sections = [make_left_out(i, "PQ"[i > 0]) for i in range(4)]
    scores = np.array([score_candidates(one, FOUND) for one in sections]).T
    once = np.column_stack([scores[:, 0], scores[:, 1:].mean(1)])
    assert weigh(scores, list("PQQQ"), FOUND)[0] == pytest.approx(weigh(once, list("PQ"), FOUND)[0])


def test_the_score_of_a_patient_comes_from_weights_of_the_others():
    """A candidate that is good on one patient alone lifts the score of no other."""
    sections = [make_left_out(i, f"P{i}") for i in range(4)]
    scores = np.array([score_candidates(one, FOUND) for one in sections]).T
    before = cross_fitted_score(sections, scores, FOUND)
    honest = np.mean([section_score(one.light, one.truth) for one in sections])
    assert abs(before - honest) < 0.3
    own = scores.copy()
    own[5, 0] += 1.0  # what patient P0 shows serves the others, not itself
    assert cross_fitted_score(sections[:1], scores[:, :1], FOUND) is None
    weights = weigh(own[:, 1:], ["P1", "P2", "P3"], FOUND)[0]
    mixture = mix(weights, FOUND, (N_SNAPSHOTS, N_PROGRAMMES))
    others = [
        section_score(
            mix(
                weigh(own[:, [j for j in range(4) if j != i]], list("abc"), FOUND)[0],
                FOUND,
                (N_SNAPSHOTS, N_PROGRAMMES),
            ).of(sections[i]),
            sections[i].truth,
        )
        for i in range(1, 4)
    ]
    first = section_score(mixture.of(sections[0]), sections[0].truth)
    assert cross_fitted_score(sections, own, FOUND) == pytest.approx(np.mean([first, *others]))
