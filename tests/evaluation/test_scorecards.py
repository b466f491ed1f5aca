from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from histogep.errors import InputError
from histogep.evaluation.cards import tumour_cards
from histogep.evaluation.held_out import HeldOut, read_held_out
from histogep.evaluation.measured import Measured, check_truth
from histogep.evaluation.scorecards import COLUMNS, evaluate
from histogep.evaluation.tumour_scores import tumour_table
from histogep.lattice import Lattice
from histogep.spots.matrices import expression_of
from histogep.spots.normalise import add_expression

SETTINGS = {"permutations": 30, "bootstraps": 200, "thinnings": 4, "coverage": 0.9, "shifts": 1}
GENES = tuple(f"G{i}" for i in range(24))
N_SIGNAL = 12  # the first genes follow the tissue, the others are noise
SIDE = 14
GRID = (18, 16)


def smooth(rng, n_fields):
    from scipy.ndimage import gaussian_filter

    fields = gaussian_filter(rng.normal(size=(n_fields, SIDE + 8, SIDE + 8)), (0, 2, 2))
    fields = fields[:, 4 : 4 + SIDE, 4 : 4 + SIDE].reshape(n_fields, -1)
    return (fields - fields.mean(1, keepdims=True)) / fields.std(1, keepdims=True)


def make_study(*, seed=0, n_patients=4, quality=0.8, patient_cv_patients=None):
    """Return held-out predictions, counts and folds: half the genes predictable, half not."""
    rng = np.random.default_rng(seed)
    row, col = (a.astype(np.int32) for a in np.divmod(np.arange(SIDE * SIDE), SIDE))
    weights = rng.normal(size=(4, len(GENES)))
    weights[:, N_SIGNAL:] = 0
    measured, sections, folds = {}, [], []
    slides = [(f"P{p}{s}", f"P{p}") for p in range(n_patients) for s in (1, 2)]
    for slide, patient in slides:
        tissue = smooth(rng, 4)
        level = rng.normal(0, 0.4, len(GENES))
        rate = np.exp(np.linspace(-1, 2, len(GENES)) + 0.35 * (tissue.T @ weights) + level)
        depth = rng.lognormal(0, 0.3, (SIDE * SIDE, 1))
        counts = rng.poisson(np.concatenate([rate, np.full((SIDE * SIDE, 1), 3000.0)], 1) * depth)
        library = counts.sum(1).astype(float)
        normalised = expression_of(add_expression(anndata.AnnData(counts)))
        expression = normalised.toarray()[:, : len(GENES)]
        barcode = np.array([f"{slide}-{i}" for i in range(len(row))], object)
        measured[slide] = Measured(
            slide=slide,
            barcode=pd.Index(barcode),
            row=row,
            col=col,
            genes=pd.Index(GENES),
            counts=sparse.csr_matrix(counts[:, : len(GENES)]),
            library_sizes=library,
            expression=expression,
            lattice=Lattice(),
        )
        own = np.sqrt(1 - quality**2) * smooth(rng, 4) + quality * tissue
        guess = np.linspace(0.6, 2, len(GENES)) + 0.25 * own.T @ weights
        guess[:, N_SIGNAL:] += 0.2 * smooth(rng, len(GENES) - N_SIGNAL).T
        fold = f"patient_cv-{int(patient[1:]) + 1}"
        common = {"model": "net", "task": "expression", "slide": slide, "patient": patient}
        sections.append(
            HeldOut(
                protocol="patient_cv",
                fold=fold,
                genes=GENES,
                barcode=barcode,
                row=row,
                col=col,
                in_tissue=np.ones(len(row), bool),
                predicted=guess.astype(np.float32),
                truth=expression,
                **common,
            )
        )
        cells = np.arange(GRID[0] * GRID[1])
        inside = np.isin(cells, (row + 1) * GRID[1] + col + 1)
        full = {
            "predicted": np.full((len(cells), len(GENES)), 0.05, np.float32),
            "truth": np.zeros((len(cells), len(GENES)), np.float32),
        }
        full["predicted"][inside], full["truth"][inside] = guess, expression
        code = np.full(len(cells), "", object)
        code[inside] = barcode
        sections.append(
            HeldOut(
                protocol="published",
                fold=f"published-{len(measured)}",
                genes=GENES,
                barcode=code,
                row=(cells // GRID[1]).astype(np.int32),
                col=(cells % GRID[1]).astype(np.int32),
                in_tissue=inside,
                **full,
                **common,
            )
        )
        label = (tissue[0] > 0.3).astype(np.float32)
        label[rng.random(len(label)) < 0.1] = np.nan
        sections.append(
            HeldOut(
                protocol="patient_cv",
                fold=fold,
                model="tumour",
                task="tumour",
                slide=slide,
                patient=patient,
                genes=("tumour",),
                barcode=barcode,
                row=row,
                col=col,
                in_tissue=np.ones(len(row), bool),
                predicted=(1 / (1 + np.exp(-2 * own[0])))[:, None].astype(np.float32),
                truth=label[:, None],
            )
        )
    for fold in range(n_patients):
        for slide, patient in slides:
            role = "test" if patient == f"P{fold}" else "train"
            folds.append(("patient_cv", f"patient_cv-{fold + 1}", slide, patient, role))
    for fold in range(len(slides)):
        for i, (slide, patient) in enumerate(slides):
            role = "test" if i == fold else "train"
            folds.append(("published", f"published-{fold + 1}", slide, patient, role))
    columns = ["protocol", "fold", "slide", "patient", "role"]
    return sections, measured, pd.DataFrame(folds, columns=columns)


@pytest.fixture(scope="module")
def study():
    return make_study()


@pytest.fixture(scope="module")
def evaluation(study):
    return evaluate(*study, settings=SETTINGS, seed=1)


def card(evaluation, protocol, model, metric):
    table = evaluation.scorecards
    row = table[
        (table["protocol"] == protocol) & (table["model"] == model) & (table["metric"] == metric)
    ]
    assert len(row) == 1
    return row.iloc[0]


def test_scorecards_have_the_columns_that_others_read(evaluation):
    assert list(evaluation.scorecards.columns) == list(COLUMNS)
    assert not evaluation.scorecards.duplicated(["protocol", "task", "model", "metric"]).any()


def test_honest_pearson_equals_scipy_averaged_by_hand(study, evaluation):
    by_section = [
        np.mean([stats.pearsonr(s.predicted[:, g], s.truth[:, g])[0] for g in range(len(GENES))])
        for s in study[0]
        if s.protocol == "patient_cv" and s.task == "expression"
    ]
    row = card(evaluation, "patient_cv", "net", "pearson")
    assert row["value"] == pytest.approx(np.mean(by_section), abs=1e-5)
    assert row["ci_low"] < row["value"] < row["ci_high"]
    assert abs(row["null"]) < 0.02
    assert row["value"] < row["ceiling"] < 1
    by_patient = np.mean(np.reshape(by_section, (-1, 2)), axis=1)
    assert card(evaluation, "patient_cv", "net", "pearson_patients")["value"] == pytest.approx(
        by_patient.mean(), abs=1e-5
    )
    assert (row["n_sections"], row["n_patients"], row["n_genes"]) == (8, 4, len(GENES))


def test_constant_in_tissue_scores_zero_honestly_and_high_under_hist(evaluation):
    assert card(evaluation, "patient_cv", "tissue_mask", "pearson")["value"] == 0
    assert card(evaluation, "patient_cv", "training_mean", "pearson")["value"] == 0
    outline = card(evaluation, "published", "tissue_mask", "pearson")
    assert outline["value"] > 0.4
    assert outline["value"] == pytest.approx(outline["null"])
    # In correlation the training mean is the outline again.
    assert card(evaluation, "published", "training_mean", "pearson")["value"] == pytest.approx(
        outline["value"], abs=1e-6
    )
    model = card(evaluation, "published", "net", "pearson")
    assert model["null"] == pytest.approx(outline["value"])
    assert model["value"] > card(evaluation, "patient_cv", "net", "pearson")["value"]


def test_hist_pearson_is_over_the_whole_grid(study, evaluation):
    by_section = [
        np.mean([stats.pearsonr(s.predicted[:, g], s.truth[:, g])[0] for g in range(len(GENES))])
        for s in study[0]
        if s.protocol == "published"
    ]
    assert card(evaluation, "published", "net", "pearson")["value"] == pytest.approx(
        np.mean(by_section), abs=1e-5
    )


def test_predictable_genes_are_the_planted_ones(evaluation):
    genes = evaluation.genes[evaluation.genes["protocol"] == "patient_cv"].set_index("gene")
    planted = genes.loc[list(GENES[:N_SIGNAL]), "predictable"]
    noise = genes.loc[list(GENES[N_SIGNAL:]), "predictable"]
    assert planted.mean() >= 0.8
    assert noise.sum() == 0
    assert genes.loc[planted.index, "null_p"].max() < 0.05
    assert (genes["null_upper"] > genes["null"]).all()
    assert not evaluation.genes.loc[
        evaluation.genes["protocol"] == "published", "predictable"
    ].any()


def test_smooth_maps_of_nothing_make_no_gene_predictable():
    for seed in range(3):
        sections, measured, folds = make_study(seed=10 + seed, n_patients=3, quality=0.0)
        expression = [s for s in sections if s.protocol == "patient_cv" and s.task == "expression"]
        genes = evaluate(expression, measured, folds, settings=SETTINGS, seed=1).genes
        assert genes["predictable"].sum() == 0


def test_level_is_scored_apart(study, evaluation):
    assert card(evaluation, "patient_cv", "net", "pearson_within")["value"] == pytest.approx(
        card(evaluation, "patient_cv", "net", "pearson")["value"]
    )
    level = card(evaluation, "patient_cv", "net", "pearson_between")
    assert level["n_patients"] == 4
    # Leaving a patient out makes the mean of the others fall as that patient rises.
    assert card(evaluation, "patient_cv", "training_mean", "pearson_between")["value"] < -0.9
    perfect = [
        s.instead("net", s.truth)
        for s in study[0]
        if s.task == "expression" and s.protocol == "patient_cv"
    ]
    perfect = evaluate(perfect, study[1], study[2], settings=SETTINGS, seed=1)
    assert card(perfect, "patient_cv", "net", "pearson_between")["value"] == pytest.approx(1)
    # Means of hundreds of spots hardly suffer from the noise of counts.
    assert 0.9 < level["ceiling"] <= 1
    two = make_study(n_patients=2)
    two = evaluate(*two, settings=SETTINGS, seed=1).scorecards
    assert "pearson_between" not in set(two["metric"])


def test_coverage_and_half_width_stand_beside_the_training_mean(evaluation):
    coverage = card(evaluation, "patient_cv", "net", "coverage")
    assert coverage["null"] == 0.9
    assert 0.8 < coverage["value"] < 0.97
    width = card(evaluation, "patient_cv", "net", "half_width")
    assert width["value"] > 0
    assert width["null"] > 0
    assert set(evaluation.calibration["model"]) == {"net"}
    assert evaluation.calibration["half_width"].gt(0).all()


def test_tumour_rows_agree_with_scikit_learn(study, evaluation):
    from sklearn import metrics as reference

    table = evaluation.tumour.set_index("slide")
    for section in study[0]:
        if section.task == "tumour":
            known = np.isfinite(section.truth[:, 0])
            truth, guess = section.truth[known, 0], section.predicted[known, 0]
            row = table.loc[section.slide]
            assert row["auroc"] == pytest.approx(reference.roc_auc_score(truth, guess))
            assert row["auprc"] == pytest.approx(reference.average_precision_score(truth, guess))
            assert row["dice"] == pytest.approx(reference.f1_score(truth, guess >= 0.5))
            assert row["auprc_null"] == pytest.approx(truth.mean())
            assert row["auroc_null"] == 0.5
            # A label of one or two broad areas is met by unrelated broad maps, too.
            assert 0.5 < row["auroc_upper"] < 1
            assert row["threshold_from"] == "default"
    assert 0.5 < table["auroc_upper"].median() < 0.9
    row = card(evaluation, "patient_cv", "tumour", "auroc")
    assert row["value"] == pytest.approx(table["auroc"].mean())
    assert np.isnan(row["ceiling"])


def test_a_threshold_of_the_fold_is_the_one_that_dice_is_taken_at(study):
    from sklearn import metrics as reference

    sections = [
        replace(section, threshold=0.31 + 0.05 * i)
        for i, section in enumerate(s for s in study[0] if s.task == "tumour")
    ]
    table = tumour_table(sections, study[1], permutations=20, seed=0).set_index("slide")
    expected = {}
    for section in sections:
        known = np.isfinite(section.truth[:, 0])
        truth, guess = section.truth[known, 0], section.predicted[known, 0]
        expected[section.slide] = reference.f1_score(truth, guess >= section.threshold)
        assert table.loc[section.slide, "dice"] == pytest.approx(expected[section.slide])
        assert table.loc[section.slide, "threshold"] == section.threshold
        assert table.loc[section.slide, "threshold_from"] == "fold"
        assert expected[section.slide] != reference.f1_score(truth, guess >= 0.5)
    settings = {"bootstraps": 100}
    rows = tumour_cards(table.reset_index(), settings=settings, seed=0)
    (row,) = (row for row in rows if row["metric"] == "dice")
    assert row["value"] == pytest.approx(np.mean(list(expected.values())))
    assert row["null"] == pytest.approx(table["dice_null"].mean())


def test_a_map_that_could_not_be_learned_is_listed_and_the_others_are_scored(study, tmp_path):
    """One fold without labels: its sections have a reason, the mean is over the others."""
    from histogep.report.figures.evaluation import plot_tumour

    maps = [section for section in study[0] if section.task == "tumour"]
    blank = {
        section.slide: replace(
            section, predicted=np.full_like(section.predicted, np.nan), absent="no labels in it"
        )
        for section in maps
        if section.fold == "patient_cv-2"
    }
    sections = [blank.get(section.slide, section) for section in maps]
    table = tumour_table(sections, study[1], permutations=20, seed=0).set_index("slide")
    assert (table.loc[list(blank), "absent"] == "no labels in it").all()
    assert table.loc[list(blank), ["auroc", "auprc", "dice", "threshold"]].isna().all(axis=None)
    scored = table[table["absent"] == ""]
    assert len(scored) == len(table) - 2
    assert scored["auroc"].notna().all()
    rows = tumour_cards(table.reset_index(), settings={"bootstraps": 100}, seed=0)
    (row,) = (row for row in rows if row["metric"] == "auroc")
    assert row["value"] == pytest.approx(scored["auroc"].mean())
    assert (row["n_sections"], row["n_patients"]) == (6, 3)
    drawn = plot_tumour(sections, study[1], table.reset_index())
    assert len(drawn.subfigs[0].axes) > 6
    told = plot_tumour(list(blank.values()), study[1], table.loc[list(blank)].reset_index())
    assert any("no labels in it" in text.get_text() for text in told.findobj(_is_text))


def _is_text(artist):
    return hasattr(artist, "get_text")


def test_registration_rows_cover_all_shifts_and_flips(evaluation):
    assert len(evaluation.registration) == 8 * 36
    assert evaluation.registration["ok"].all()
    assert (evaluation.registration.groupby("slide")["best"].sum() == 1).all()


def test_same_seed_same_tables(study, evaluation):
    again = evaluate(*study, settings=SETTINGS, seed=1)
    pd.testing.assert_frame_equal(again.scorecards, evaluation.scorecards)
    pd.testing.assert_frame_equal(again.genes, evaluation.genes)


def test_panels_may_differ_between_folds():
    sections, measured, folds = make_study(n_patients=3)
    narrow = []
    for section in sections:
        if section.task == "expression" and section.fold == "patient_cv-1":
            section = HeldOut(
                **{
                    **vars(section),
                    "genes": GENES[2:],
                    "predicted": section.predicted[:, 2:],
                    "truth": section.truth[:, 2:],
                }
            )
        narrow.append(section)
    result = evaluate(narrow, measured, folds, settings=SETTINGS, seed=1)
    genes = result.genes[result.genes["protocol"] == "patient_cv"].set_index("gene")
    assert genes.loc["G0", "n_patients"] == 2
    assert genes.loc["G5", "n_patients"] == 3
    calibration = result.calibration.set_index("gene")
    assert calibration.loc[["G0", "G5"], "half_width"].gt(0).all()
    assert card(result, "patient_cv", "net", "pearson")["n_genes"] == len(GENES)


def test_truth_that_is_not_that_of_the_counts_is_refused(study):
    sections, measured, folds = study
    section = next(s for s in sections if s.protocol == "patient_cv" and s.task == "expression")
    check_truth(section, measured[section.slide])
    mixed = HeldOut(**{**vars(section), "truth": section.truth[::-1].copy()})
    with pytest.raises(InputError, match="mixed up"):
        evaluate([mixed], measured, folds, settings=SETTINGS, seed=1)
    short = section.cells(np.arange(len(section.row)) > 3)
    with pytest.raises(InputError, match="predicts 192 of the 196 spots"):
        check_truth(short, measured[section.slide])
    foreign = HeldOut(**{**vars(section), "barcode": np.char.add(section.barcode.astype(str), "x")})
    with pytest.raises(InputError, match="not among the spots"):
        check_truth(foreign, measured[section.slide])


def test_a_file_without_truth_or_provenance_is_refused(tmp_path):
    import anndata

    table = anndata.AnnData(np.zeros((3, 2), np.float32))
    table.write_h5ad(tmp_path / "net.h5ad")
    with pytest.raises(InputError, match="protocol"):
        read_held_out([tmp_path / "net.h5ad"])
    table.uns |= {
        "protocol": "patient_cv",
        "task": "expression",
        "fold": "patient_cv-1",
        "model": "net",
    }
    table.write_h5ad(tmp_path / "net.h5ad")
    with pytest.raises(InputError, match="truth"):
        read_held_out([tmp_path / "net.h5ad"])
