from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse, stats

from histogep.evaluation.raw_counts import raw_table
from histogep.evaluation.scorecards import evaluate
from histogep.stats.scores import pearson
from tests.evaluation.test_scorecards import SETTINGS, card, make_study


@pytest.fixture(scope="module")
def study():
    return make_study(n_patients=4)


def patient_cv(study):
    return [s for s in study[0] if s.protocol == "patient_cv" and s.task == "expression"]


def test_depth_and_outline_are_scored_as_scipy_would(study):
    sections = patient_cv(study)
    table = raw_table(sections, study[1], fitted=True).set_index("slide")
    for section in sections:
        counts = study[1][section.slide]
        raw = np.log1p(counts.counts.toarray())
        expected = [
            stats.pearsonr(np.log1p(counts.library_sizes), raw[:, gene])[0]
            for gene in range(raw.shape[1])
        ]
        assert table.loc[section.slide, "depth"] == pytest.approx(np.mean(expected))
    assert (table["tissue_mask"] == 0).all()
    assert (table["depth"] > 0.15).all()


def test_depth_lifts_the_score_of_predictions_that_know_it(study):
    """Predictions that follow depth, whatever the gene, score against raw counts alone."""
    sections = []
    for section in patient_cv(study):
        total = np.log1p(study[1][section.slide].library_sizes)[:, None]
        sections.append(section.instead("depth follower", np.repeat(total, len(section.genes), 1)))
    table = raw_table(sections, study[1], fitted=True)
    np.testing.assert_allclose(table["value"], table["depth"], atol=0.03)
    normalised = np.mean([pearson(s.predicted, s.truth).mean() for s in sections])
    assert abs(normalised) < 0.15


def test_no_patient_s_own_counts_turn_predictions_into_raw_counts(study):
    """Counts upside down would be fitted well by their own regression, by that of others never."""
    sections = patient_cv(study)
    first = raw_table(sections, study[1], fitted=True).set_index("patient")
    changed = dict(study[1])
    for section in sections:
        if section.patient == "P0":
            counts = changed[section.slide].counts.toarray()
            upside_down = sparse.csr_matrix(counts.max(0) - counts)
            changed[section.slide] = replace(changed[section.slide], counts=upside_down)
    again = raw_table(sections, changed, fitted=True).set_index("patient")
    assert (first.loc["P0", "value"] > 0.1).all()
    assert (again.loc["P0", "value"] < -0.1).all()
    alone = raw_table([s for s in sections if s.patient == "P0"], study[1], fitted=True)
    assert alone["value"].isna().all()


def test_both_cards_have_the_metric_and_it_chooses_nothing(study):
    evaluation = evaluate(*study, settings=SETTINGS, seed=1)
    for protocol in ("patient_cv", "published"):
        model, depth, outline = (
            card(evaluation, protocol, name, "pearson_raw")
            for name in ("net", "depth", "tissue_mask")
        )
        assert model["null"] == pytest.approx(depth["value"])
        assert depth["null"] == pytest.approx(outline["value"])
        assert model["ci_low"] <= model["value"] <= model["ci_high"]
        assert np.isnan(model["ceiling"])
    assert evaluation.best == "net"
