"""The scripts that score genes and choose the panel of a fold."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from histogep.files import file_sha256, read_json, read_tsv, write_tsv
from histogep.spots.normalise import add_expression
from histogep.spots.panel import SCORE_COLUMNS, choose_panel

GENES = {
    "method": "moran",
    "neighbours": 15,
    "p": 0.05,
    "min_moran": 0.05,
    "min_genes": 1,
    "max_genes": 5,
    "markers": True,
    "exclude": ["^RP[SL]"],
    "extended_min_detected": 0.05,
    "extended_max_genes": 20,
}


def _spots(seed):
    """A section of 10 x 10 spots: a gene in stripes, a ribosomal one, and noise."""
    rng = np.random.default_rng(seed)
    row, col = (part.ravel() for part in np.mgrid[:10, :10])
    counts = rng.poisson(5, (100, 12))
    counts[:, :2] = rng.poisson(1 + 9 * (row[:, None] >= 5), (100, 2))
    # A gene that is striped in the held-out section alone.
    counts[:, 2] = rng.poisson(1 + 9 * (col >= 5)) if seed == 9 else rng.poisson(5, 100)
    names = ["STRIPE", "RPL3", "LATE", "CD3E", *(f"G{i}" for i in range(8))]
    return add_expression(
        anndata.AnnData(
            sparse.csr_matrix(counts.astype(np.float32)),
            obs=pd.DataFrame(
                {"row": row, "col": col}, index=[f"{c}x{r}" for r, c in zip(row, col, strict=True)]
            ),
            var=pd.DataFrame(index=names),
            obsm={"spatial": np.c_[col, row] * 60.0},
        )
    )


@pytest.fixture
def study(run_script, tmp_path):
    """Three scored sections of three patients, their folds, and the markers."""
    for slide, seed in {"s1": 1, "s2": 2, "s3": 9}.items():
        _spots(seed).write_h5ad(tmp_path / f"{slide}.h5ad")
        log = run_script(
            "score_genes.py",
            input={"spots": tmp_path / f"{slide}.h5ad"},
            output={"genes": tmp_path / f"sections/{slide}.tsv"},
            params={"genes": GENES},
        )
        assert "100 spots, 12 genes" in log
    roles = {"s1": "train", "s2": "validation", "s3": "test"}
    rows = [
        {"protocol": protocol, "fold": fold, "slide": s, "patient": f"p{s}", "role": role}
        for protocol, fold in (("patient_cv", "patient_cv-1"), ("published", "published-1"))
        for s, role in roles.items()
    ]
    rows += [
        {"protocol": "all", "fold": "all", "slide": s, "patient": f"p{s}", "role": "train"}
        for s in roles
    ]
    write_tsv(pd.DataFrame(rows), tmp_path / "folds.tsv")
    write_tsv(pd.DataFrame({"lineage": ["t_cell"], "gene": ["CD3E"]}), tmp_path / "markers.tsv")
    return tmp_path


def _select(run_script, study, fold):
    run_script(
        "select_genes.py",
        input={
            "folds": study / "folds.tsv",
            "genes": [study / f"sections/{slide}.tsv" for slide in ("s1", "s2", "s3")],
            "markers": study / "markers.tsv",
        },
        output={"panel": study / f"{fold}.tsv", "record": study / f"{fold}.json"},
        params={"genes": GENES},
        wildcards={"study": "demo", "fold": fold},
    )
    return read_tsv(study / f"{fold}.tsv", keep_default_na=False), read_json(study / f"{fold}.json")


def test_scores_have_the_columns_of_the_contract(study):
    scores = read_tsv(study / "sections/s1.tsv").set_index("gene")
    assert ("gene", *scores.columns) == SCORE_COLUMNS
    assert scores["moran_i"].idxmax() in ("STRIPE", "RPL3")
    assert scores.loc["STRIPE", "p"] < 1e-6


def test_an_honest_panel_knows_nothing_of_the_held_out_section(run_script, study):
    panel, record = _select(run_script, study, "patient_cv-1")
    main = set(panel.loc[panel["main"], "gene"])
    assert {"STRIPE", "CD3E"} <= main
    assert not {"LATE", "RPL3"} & main
    assert record["slides"] == ["s1", "s2"]
    assert record["patients"] == ["ps1", "ps2"]
    assert record["held_out_slides_used"] == []
    assert record["sha256"] == {s: file_sha256(study / f"sections/{s}.tsv") for s in ("s1", "s2")}
    limits = record["limits"]
    assert limits["n_passing"] <= limits["n_measured"] <= record["genes_shared"]
    assert "genes, of" in limits["sentence"]
    assert limits["bound_by"] in ("", "max_genes", "min_moran", "p", "extended_min_detected")
    # The audit's way: the same panel again from the same sections.
    scores = {s: read_tsv(study / f"sections/{s}.tsv", keep_default_na=False) for s in ("s1", "s2")}
    again = choose_panel(scores, read_tsv(study / "markers.tsv"), record["settings"])
    assert list(again["gene"]) == list(panel["gene"])
    # Not even opened, so that it may be missing or broken.
    (study / "sections/s3.tsv").write_text("broken")
    pd.testing.assert_frame_equal(panel, _select(run_script, study, "patient_cv-1")[0])


def test_the_papers_panel_sees_the_held_out_section_and_says_so(run_script, study):
    _, record = _select(run_script, study, "published-1")
    assert record["slides"] == ["s1", "s2", "s3"]
    assert record["held_out_slides_used"] == ["s3"]
    _, record = _select(run_script, study, "all")
    assert record["slides"] == ["s1", "s2", "s3"]
    assert record["held_out_slides_used"] == []


def test_genes_may_be_named_by_numbers(run_script, study):
    for slide in ("s1", "s2", "s3"):
        path = study / f"sections/{slide}.tsv"
        scores = read_tsv(path, dtype={"gene": str}).sort_values("gene", ignore_index=True)
        scores["gene"] = [f"{number:03d}" for number in range(len(scores))]
        write_tsv(scores, path)
    _select(run_script, study, "patient_cv-1")
    panel = read_tsv(study / "patient_cv-1.tsv", dtype={"gene": str})
    assert len(panel)
    assert panel["gene"].str.fullmatch(r"0\d\d").all()
