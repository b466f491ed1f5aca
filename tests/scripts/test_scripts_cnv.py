import json
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from scipy import sparse

from histogep.cnv.profiles import compare_genes
from histogep.cnv.reference import choose_spots
from histogep.cnv.slide import MARKER_COLUMNS, measured_slide, write_profile
from histogep.deployment.folder import FORMAT, folder_digest
from histogep.encoders.feature_file import Features, write_features
from histogep.errors import InputError
from histogep.evaluation.copy_number import correlate_spots
from histogep.files import write_json, write_tsv
from histogep.inputs.genome import assign_arms, read_arms
from histogep.lattice import Lattice
from histogep.models.preparation import Tiles
from histogep.models.ridge import fit_ridge
from histogep.report.figures.cnv import profile_figure
from histogep.slides.thumbnail import spatial_entry
from histogep.spots.normalise import add_expression

LATTICE = Lattice("visium")
SETTINGS = {"window": 51, "step": 10, "min_reference": 20, "min_genes": 500, "guard_genes": 1000}
N_ROWS, N_COLS = 14, 12
IMAGE = spatial_entry(
    np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8),
    slide="s1",
    width_px=2400,
    spot_px=55,
)


@pytest.fixture(scope="module")
def genome():
    length_mb = read_arms()["length_mb"]
    rows = [
        (f"c{number}g{i}", f"chr{number}", int((i + 0.5) / 90 * length_mb[f"chr{number}"] * 1e6))
        for number in range(1, 23)
        for i in range(90)
    ]
    table = pd.DataFrame(rows, columns=["gene", "chromosome", "start"])
    return table.assign(end=table["start"] + 1000)


def _counts(genome, seed):
    """Return counts, rows, columns and labels: the right half is tumour, 7q gained and 3 lost."""
    rng = np.random.default_rng(seed)
    row, col = np.divmod(np.arange(N_ROWS * N_COLS), N_COLS)
    mean = np.tile(rng.lognormal(1, 1, len(genome)), (len(row), 1))
    tumour = col >= N_COLS // 2
    arm = assign_arms(genome)
    mean[np.ix_(tumour, arm == "7q")] *= 1.6
    mean[np.ix_(tumour, genome["chromosome"] == "chr3")] *= 0.5
    counts = rng.poisson(mean / mean.sum(axis=1, keepdims=True) * 5000).astype(np.float32)
    return counts, row, col, tumour


def _section(genome, folder, *, seed=1, reference=True, ranked=False):
    counts, row, col, tumour = _counts(genome, seed)
    spots = anndata.AnnData(
        X=sparse.csr_matrix(counts),
        obs=pd.DataFrame({"row": row, "col": col}, index=[f"b{i}" for i in range(len(row))]),
        var=pd.DataFrame({"gene_id": ""}, index=genome["gene"].to_numpy()),
    )
    spots.obsm["spatial"] = np.stack(LATTICE.centres_um(row, col), axis=1)
    spots.uns = {"lattice": LATTICE.to_settings(), "spatial": IMAGE}
    add_expression(spots).write_h5ad(folder / "spots.h5ad")
    label = np.where(tumour | (not reference), "malignant", "non-malignant")
    ends = np.full(len(col), "", dtype=object)
    if ranked:
        label = "undetermined"
        ends = np.where(col >= N_COLS - 3, "high", np.where(col < 3, "low", ""))
    table = pd.DataFrame({"barcode": spots.obs_names, "label": label, "ranked": ends})
    table.sample(frac=1, random_state=1).to_csv(folder / "labels.tsv", sep="\t", index=False)
    genome.to_csv(folder / "positions.tsv", sep="\t", index=False)


def _pages(folder):
    """Return what subtype_tumours writes besides tables."""
    names = {"heatmap": "subtypes.png", "maps": "maps.png", "page": "markers.html"}
    names["controls_page"] = "controls.html"
    return {name: folder / file for name, file in names.items()}


def _outputs(folder):
    return {name: folder / f"out/s1.{name}" for name in ("cnv", "arms", "markers")} | {
        "heatmap": folder / "out/s1.png"
    }


def _run_measured(run_script, folder):
    outputs = _outputs(folder)
    log = run_script(
        "infer_cnv.py",
        input={
            "spots": folder / "spots.h5ad",
            "labels": folder / "labels.tsv",
            "gene_positions": folder / "positions.tsv",
        },
        output=outputs,
        params={"code": "", "cnv": SETTINGS, "seed": 1},
        wildcards={"slide": "s1"},
    )
    return anndata.read_h5ad(outputs["cnv"]), pd.read_csv(outputs["arms"], sep="\t"), log


def test_measured_section(run_script, genome, tmp_path):
    _section(genome, tmp_path)
    result, arms, log = _run_measured(run_script, tmp_path)
    assert list(result.obs_names[:2]) == ["b0", "b1"]
    tumour = result.obs["col"] >= N_COLS // 2
    assert ((result.obs["clone"] == "reference") == ~tumour).all()
    score = result.obs["cnv_score"]
    assert score[tumour].mean() > 1.3 * score[~tumour].mean()
    assert result.uns["name"] == "CNV"
    assert result.uns["measured"]
    assert result.uns["n_reference"] == 84
    assert result.uns["reference"] == "labels"
    assert len(result.uns["cnv"]["chr_pos"]) == 22
    genes = result.uns["clone_genes"]
    assert genes.loc[genes["arm"] == "7q", "0"].mean() > 0.2
    assert genes.loc[genes["arm"] == "3p", "0"].mean() < -0.2
    assert result.uns["clone_tree"].startswith("(reference:")
    assert result.obsm["X_cnv"].shape[0] == result.n_obs
    entry = result.uns["spatial"]["s1"]
    assert entry["images"]["hires"].shape == (450, 600, 3)
    assert entry["scalefactors"] == {"tissue_hires_scalef": 0.25, "spot_diameter_fullres": 55.0}
    assert list(arms.columns[:8]) == (
        "slide clone arm value n_genes n_spots call z".split()  # noqa: SIM905
    )
    calls = arms.set_index("arm")["call"]
    assert calls["7q"] == "gain"
    assert calls["3p"] == calls["3q"] == "loss"
    assert "84 of them reference" in log
    assert np.isfinite([result.uns["heterogeneity"][name] for name in ("ithcna", "ithgex")]).all()
    # One clone has no other to be compared with.
    markers = pd.read_csv(_outputs(tmp_path)["markers"], sep="\t")
    assert list(markers.columns) == MARKER_COLUMNS
    assert markers.empty
    assert (tmp_path / "out/s1.png").stat().st_size > 10_000


def test_ranked_spots_stand_in_for_labels_and_all_say_so(run_script, genome, tmp_path):
    _section(genome, tmp_path, ranked=True)
    result, arms, log = _run_measured(run_script, tmp_path)
    assert result.uns["reference"] == "ranked"
    assert "confidence is low" in log
    assert set(result.obs["label"]) == {"undetermined"}
    col = result.obs["col"].to_numpy()
    np.testing.assert_array_equal(result.obs["reference"], col < 3)
    np.testing.assert_array_equal(result.obs["malignant"], col >= N_COLS - 3)
    calls = arms.set_index("arm")["call"]
    # Between the ends of a score, not between tumour and normal tissue: never called CNV.
    assert calls["7q"] == "higher"
    assert calls["3p"] == calls["3q"] == "lower"
    assert result.uns["name"] == "expression subtype"
    assert set(arms["name"]) == {"expression subtype"}
    assert set(arms["reference"]) == {"ranked"}
    assert set(arms["confidence"]) == {"low"}
    title = profile_figure(result, arms).axes[1].get_title(loc="left")
    assert "low confidence" in title
    outputs = {
        name: tmp_path / f"{name}.tsv" for name in ("subtypes", "patients", "controls", "markers")
    }
    run_script(
        "subtype_tumours.py",
        input={"cnv": [shutil.copyfile(tmp_path / "out/s1.cnv", tmp_path / "s1.h5ad")]},
        output=outputs | _pages(tmp_path),
        params={
            "code": "",
            "patients": {"s1": "p1"},
            "cnv": SETTINGS,
            "sample_types": ["01"],
            "seed": 1,
        },
        wildcards={"cohort": "c"},
    )
    controls = pd.read_csv(outputs["controls"], sep="\t")
    assert set(controls["reference"]) == {"ranked"}
    assert controls["note"].str.contains("low confidence").all()
    page = (tmp_path / "controls.html").read_text()
    assert "What each profile may be called" in page
    assert "<td>ranked</td>" in page
    for name in ("subtypes", "patients"):
        table = pd.read_csv(outputs[name], sep="\t")
        assert set(table["reference"]) == {"ranked"}, name
        assert set(table["confidence"]) == {"low"}, name
        assert set(table["name"]) == {"expression subtype"}, name
    assert "expression_burden" in table


def test_labels_go_before_ranks(genome):
    labels = np.array(["malignant", "non-malignant", "undetermined", "boundary"], dtype=object)
    ranked = np.array(["low", "high", "low", "high"], dtype=object)
    reference, malignant, rule = choose_spots(labels, ranked, measured=True)
    assert (reference.tolist(), malignant.tolist()) == ([0, 1, 0, 0], [1, 0, 0, 0])
    assert rule == "labels"
    # Of a kind that the labels do not name the end stands in, never a spot of the other kind.
    labels[1] = "malignant"
    reference, malignant, rule = choose_spots(labels, ranked, measured=True)
    assert (reference.tolist(), malignant.tolist()) == ([0, 0, 1, 0], [1, 1, 0, 0])
    assert rule == "ranked"
    assert choose_spots(labels, np.array([""] * 4), measured=True)[2] == "labels"
    assert choose_spots(labels, None, measured=False)[2] == "prediction"


def test_section_without_reference_and_cohort(run_script, genome, tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    for folder, reference in ((good, True), (bad, False)):
        folder.mkdir()
        _section(genome, folder, reference=reference)
        result, arms, log = _run_measured(run_script, folder)
    assert "no spot is labelled non-malignant (168 malignant)" in result.uns["refused"]
    assert "no copy number" in log
    assert arms.empty
    outputs = {
        name: tmp_path / f"{name}.tsv" for name in ("subtypes", "patients", "controls", "markers")
    }
    run_script(
        "subtype_tumours.py",
        # In another order: slides are known by the names of their files.
        input={
            "cnv": [
                shutil.copyfile(bad / "out/s1.cnv", tmp_path / "s2.h5ad"),
                shutil.copyfile(good / "out/s1.cnv", tmp_path / "s1.h5ad"),
            ]
        },
        output=outputs | _pages(tmp_path),
        params={
            "code": "",
            "patients": {"s1": "p1", "s2": "p2"},
            "cnv": SETTINGS,
            "sample_types": ["01"],
            "seed": 1,
        },
        wildcards={"cohort": "c"},
    )
    subtypes, patients, controls, markers = (pd.read_csv(p, sep="\t") for p in outputs.values())
    assert markers.empty
    assert list(subtypes.columns) == [
        *("slide", "patient", "spot", "clone", "subtype", "reference", "confidence", "name"),
    ]
    assert set(subtypes["reference"]) == {"labels"}
    assert subtypes["confidence"].isna().all()
    # A refused slide has no spot, and so no reference.
    assert patients["reference"].fillna("").tolist() == ["labels", ""]
    assert set(subtypes["slide"]) == {"s1"}
    assert patients["patient"].tolist() == ["p1", "p2"]
    assert patients["n_tumour_spots"].tolist() == [84, 0]
    assert patients["cnv_burden"].isna().tolist() == [False, True]
    assert controls.loc[controls["slide"] == "s2", "verdict"].tolist() == ["fail"]
    assert (tmp_path / "subtypes.png").stat().st_size > 5_000
    assert (tmp_path / "maps.png").stat().st_size > 5_000
    assert "Nothing to show" in (tmp_path / "markers.html").read_text()


def _model(genome, folder, encoders):
    """Write a model folder whose extended ridge has learnt from two sections; return the features."""
    slides = [_counts(genome, seed) for seed in (1, 2, 3)]
    rng = np.random.default_rng(0)
    features = [
        np.where(tumour[:, None], 1.0, -1.0) * [1, 0.5, 0, 0] + rng.normal(0, 0.2, (len(row), 4))
        for _, row, _, tumour in slides
    ]
    tiles = [Tiles(f.astype(np.float32), s[1], s[2]) for f, s in zip(features, slides, strict=True)]
    targets = [
        np.log1p(s[0] / s[0].sum(axis=1, keepdims=True) * 1e4).astype(np.float32) for s in slides
    ]
    blocks = [("descriptors", 4)]
    ridge = fit_ridge(tiles[:2], targets[:2], ["p1", "p2"], blocks=blocks, lattice=LATTICE)
    folder.mkdir()
    # One model for both panels has one file, under the name of the first.
    save_file(ridge.to_arrays(), folder / "expression.safetensors")
    shared = {"lattice": LATTICE.to_settings(), "encoders": encoders, "blocks": blocks}
    shared["blocks"] = [list(block) for block in blocks]
    wide = shared | {
        "model": "extended",
        "kind": "ridge",
        "task": "expression",
        "panel": "extended",
        "protocol": "all",
        "n_parameters": 1,
        "train_slides": ["t1", "t2"],
        "train_patients": ["p1", "p2"],
        "validation_slides": [],
        "validation_patients": [],
        "genes": genome["gene"].tolist(),
        "choice": ridge.choice,
    }
    settings = shared | {"format": FORMAT, "study": "test", "training_slides": ["t1", "t2"]}
    settings |= {"models": {"expression": wide, "extended": wide}}
    settings = json.loads(json.dumps(settings, default=float))
    settings["digest"] = folder_digest(folder, settings)
    (folder / "settings.json").write_text(json.dumps(settings))
    return tiles[2], slides[2][3]


def test_predicted_slide(run_script, genome, tmp_path):
    encoders = [{"name": "descriptors", "sha256": "", "dim": 4, "mpp": 0.5, "precision": "fp32"}]
    tiles, tumour = _model(genome, tmp_path / "model", encoders)
    centres = np.stack(LATTICE.centres_um(tiles.row, tiles.col), axis=1)
    write_features(
        Features(
            slide="s1",
            values=tiles.values,
            row=tiles.row.astype(np.int32),
            col=tiles.col.astype(np.int32),
            coords=centres.astype(np.int64),
            barcode=np.array([""] * len(tumour), dtype=object),
            white=np.zeros(4, np.float32),
            blocks=[("descriptors", 4)],
            lattice=LATTICE.to_settings(),
            encoders=encoders,
        ),
        tmp_path / "features.h5",
    )
    names = [f"{r}x{c}" for r, c in zip(tiles.row, tiles.col, strict=True)]
    obs = pd.DataFrame(
        {"row": tiles.row, "col": tiles.col, "tumour": np.where(tumour, 0.8, 0.1)}, index=names
    )
    expression = anndata.AnnData(obs=obs, obsm={"spatial": centres})
    expression.uns = {"lattice": LATTICE.to_settings(), "spatial": IMAGE}
    expression.write_h5ad(tmp_path / "expression.h5ad")
    genome.to_csv(tmp_path / "positions.tsv", sep="\t", index=False)
    outputs = _outputs(tmp_path)

    def run(**agreement):
        return run_script(
            "infer_cnv.py",
            input=agreement
            | {
                "features": tmp_path / "features.h5",
                "expression": tmp_path / "expression.h5ad",
                "model": tmp_path / "model",
                "gene_positions": tmp_path / "positions.tsv",
            },
            output=outputs,
            params={"code": "", "cnv": SETTINGS, "seed": 1},
            wildcards={"slide": "s1"},
        )

    run()
    result = anndata.read_h5ad(outputs["cnv"])
    assert not result.uns["measured"]
    assert (result.obs["reference"].to_numpy() == ~tumour).all()
    # The training tumours share their copy number and the features tell tumour from the rest.
    arms = pd.read_csv(outputs["arms"], sep="\t").set_index("arm")["value"]
    assert arms.idxmax() == "7q"
    assert set(arms.nsmallest(2).index) == {"3p", "3q"}
    verdict = result.uns["controls"].set_index("control")["verdict"]
    assert verdict["whole arms, tumour"] == "pass"

    assert verdict["arms agree in held-out patients"] == "not applicable"
    assert result.uns["name"] == "CNV"

    # The same slide, of a model whose arms do not agree with the measured ones elsewhere.
    held_out = pd.DataFrame({"patient": ["p1", "p2"], "contrast": "tumour", "verdict": "fail"})
    for verdict, name in (("fail", "expression subtype"), ("pass", "CNV")):
        write_tsv(held_out.assign(verdict=verdict), tmp_path / "agreement.tsv")
        run(agreement=tmp_path / "agreement.tsv")
        result = anndata.read_h5ad(outputs["cnv"])
        verdicts = result.uns["controls"].set_index("control")["verdict"]
        assert verdicts["arms agree in held-out patients"] == verdict
        assert result.uns["name"] == name
        assert ("group" in pd.read_csv(outputs["arms"], sep="\t")) == (verdict == "fail")

    # A slide that is tumour throughout has no reference: it is refused, and the job goes well.
    expression.obs["tumour"] = 0.9
    expression.write_h5ad(tmp_path / "expression.h5ad")
    assert "no copy number" in run()
    result = anndata.read_h5ad(outputs["cnv"])
    assert "calls every tile tumour" in result.uns["refused"]
    assert "group" in pd.read_csv(outputs["arms"], sep="\t")
    assert result.uns["name"] == "expression subtype"


@pytest.fixture(scope="module")
def held_out(genome, tmp_path_factory):
    """Return files of three patients, and the extended model of the first two."""
    from histogep.models.fit import fit_model
    from histogep.models.sections import read_sections

    folder = tmp_path_factory.mktemp("held_out")
    slides = {"s1": "p1", "s2": "p2", "s3": "p3"}
    encoders = [{"name": "descriptors", "sha256": "", "dim": 4, "mpp": 0.5, "precision": "fp32"}]
    files = {name: [] for name in ("features", "spots", "labels", "cnv")}
    for name in files:
        (folder / name).mkdir()
    for seed, slide in enumerate(slides, start=1):
        _section(genome, folder, seed=seed)
        for name, suffix in (("spots", "h5ad"), ("labels", "tsv")):
            (folder / f"{name}.{suffix}").rename(folder / name / f"{slide}.{suffix}")
            files[name].append(folder / name / f"{slide}.{suffix}")
        _, row, col, tumour = _counts(genome, seed)
        files["features"].append(folder / "features" / f"{slide}.h5")
        files["cnv"].append(folder / "cnv" / f"{slide}.h5ad")
        noise = np.random.default_rng(seed).normal(0, 0.2, (len(row), 4))
        values = np.where(tumour[:, None], 1.0, -1.0) * [1, 0.5, 0, 0] + noise
        write_features(
            Features(
                slide=slide,
                values=values.astype(np.float32),
                row=row.astype(np.int32),
                col=col.astype(np.int32),
                coords=np.stack(LATTICE.centres_um(row, col), axis=1).astype(np.int64),
                barcode=np.array([f"b{i}" for i in range(len(row))], dtype=object),
                white=np.zeros(4, np.float32),
                blocks=[("descriptors", 4)],
                lattice=LATTICE.to_settings(),
                encoders=encoders,
            ),
            files["features"][-1],
        )
    # Only the section that is held out is looked at.
    spots, labels, cnv = (files[name][-1] for name in ("spots", "labels", "cnv"))
    result, _, _ = measured_slide(spots, labels, slide="s3", positions=genome, settings=SETTINGS)
    write_profile(result, cnv)
    folds = pd.DataFrame({"protocol": "patient_cv", "fold": "patient_cv-3", "slide": list(slides)})
    folds = folds.assign(patient=list(slides.values()), role=["train", "train", "test"])
    write_tsv(folds, folder / "folds.tsv")
    genes = genome["gene"].tolist()
    train = read_sections(
        {"s1": "p1", "s2": "p2"},
        *(files[name] for name in ("features", "spots", "labels")),
        task="expression",
        genes=genes,
    )
    model = fit_model(
        {"train": train, "validation": []},
        name="extended",
        settings={"kind": "ridge", "task": "expression", "panel": "extended"},
        protocol="patient_cv",
        fold="patient_cv-3",
        genes=genes,
        seed=1,
        published_grid=[20, 20],
        test={"s3": "p3"},
    )
    save_file(model.arrays, folder / "weights.safetensors")
    files |= {"folds": folder / "folds.tsv", "weights": [folder / "weights.safetensors"]}
    return files, model.settings


@pytest.fixture
def compared(run_script, held_out, genome, tmp_path):
    """Return a function that runs compare_cnv on the patient held out."""
    files, settings = held_out

    def run(positions=genome, **changed):
        write_json(settings | changed, tmp_path / "settings.json")
        write_tsv(positions, tmp_path / "genes.tsv")
        outputs = {name: tmp_path / f"agreement_{name}.tsv" for name in ("agreement", "arms")}
        own = {"settings": [tmp_path / "settings.json"], "gene_positions": tmp_path / "genes.tsv"}
        run_script(
            "compare_cnv.py",
            input=files | own,
            output=outputs | {"figure": tmp_path / "agreement.png"},
            params={"code": "", "cnv": SETTINGS, "seed": 1},
            wildcards={"study": "s"},
        )
        assert (tmp_path / "agreement.png").stat().st_size > 2_000
        return [pd.read_csv(path, sep="\t") for path in outputs.values()]

    return run


def test_predicted_arms_agree_with_measured_ones_in_the_patient_held_out(compared):
    agreement, arms = compared()
    assert agreement["slide"].unique().tolist() == ["s3"]
    tumour = agreement.set_index("contrast").loc["tumour"]
    # The training tumours bear the same alterations.
    assert tumour["r"] > 0.9
    assert tumour["r"] > tumour["null_genes_q95"] > tumour["null_arms_q95"]
    assert tumour["verdict"] == "pass"
    # 7q gained and both arms of chromosome 3 lost, in both.
    assert tumour["arms_shared"] == tumour["arms_altered"] == 3
    values = arms[arms["contrast"] == "tumour"].set_index("arm")
    for kind in ("measured", "predicted"):
        assert values[kind].idxmax() == "7q"
        assert set(values[kind].nsmallest(2).index) == {"3p", "3q"}
    # Over spots, too: what was planted correlates beyond as many other genes.
    for arm in ("7q", "3p", "3q"):
        assert values.loc[arm, "r"] > values.loc[arm, "null_q95"] > values.loc[arm, "null_mean"]
        assert values.loc[arm, "p"] <= 0.05
    others = values.drop(index=["7p", "7q", "3p", "3q"])
    assert others["r"].max() < values.loc["7q", "r"]
    assert tumour["arms_above"] == (values["p"] <= 0.05).sum()
    # By chance a twentieth of the arms at most, on average.
    assert 0 < tumour["null_above_mean"] <= 0.05 * len(values)
    assert tumour["arms_above"] > tumour["null_above_mean"]


def test_the_correlation_of_an_arm_over_spots_is_that_of_its_means(genome):
    """By hand: the mean of an arm's genes less the mean of all, spot by spot."""
    counts, _, _, tumour = _counts(genome, 1)
    noise = np.random.default_rng(0).normal(0, 0.3, counts.shape).astype(np.float32)
    profiles = [
        compare_genes(values, genome, ~tumour, genes=genome["gene"].tolist())
        for values in (np.log1p(counts), np.log1p(counts) + noise)
    ]
    genes = profiles[0].genes.merge(profiles[1].genes[["gene"]], on="gene")
    found, by_chance = correlate_spots(profiles, genes, ["1p", "7q"], tumour, draws=40, seed=0)
    # Of 40 draws the two best of each arm have p of .05 at most.
    assert by_chance.shape == (40,)
    assert by_chance.sum() == 2 * 2
    for arm, r in zip(found["arm"], found["r"], strict=True):
        means = []
        for profile in profiles:
            values = pd.DataFrame(profile.ratio, columns=profile.genes["gene"]).loc[
                tumour, genes["gene"]
            ]
            own = values.loc[:, (genes["arm"] == arm).to_numpy()]
            means.append(own.mean(axis=1) - values.mean(axis=1))
        assert r == pytest.approx(np.corrcoef(*means)[0, 1], abs=1e-3)


def test_shuffled_positions_leave_no_agreement_beyond_the_genes(compared, genome):
    shuffled = genome.assign(gene=np.random.default_rng(0).permutation(genome["gene"]))
    agreement, _ = compared(shuffled)
    tumour = agreement.set_index("contrast").loc["tumour"]
    assert tumour["p_genes"] > 0.05
    assert tumour["arms_altered"] == 0
    assert tumour["verdict"] == "not applicable"
    assert "no arm is altered" in tumour["note"]


def test_a_model_that_saw_the_patient_is_not_compared(compared):
    with pytest.raises(InputError, match="patients p3 trained the model"):
        compared(train_patients=["p1", "p3"])


def test_a_section_that_cannot_be_compared_is_listed_with_the_reason(compared, genome):
    few = genome[genome["chromosome"].isin(["chr1", "chr2", "chr3"])]
    agreement, arms = compared(few)
    assert agreement["note"].str.contains("genome build").all()
    assert agreement["verdict"].tolist() == ["not applicable"]
    assert arms.empty
