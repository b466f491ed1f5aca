"""Names that somebody else chose, in every figure: `$`, control characters, letters without end."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from histogep.deployment.model import Prediction
from histogep.enrichment.gsea import enrich
from histogep.evaluation.held_out import HeldOut
from histogep.report import style as plots
from histogep.report.figures.cnv import agreement_figure
from histogep.report.figures.enrichment import activity_maps, dot_plot, running_sums
from histogep.report.figures.evaluation import plot_tumour
from histogep.report.figures.expression import plot_prediction
from histogep.report.figures.outcome import forest
from histogep.report.figures.slides import draw_failure
from tests.model_study import make_features

ROOT = Path(__file__).resolve().parents[2]
#: Each breaks a figure where it is drawn as it is, or takes minutes.
NAMES = {
    "formula": r"$\frac{$",
    "two dollars": "a$b_c$d^",
    "control": "a\0b\x1b[31m\x7f",
    "lines": "a\nb\r\tc\u2028",
    "surrogate": "a\udcffb",
    "long": "n" * 20_000,
}


def save(fig, tmp_path):
    plots.save(fig, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    return [text.get_text() for text in fig.findobj(Text)]


@pytest.fixture(params=NAMES)
def name(request):
    return NAMES[request.param]


def drawn(name):
    """Return the beginning of a name as a figure shows it."""
    return plots.as_drawn(name, most=24)[:8]


@pytest.mark.parametrize("where", ["title", "tick", "legend", "text", "colour bar", "axis"])
def test_what_lies_between_dollars_is_text_wherever_it_stands(tmp_path, where):
    name = NAMES["formula"]
    fig = plots.figure(width_mm=60, height_mm=60)
    axes = fig.subplots()
    (line,) = axes.plot([0, 1], [0, 1], label=name if where == "legend" else "x")
    axes.legend()
    if where == "title":
        axes.set_title(name)
        fig.suptitle(name)
    elif where == "tick":
        axes.set_xticks([0, 1], [name, name])
        axes.set_yticks([0, 1], labels=[name, name])
    elif where == "text":
        axes.text(0, 0, name)
        axes.annotate(name, (0, 0))
        fig.text(0, 0, name)
    elif where == "colour bar":
        fig.colorbar(axes.scatter([0, 1], [0, 1], c=[0, 1]), label=name)
    else:
        axes.set(xlabel=name, ylabel=name)
        fig.supxlabel(name)
    assert name in save(fig, tmp_path)


def test_every_figure_is_made_in_the_house_style():
    """So the style holds for all: no module makes a figure of its own, or reads formulas."""
    for path in [*ROOT.glob("histogep/**/*.py"), *ROOT.glob("workflow_scripts/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Figure":
                assert path.name == "style.py"
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "pyplot" not in ast.unparse(node), path.name
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert "mathdefault" not in node.value, path.name
                if path.parent.name == "figures":
                    assert "$" not in node.value, path.name


def test_a_name_is_drawn_as_one_short_line_with_a_glyph_for_every_letter():
    assert plots.as_drawn("HLA-A") == "HLA-A"
    assert plots.as_drawn(" a\n\tb\u2028c ") == "a b c"
    assert plots.as_drawn("a\0\x1b\udcff") == "a\ufffd\ufffd\ufffd"
    for most in (3, 10, 60):
        short = plots.as_drawn("a" * 30 + "z" * 31, most=most)
        assert len(short) == most
        assert short[0] == "a"
        assert "…" in short
    assert plots.as_drawn("x" * 60) == "x" * 60


def test_a_reason_is_drawn(tmp_path, name):
    texts = save(draw_failure("S1", f"slide S1: /data/{name}/x.svs is truncated"), tmp_path)
    assert any(drawn(f"slide S1: /data/{name}") in text for text in texts)
    refused = pd.DataFrame({"r": [np.nan], "note": [f"slide S1: {name}"]})
    save(agreement_figure(refused, pd.DataFrame()), tmp_path)


@pytest.mark.parametrize("name", [n for kind, n in NAMES.items() if kind != "surrogate"])
def test_gene_sets_are_drawn(tmp_path, name):
    rng = np.random.default_rng(0)
    genes = [f"G{i:03d}" for i in range(160)]
    ranking = pd.DataFrame({"gene": genes, "score": np.sort(rng.normal(size=160))[::-1]})
    sets = {"c": {name: genes[:12], f"{name}2": genes[100:130]}}
    gsea = enrich(ranking, sets, permutations=100, min_size=5, max_size=60, seed=7)
    assert set(gsea["gene_set"]) == set(sets["c"])
    title = f"Ranked by t: right, higher in patients of subtype {name} than in others"
    for fig in (
        dot_plot(gsea, title=title, n_ranked=160, reason=name),
        dot_plot(gsea.head(0), title=title, n_ranked=160, reason=name),
        running_sums(ranking, gsea, sets, title=title),
    ):
        assert any(drawn(name)[:3] in text for text in save(fig, tmp_path))
    table = pd.DataFrame(
        {"collection": ["c"], "gene_set": [name], "moran_i": [0.4], "moran_null": [0.1]}
    )
    obs = pd.DataFrame({"slide": "S1", "x_um": [0.0, 100, 200], "y_um": 0.0, "pitch_um": 100.0})
    obs.index = obs.index.astype(str)
    maps = anndata.AnnData(np.arange(3.0)[:, None], obs=obs, var=pd.DataFrame(index=[f"c:{name}"]))
    save(activity_maps(table, maps), tmp_path)


def test_genes_are_drawn(tmp_path, name):
    concordance = pd.DataFrame(
        {"model": ["clinical", "shuffled"], "c_index": 0.6, "ci_low": 0.5, "ci_high": 0.7}
    ).assign(null=0.5, p=0.1, n=50, events=20)
    cox = pd.DataFrame({"gene": [name, "G2"], "hr": 1.1, "ci_low": 0.9, "ci_high": 1.4})
    fig = forest(concordance, cox.assign(p=0.01, fdr=0.02))
    assert any(text.startswith(drawn(name)) for text in save(fig, tmp_path))
    features, _ = make_features("S1", np.random.default_rng(0))
    n = len(features.row)
    said = Prediction(
        features=features,
        expression=np.random.default_rng(0).random((n, 2), np.float32),
        genes=pd.DataFrame(
            {"predictable": [True, False], "half_width": 1.0, "score": 0.5}, index=[name, "G2"]
        ),
        tumour=np.full(n, 0.5, np.float32),
        ood_score=np.ones(n, np.float32),
        out_of_distribution=np.zeros(n, bool),
        uns={"lattice": features.lattice, "mpp": 0.5, "study": "s", "model_digest": "0" * 64}
        | {"out_of_distribution": False},
    )
    assert any(text.startswith(drawn(name)) for text in save(plot_prediction(said), tmp_path))


@pytest.mark.parametrize("name", [NAMES["formula"], NAMES["control"]])
def test_the_maps_of_held_out_genes_are_drawn(tmp_path, name):
    from histogep.evaluation.scorecards import Evaluation
    from histogep.report.figures.evaluation import plot_maps
    from tests.evaluation.test_scorecards import make_study

    sections, measured, _ = make_study(n_patients=2)
    sections = [s for s in sections if s.task == "expression" and s.protocol == "patient_cv"]
    genes = (name, *sections[0].genes[1:])
    sections = [replace(section, genes=genes) for section in sections]
    of = sections[0]
    common = {"protocol": "patient_cv", "model": of.model}
    evaluation = Evaluation.__new__(Evaluation)
    vars(evaluation).update(
        best=of.model,
        genes=pd.DataFrame({"gene": genes, "pearson": np.linspace(0.9, 0.1, len(genes))}).assign(
            **common
        ),
        sections=pd.DataFrame({"slide": [of.slide], "pearson": [0.5]}).assign(**common),
    )
    texts = save(plot_maps(evaluation, sections, measured), tmp_path)
    assert any(text.startswith(f"best: {drawn(name)}"[:10]) for text in texts)


@pytest.mark.parametrize("n_folds", [1, 30])
def test_the_reason_in_place_of_a_tumour_map_is_not_clipped(n_folds):
    reason = (
        "fold patient_cv-{}: its 12 training sections have 0 spots labelled malignant and 0 "
        "non-malignant, so no tumour map can be learned; give labels (slides.tsv, column labels)"
    )
    nothing = np.zeros((0, 1))
    sections = [
        HeldOut(
            protocol="patient_cv",
            fold=f"patient_cv-{i}",
            model="tumour",
            task="tumour",
            slide=f"S{i}",
            patient=f"P{i}",
            genes=("tumour",),
            barcode=np.array([], object),
            row=np.array([], int),
            col=np.array([], int),
            in_tissue=np.array([], bool),
            truth=nothing,
            predicted=nothing,
            threshold=None,
            absent=reason.format(i),
        )
        for i in range(n_folds)
    ]
    fig = plot_tumour(sections, {}, pd.DataFrame())
    fig.canvas.draw()
    (text,) = fig.texts
    box, page = text.get_window_extent(), fig.bbox
    assert box.x0 > 0
    assert box.x1 < page.x1
    assert box.y0 > 0
    assert box.y1 < page.y1
    said = text.get_text().replace("\n", " ")
    assert reason.format(0) in said
    assert ("more like these" in said) == (n_folds > 4)
