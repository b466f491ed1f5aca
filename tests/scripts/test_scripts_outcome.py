from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from histogep.errors import InputError
from histogep.spots.normalise import add_expression

QUICK = {"repeats": 1, "refits": 5, "bootstraps": 100, "inner_folds": 3}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Thirty slides whose genes rise or fall with the hazard, with the response, or with neither."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    names = [f"G{i:02d}" for i in range(80)]
    hazard, response = rng.permutation(np.linspace(-1.7, 1.7, 30)), rng.normal(size=30)
    rows, paths, stages = [], [], ("I", "II", "III", "IV")
    for i in range(30):
        x = 2 + 0.1 * rng.normal(size=(40, 80))
        x[:, :10] += 0.3 * hazard[i]
        x[:, 10:20] += 0.3 * response[i]
        x[:, 20:30] -= 0.3 * hazard[i]
        x[:, 30:40] -= 0.3 * response[i]
        obs = pd.DataFrame(
            {"tumour": np.linspace(0, 1, 40), "out_of_distribution": False},
            index=[f"{row}x0" for row in range(40)],
        )
        var = pd.DataFrame({"predictable": True}, index=names)
        paths.append(folder / f"s{i:02d}.h5ad")
        data = ad.AnnData(x.astype(np.float32), obs=obs, var=var, uns={"model_digest": "d"})
        data.write_h5ad(paths[-1])
        time = 24 * rng.exponential() / np.exp(2 * hazard[i])
        rows.append(
            f"{i:03d}\t{min(time, 100):.1f}\t{int(time <= 100)}\t{rng.normal(60, 9):.0f}\t"
            f"{'female' if i % 2 else 'male'}\t{stages[i % 4]}\t{int(response[i] > 0)}"
        )
    sheet = folder / "patients.tsv"
    sheet.write_text("patient\ttime\tevent\tage\tsex\tstage\tresponse\n" + "\n".join(rows) + "\n")
    gmt = folder / "sets.gmt"
    gmt.write_text(
        "HAZARD\t\t" + "\t".join(names[:10]) + "\n"
        "RESPONSE\t\t" + "\t".join(names[10:20]) + "\n"
        "IRRELEVANT\t\t" + "\t".join(names[40:55]) + "\n"
    )
    signatures = folder / "signatures.yaml"
    signatures.write_text(
        f"signatures: {{immune: {{formula: mean, genes: [{', '.join(names[10:20])}]}}}}\n"
    )
    return {"folder": folder, "slides": paths, "sheet": sheet, "gmt": gmt, "yaml": signatures}


def read(path):
    return pd.read_csv(path, sep="\t")


def test_from_slides_to_outcomes(run_script, study, tmp_path):
    table = tmp_path / "patients.parquet"
    run_script(
        "summarise_patients.py",
        input={
            "expression": study["slides"], "patients": study["sheet"], "signatures": study["yaml"],
        },
        output={
            "patients": table, "dropped": tmp_path / "dropped.tsv",
            "counts": tmp_path / "counts.tsv", "page": tmp_path / "page.html",
        },
        params={
            "slide_patients": {path.stem: f"{i:03d}" for i, path in enumerate(study["slides"])},
            "training": [],
            "summary": {"min_tumour_tiles": 5, "tumour_threshold": 0.5, "endpoint": "OS"},
        },
    )  # fmt: skip
    patients = pd.read_parquet(table)
    assert patients["patient"].iloc[0] == "000"
    assert "signature:immune" in patients
    assert read(tmp_path / "dropped.tsv").empty
    assert read(tmp_path / "counts.tsv").set_index("what").loc["in the table", "n"] == 30
    assert "with an event" in (tmp_path / "page.html").read_text()

    survival = {
        name: tmp_path / "survival" / file
        for name, file in {
            "cox": "cox.tsv", "concordance": "concordance.tsv", "risk": "risk.tsv",
            "km": "km.svg", "forest": "forest.svg", "horizons": "horizons.tsv",
            "calibration": "calibration.tsv", "at_horizons": "horizons.svg",
            "log_rank": "log_rank.tsv", "follow_up": "follow_up.tsv",
            "multivariable": "multivariable.tsv", "adjusted": "multivariable.svg",
            "page": "survival.html",
        }.items()
    }  # fmt: skip
    log = run_script(
        "fit_survival.py",
        input={"patients": table},
        output=survival,
        params={"survival": QUICK | {"shuffles": 5}, "seed": 1},
        wildcards={"cohort": "hospital"},
    )
    assert "C-index clinical+image" in log
    models = read(survival["concordance"]).set_index("model")["c_index"]
    assert models["clinical+image"] > models["clinical"]
    strongest = {f"G{i:02d}" for i in [*range(10), *range(20, 30)]}
    assert len(set(read(survival["cox"])["gene"].head(20)) & strongest) >= 18
    assert set(read(survival["horizons"])["model"]) >= {"clinical", "clinical+image"}
    assert survival["at_horizons"].stat().st_size > 5000
    adjusted = read(survival["multivariable"]).set_index("variable")
    assert adjusted.loc["image risk", "hr"] > 1
    assert adjusted.loc["image risk", "lr_p"] < 0.05
    assert survival["adjusted"].stat().st_size > 5000
    assert read(survival["follow_up"])["patients"].tolist() == [30, 15, 15]
    page = survival["page"].read_text()
    assert "Patients by risk (model clinical+image)" in page
    assert "what the image adds to the covariates" in page
    # What the job itself warned of stands above the numbers that it decides.
    assert page.index("Read this first") < page.index("events for") < page.index("C-index")
    first = survival["km"].read_bytes(), survival["forest"].read_bytes()

    response = {
        name: tmp_path / "response" / file
        for name, file in {
            "performance": "performance.tsv", "scores": "scores.tsv", "genes": "genes.tsv",
            "roc": "roc.svg", "page": "response.html",
        }.items()
    }  # fmt: skip
    run_script(
        "predict_response.py",
        input={"patients": table},
        output=response,
        params={"response": QUICK | {"permutations": 5}, "seed": 1},
        wildcards={"cohort": "hospital"},
    )
    page = response["page"].read_text()
    assert "Response of cohort hospital" in page
    assert "a signature, by its score alone" in page
    scored = read(response["performance"]).query("metric == 'auroc'").set_index("model")
    assert scored.loc["immune", "value"] > 0.9
    assert response["roc"].stat().st_size > 5000

    for contrast, source, planted in (
        ("survival", {"cox": survival["cox"], "patients": table}, "HAZARD"),
        ("response", {"response_genes": response["genes"], "patients": table}, "RESPONSE"),
    ):
        out = tmp_path / contrast
        run_script(
            "enrich_genes.py",
            input={**source, "gene_sets": [study["gmt"]]},
            output={
                "ranking": out / "ranking.tsv", "gsea": out / "gsea.tsv", "dotplot": out / "g.svg",
                "running": out / "running.svg",
            },
            params={
                "collections": {"planted": study["gmt"]}, "ranking": {}, "seed": 1,
                "enrichment": {"min_size": 5, "permutations": 1000},
            },
            wildcards={"cohort": "c", "contrast": contrast},
        )  # fmt: skip
        gsea = read(out / "gsea.tsv").set_index("gene_set")
        assert gsea.loc[planted, "fdr"] < 0.01
        assert gsea.loc[planted, "nes"] > 0
        assert gsea.loc["IRRELEVANT", "fdr"] > 0.05
        assert gsea["significant"].to_dict()[planted]
        assert not gsea.loc["IRRELEVANT", "significant"]
        assert (out / "g.svg").read_text().startswith("<?xml")
        assert (out / "running.svg").stat().st_size > 5000

    # A second run gives the same bytes.
    run_script(
        "fit_survival.py",
        input={"patients": table},
        output=survival,
        params={"survival": QUICK | {"shuffles": 5}, "seed": 1},
        wildcards={"cohort": "hospital"},
    )
    assert first == (survival["km"].read_bytes(), survival["forest"].read_bytes())


def test_measured_sections_are_enriched(run_script, tmp_path):
    rng = np.random.default_rng(0)
    kinds = np.repeat(["malignant", "non-malignant"], 20)
    rate = np.full((40, 40), 5.0)
    rate[:20, :8] *= 2
    obs = pd.DataFrame(index=[f"b{i}" for i in range(40)])
    var = pd.DataFrame(index=[f"G{i:02d}" for i in range(40)])
    section = ad.AnnData(sp.csr_matrix(rng.poisson(rate)), obs=obs, var=var)
    add_expression(section).write_h5ad(tmp_path / "s.h5ad")
    pd.DataFrame({"barcode": obs.index, "label": kinds}).to_csv(
        tmp_path / "s.tsv", sep="\t", index=False
    )
    (tmp_path / "g.gmt").write_text("UP\t\t" + "\t".join(var.index[:8]) + "\n")
    run_script(
        "enrich_genes.py",
        input={
            "spots": [tmp_path / "s.h5ad"], "labels": [tmp_path / "s.tsv"],
            "gene_sets": [tmp_path / "g.gmt"],
        },
        output={
            "ranking": tmp_path / "r.tsv", "gsea": tmp_path / "gsea.tsv", "dotplot": tmp_path / "d.svg",
            "running": tmp_path / "running.svg",
        },
        params={"collections": {"planted": tmp_path / "g.gmt"}, "enrichment": {}, "ranking": {}, "seed": 1},
        wildcards={"cohort": "c", "contrast": "tumour"},
    )  # fmt: skip
    assert len(read(tmp_path / "r.tsv")) == 40
    row = read(tmp_path / "gsea.tsv").iloc[0]
    assert (row["gene_set"], row["fdr"] < 0.001, row["nes"] > 0) == ("UP", True, True)
    assert row[["p_patients", "significant"]].isna().all()  # patients are not permuted here


def test_slides_without_a_tumour_map_end_in_a_page_that_says_so(run_script, study, tmp_path):
    slides = []
    for path in study["slides"][:3]:
        data = ad.read_h5ad(path)
        data.obs["tumour"] = np.float32(np.nan)
        slides.append(tmp_path / path.name)
        data.write_h5ad(slides[-1])
    output = {name: tmp_path / name for name in ("ranking", "gsea", "dotplot.svg", "running.svg")}
    output = {name.removesuffix(".svg"): path for name, path in output.items()}
    said = run_script(
        "enrich_genes.py",
        input={"expression": slides, "gene_sets": [study["gmt"]]},
        output=output,
        params={
            "collections": {"planted": study["gmt"]}, "enrichment": {}, "ranking": {}, "seed": 1,
            "training_patients": "exclude",
            "slide_patients": dict(zip([path.stem for path in slides], "abc", strict=True)),
        },
        wildcards={"cohort": "c", "contrast": "tumour"},
    )  # fmt: skip
    assert "no slide has a tumour map, as the model has none" in said
    assert "fdr_patients" in read(output["gsea"])
    assert read(output["gsea"]).empty
    assert read(output["ranking"]).empty
    for figure in ("dotplot", "running"):
        assert "no slide has a tumour map" in output[figure].read_text()


def test_a_refusal_stands_in_the_log_and_leaves_no_file(run_script, tmp_path):
    table = pd.DataFrame(
        {"patient": [f"P{i}" for i in range(12)], "time": 1.0, "event": 0.0, "age": range(12)}
    )
    table.to_parquet(tmp_path / "patients.parquet")
    outputs = {name: tmp_path / name for name in ("cox", "concordance", "risk", "km", "forest")}
    with pytest.raises(InputError, match="no patient has an event"):
        run_script(
            "fit_survival.py",
            input={"patients": tmp_path / "patients.parquet"},
            output=outputs,
            params={"survival": {}, "seed": 1},
        )
    assert not any(path.exists() for path in outputs.values())
    assert "no patient has an event" in (tmp_path / "job.log").read_text()
