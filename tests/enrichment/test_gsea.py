from __future__ import annotations

import anndata as ad
import gseapy
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from histogep.enrichment.gsea import (
    COLUMNS,
    NothingToRankError,
    enrich,
    enrich_contrast,
    rank_by_column,
    rank_contrast,
    rank_measured,
    rank_predicted,
    running_sum,
)
from histogep.errors import InputError
from histogep.inputs.gene_sets import read_gmt
from histogep.report.figures.enrichment import CAVEAT, dot_plot, running_sums
from histogep.spots.normalise import add_expression

OPTIONS = {"min_size": 5, "max_size": 500, "permutations": 1000, "seed": 1}


def ranking(n=160, up=12, down=10, seed=0):
    scores = np.random.default_rng(seed).normal(size=n)
    scores[:up] += 3
    scores[up : up + down] -= 3
    table = pd.DataFrame({"gene": [f"G{i:03d}" for i in range(n)], "score": scores})
    return table.sort_values("score", ascending=False, ignore_index=True)


def names(start, stop):
    return [f"G{i:03d}" for i in range(start, stop)]


SETS = {
    "planted": {"UP": names(0, 12), "DOWN": names(12, 22), "IRRELEVANT": names(60, 80)},
    "other": {"TOO_SMALL": ["G001", "NOT_THERE"], "ELSEWHERE": ["A", "B", "C", "D", "E"]},
}


def test_planted_sets_are_found_with_their_sign_and_an_irrelevant_one_is_not(caplog):
    table = enrich(ranking(), SETS, **OPTIONS).set_index("gene_set")
    assert table.loc["UP", "nes"] > 1.5
    assert table.loc["DOWN", "nes"] < -1.5
    assert (table.loc[["UP", "DOWN"], "fdr"] < 0.001).all()
    assert (table.loc[["UP", "DOWN"], "p"] > 0).all()  # small, and not cut off at zero
    assert table.loc["IRRELEVANT", "fdr"] > 0.1
    assert table.loc["UP", "n_genes"] == 12
    assert set(table.loc["UP", "leading_edge"].split(",")) <= set(names(0, 12))
    assert "other: none of its 2 gene sets has 5 to 500 genes" in caplog.text
    assert set(table["collection"]) == {"planted"}


def test_the_scores_are_gseapy_s_own():
    ranked = ranking()
    table = enrich(ranked, SETS, **OPTIONS).set_index("gene_set")
    theirs = gseapy.prerank(
        ranked, SETS["planted"], min_size=5, threads=1, seed=7, outdir=None, no_plot=True
    ).res2d.set_index("Term")
    for name in table.index:
        assert table.loc[name, "es"] == pytest.approx(theirs.loc[name, "ES"])
        assert table.loc[name, "nes"] == pytest.approx(theirs.loc[name, "NES"], rel=0.15)


def test_the_order_of_genes_and_sets_does_not_matter_and_two_runs_agree():
    ranked = ranking()
    first = enrich(ranked, SETS, **OPTIONS)
    backwards = {c: {k: v[::-1] for k, v in reversed(s.items())} for c, s in SETS.items()}
    again = enrich(ranked, backwards, **OPTIONS)
    pd.testing.assert_frame_equal(first, again)


def test_nothing_to_test_gives_an_empty_table_and_a_figure_that_says_so():
    table = enrich(ranking(), {"other": SETS["other"]}, **OPTIONS)
    assert table.empty
    assert list(table) == COLUMNS
    texts = [t.get_text() for t in dot_plot(table, title="t", n_ranked=160).axes[0].texts]
    assert any("No gene set has enough of its genes" in text for text in texts)
    flat = ranking().assign(score=1.0)
    assert enrich(flat, SETS, **OPTIONS).empty


def test_the_dot_plot_shows_every_set_at_its_score():
    table = enrich(ranking(), SETS, **OPTIONS)
    axes = dot_plot(table, title="t", n_ranked=160).axes[0]
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels == ["DOWN (10)", "IRRELEVANT (20)", "UP (12)"] or labels[-1] == "UP (12)"
    np.testing.assert_allclose(axes.collections[0].get_offsets()[:, 0], np.sort(table["nes"]))
    assert CAVEAT in axes.get_xlabel()


def test_the_running_sum_peaks_at_gseapy_s_enrichment_score():
    ranked = ranking()
    table = enrich(ranked, SETS, **OPTIONS)
    for row in table.itertuples():
        members = ranked["gene"].isin(SETS["planted"][row.gene_set]).to_numpy()
        path = running_sum(ranked["score"].to_numpy(), members)
        assert path[np.abs(path).argmax()] == pytest.approx(row.es)
        assert path[-1] == pytest.approx(0)
    fig = running_sums(ranked, table, SETS, title="By z: right, high")
    assert fig.get_suptitle() == "By z: left, high"
    titles = [axes.get_title(loc="left") for axes in fig.axes if axes.get_title(loc="left")]
    assert len(titles) == 3
    assert titles[0].startswith(table.sort_values(["p", "gene_set"])["gene_set"].iloc[0])
    assert CAVEAT in fig.get_supxlabel()
    drawn = fig.axes[0].lines[0].get_ydata()
    assert np.abs(drawn).max() == pytest.approx(
        abs(table.sort_values(["p", "gene_set"])["es"].iloc[0])
    )
    empty = running_sums(ranked, table.head(0), SETS, title="t").axes[0].texts
    assert "No gene set has enough" in empty[0].get_text()


def test_gmt_files(tmp_path, caplog):
    path = tmp_path / "sets.gmt"
    path.write_text("A\tabout\tX\tY\tX\t\nB\t\tZ,1.0\tW\n\n")
    assert read_gmt(path) == {"A": ["X", "Y"], "B": ["Z", "W"]}
    path.write_text("A\tabout\tX\n", encoding="utf-8-sig")
    assert read_gmt(path) == {"A": ["X"]}
    for text, message in (
        ("A X Y\n", "line 1 is not GMT"),
        ("A\tabout\n", "line 1 is not GMT"),
        ("A\t\tX\nA\t\tY\n", "line 2: gene set 'A' appears twice, with different genes"),
        ("", "holds no gene set"),
        ("A\t\tX\nB\t\t7157\t672\n", "line 2: the genes of 'B' are numbers, such as 7157"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_gmt(path)
    path.write_text("A\td\tX\tY\nEMPTY\td\nA\td\tY\tX\nB\td\t1-Mar\n\x0c\td\tZ\n")
    with pytest.raises(InputError, match="line 5 is not GMT"):
        read_gmt(path)
    path.write_text("A\td\tX\tY\nEMPTY\td\nA\td\tY\tX\nB\td\t1-Mar\n")
    assert read_gmt(path) == {"A": ["X", "Y"], "B": ["1-Mar"]}
    assert "1 gene sets without genes are left out: EMPTY" in caplog.text
    assert "1 gene sets that are repeated are left out: A" in caplog.text
    assert "Excel turned into a date: 1-Mar" in caplog.text
    path.write_text("A\td\tX\tY Z\tNA\tNA\nB\td\tX,1.0\tNA\nC\td\tNA\tNA\n")
    assert read_gmt(path) == {"A": ["X", "Y Z"], "B": ["X", "NA"]}
    assert "4 cells of NA" in caplog.text
    assert "names that are not of genes: Y Z, NA" in caplog.text
    for genes in ("X,Y,Z", "X;Y", "X Y", "X /// Y", "X|Y"):
        path.write_text(f"A\td\tX\tY\nB\td\t{genes}\n")
        with pytest.raises(InputError, match="line 2: .* is a list of genes, not one"):
            read_gmt(path)
    path.write_text("A\t\tX\nno set\n")
    assert read_gmt(path, n_lines=1) == {"A": ["X"]}
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(InputError, match="is not a text file"):
        read_gmt(path)


def test_ranking_by_a_column_drops_genes_without_a_score_and_keeps_a_gene_called_na(tmp_path):
    path = tmp_path / "cox.tsv"
    path.write_text("gene\tz\nB\t1.5\nNA\t3\nA\t1.5\nC\t\nD\t-2\n")
    table = rank_by_column(path, "z")
    assert table["gene"].tolist() == ["NA", "A", "B", "D"]
    with pytest.raises(InputError, match="needs the columns gene and t"):
        rank_by_column(path, "t")
    by_cox, title = rank_contrast(cox=path)
    pd.testing.assert_frame_equal(by_cox, table)
    assert "Cox z" in title


@pytest.fixture
def sections(tmp_path):
    """Two sections of different depth: gene 0 is malignant, gene 1 is not, the others neither."""
    rng = np.random.default_rng(0)
    spots, labels = [], []
    for number, depth in enumerate((3.0, 30.0)):
        kinds = np.array(["malignant", "non-malignant", "boundary"])[np.arange(60) % 3]
        rate = np.full((60, 30), depth)
        rate[kinds == "malignant", 0] *= 2
        rate[kinds == "non-malignant", 1] *= 2
        obs = pd.DataFrame(index=[f"b{i}" for i in range(60)])
        var = pd.DataFrame(index=[f"G{i}" for i in range(29)] + [f"ONLY{number}"])
        path = tmp_path / f"s{number}.h5ad"
        section = ad.AnnData(sp.csr_matrix(rng.poisson(rate)), obs=obs, var=var)
        add_expression(section).write_h5ad(path)
        spots.append(path)
        labels.append(tmp_path / f"s{number}.tsv")
        table = pd.DataFrame({"barcode": obs.index, "label": kinds})
        table.sample(frac=1, random_state=1).to_csv(labels[-1], sep="\t", index=False)
    return spots, labels


def test_measured_sections_rank_by_malignancy(sections):
    table = rank_measured(*sections)
    assert table["gene"].iloc[0] == "G0"
    assert table["gene"].iloc[-1] == "G1"
    assert len(table) == 31  # genes of one section only are there too
    assert table["score"].iloc[1] < 0.5 * table["score"].iloc[0]


def test_a_section_of_one_kind_is_left_out_and_all_of_one_kind_refused(sections, caplog):
    spots, labels = sections
    table = pd.read_csv(labels[1], sep="\t").assign(label="malignant")
    table.to_csv(labels[1], sep="\t", index=False)
    assert "ONLY1" not in set(rank_measured(spots, labels)["gene"])
    assert "0 non-malignant spots, fewer than 5" in caplog.text
    with pytest.raises(InputError, match="no section has enough malignant"):
        rank_measured(spots[1:], labels[1:])


def test_predicted_slides_rank_their_predictable_genes(tmp_path):
    rng = np.random.default_rng(0)
    tumour = np.repeat([0.9, 0.1], 20)
    x = rng.normal(1, 0.1, (40, 4)).astype(np.float32)
    x[:20, 0] += 0.5
    x[:20, 1] -= 0.5
    x[:20, 3] += 5
    var = pd.DataFrame({"predictable": [True, True, True, False]}, index=list("ABCD"))
    obs = pd.DataFrame({"tumour": tumour}, index=[str(i) for i in range(40)])
    path = tmp_path / "s.h5ad"
    ad.AnnData(x, obs=obs, var=var).write_h5ad(path)
    table = rank_predicted([path])
    assert table["gene"].tolist() == ["A", "C", "B"]
    expected = (x[:20, 0].mean() - x[20:, 0].mean()) / x[:, 0].std()
    assert table["score"][0] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(NothingToRankError, match="no slide has both tumour and other tiles"):
        rank_contrast(expression=[path], tumour_threshold=0.95)


def test_a_collection_with_nothing_left_is_named_under_the_figure_of_the_others(tmp_path):
    path = tmp_path / "cox.tsv"
    ranking().rename(columns={"score": "z"}).to_csv(path, sep="\t", index=False)
    table, gsea, title, reason = enrich_contrast(
        "survival", {"cox": path}, SETS, settings={"permutations": 100}, seed=1
    )
    assert set(gsea["collection"]) == {"planted"}
    assert reason == "other: none of its 2 gene sets has 5 to 500 genes among the 160 ranked ones"
    label = dot_plot(gsea, title=title, n_ranked=len(table), reason=reason).axes[0].get_xlabel()
    assert "other: none of its 2 gene sets" in label


def test_hallmark_sets_find_the_pathway_that_is_ranked_first(shared_data):
    hallmark = read_gmt(shared_data / "genesets" / "h.all.v7.0.symbols.gmt")
    assert len(hallmark) == 50
    genes = sorted({gene for members in hallmark.values() for gene in members})
    scores = np.random.default_rng(0).normal(size=len(genes))
    planted = np.isin(genes, hallmark["HALLMARK_E2F_TARGETS"])
    table = pd.DataFrame({"gene": genes, "score": scores + 1.5 * planted})
    result = enrich(table, {"hallmark": hallmark}, **OPTIONS)
    assert len(result) == 50
    assert result["gene_set"].iloc[0] == "HALLMARK_E2F_TARGETS"
    assert result["fdr"].iloc[0] < 1e-6
    unrelated = result.set_index("gene_set").loc["HALLMARK_MYOGENESIS", "fdr"]
    assert unrelated > 0.1
