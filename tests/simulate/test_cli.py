import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
import yaml
from scipy import ndimage
from sklearn.linear_model import LogisticRegression

from histogep.errors import InputError
from histogep.files import read_json, write_json, write_tsv
from histogep.inputs.genome import assign_arms, read_gene_positions
from histogep.simulate import (
    cli,
)
from histogep.simulate import (
    cohort as simulate_cohort,
)
from histogep.simulate import (
    genes as simulate_genes,
)
from histogep.simulate import (
    image as simulate_image,
)
from histogep.simulate import (
    tissue as simulate_tissue,
)
from histogep.simulate.counts import STATES, Expression
from histogep.study.sheets import read_patients, read_slides

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"section_rows": 10, "section_cols": 10, "slide_rows": 5, "slide_cols": 6}
SIZE_UM = {"width_um": 1400.0, "height_um": 1200.0}


def _section_outputs(folder, slide):
    return {
        "image": folder / f"{slide}.tiff",
        "counts": folder / slide / "filtered_feature_bc_matrix.h5",
        "positions": folder / slide / "spatial" / "tissue_positions.csv",
        "scalefactors": folder / slide / "spatial" / "scalefactors_json.json",
        "hires": folder / slide / "spatial" / "tissue_hires_image.png",
        "annotation": folder / slide / "annotation.tsv",
        "truth": folder / slide / "truth.tsv",
    }


@pytest.fixture(scope="module")
def positions():
    return simulate_genes.bundled_positions()


@pytest.fixture(scope="module")
def truth(positions):
    return simulate_genes.plant_truth(positions, seed=1)


@pytest.fixture(scope="module")
def references(tmp_path_factory, positions, truth):
    folder = tmp_path_factory.mktemp("references")
    write_tsv(positions, folder / "gene_positions.tsv")
    write_json(truth, folder / "truth.json")
    return {
        "gene_positions": folder / "gene_positions.tsv",
        "truth": folder / "truth.json",
    }


@pytest.fixture(scope="module")
def section(tmp_path_factory, references):
    """One section of 20 x 20 spots, as the default study has it."""
    from histogep.simulate.files import simulate_section

    folder = tmp_path_factory.mktemp("section")
    simulate_section(
        "P01-1",
        {"section_rows": 20, "section_cols": 20},
        simulate_cohort.slide_composition(1, "P01-1"),
        positions=read_gene_positions(references["gene_positions"]),
        truth=read_json(references["truth"]),
        seed=1,
        image=folder / "P01-1.tiff",
        folder=folder / "P01-1",
    )
    return folder


@pytest.fixture(scope="module")
def counts(section):
    """Counts as scanpy reads them, with the truth and the array beside each spot."""
    import scanpy as sc

    folder = section / "P01-1"
    spots = sc.read_10x_h5(folder / "filtered_feature_bc_matrix.h5")
    spots.obs = spots.obs.join(pd.read_csv(folder / "truth.tsv", sep="\t", index_col="barcode"))
    array = pd.read_csv(folder / "spatial" / "tissue_positions.csv", index_col="barcode")
    spots.obs = spots.obs.join(array)
    return spots


@pytest.fixture(scope="module")
def painted():
    """A tissue of all compartments and its image."""
    tissue = simulate_tissue.grow_tissue(
        simulate_cohort.Composition(tumour=0.5, clone_b=0.5, immune=0.3, fat=0.15),
        rng=simulate_cohort.stream(3, "tissue"),
        **SIZE_UM,
    )
    bands = simulate_image.paint_slide(tissue, rng=simulate_cohort.stream(3, "image"))
    return tissue, np.concatenate(list(bands))


# Sheets and studies


def test_committed_sheets_are_the_default_output(tmp_path):
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    assert config["seed"] == 1
    cli.main(["--out", str(tmp_path)])
    for name in ("slides.tsv", "patients.tsv"):
        assert (tmp_path / name).read_bytes() == (ROOT / "config" / name).read_bytes()


def test_default_sheets_pass_the_study_checks():
    slides = read_slides(ROOT / "config" / "slides.tsv", made=lambda file: True)
    patients = read_patients(ROOT / "config" / "patients.tsv")
    sections = slides[slides["counts"] != ""]
    assert (len(sections), sections["patient"].nunique()) == (7, 6)
    assert sections["patient"].value_counts().tolist() == [2, 1, 1, 1, 1, 1]
    assert slides.loc[slides["cohort"] == "hospital", "patient"].nunique() == 24
    assert set(slides["patient"]) == set(patients["patient"])
    outcome = patients.loc[patients["patient"].str.startswith("H"), ["time", "event", "response"]]
    assert outcome.notna().all(axis=None)
    assert (outcome["time"] > 0).all()
    assert patients.loc[patients["patient"].str.startswith("P"), "time"].isna().all()


def test_another_seed_gives_other_patients(tmp_path):
    cli.main(["--out", str(tmp_path), "--seed", "2"])
    assert (tmp_path / "patients.tsv").read_bytes() != (
        ROOT / "config" / "patients.tsv"
    ).read_bytes()


def test_study_of_another_size_is_self_standing(tmp_path):
    folder = tmp_path / "load"
    cli.main(
        ["--study", str(folder), "--patients-with-spots", "12", "--sections", "20", "--seed", "4"]
        + ["--patients-without-spots", "120", "--section-rows", "78", "--section-cols", "64"]
    )
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["seed"] == 4
    assert config["study"] == "load"
    assert config["simulation"]["section_rows"] == 78
    assert config["simulation"]["slide_rows"] == 9
    assert config["folds"]["published_grid"] == [80, 64]
    slides = read_slides(folder / config["slides"], made=lambda file: True)
    assert (slides["counts"] != "").sum() == 20
    assert slides["patient"].nunique() == 132
    assert "H001-1" in slides.index


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sections", "3"], "3 sections cannot be shared out among 6 patients"),
        (["--depth", "10"], "use --study"),
    ],
)
def test_impossible_command_lines_are_refused(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        cli.main(["--out", str(tmp_path), *arguments])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["slide1", "P1", "../P01-1", "X01-1"])
def test_ids_of_other_studies_are_refused(name):
    with pytest.raises(InputError, match=r"python -m histogep\.simulate"):
        simulate_cohort.slide_composition(1, name)


# Patients


def test_a_patient_does_not_depend_on_the_size_of_the_study():
    few = simulate_cohort.simulate_patients(seed=5, n_with_spots=2, n_without_spots=20)
    many = simulate_cohort.simulate_patients(seed=5, n_with_spots=9, n_without_spots=60)
    shared = many[many["patient"].isin(few["patient"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(few, shared)


def test_patterns_of_infiltration_hold_as_many_immune_cells_and_make_the_response():
    cohort = simulate_cohort.simulate_patients(seed=11, n_with_spots=0, n_without_spots=1500)
    infiltrated = (cohort["pattern"] == "infiltrated").to_numpy(float)
    assert abs(infiltrated.mean() - 0.5) < 0.01
    others = cohort[["tumour", "clone_b", "immune", "fat", "age", "log_hazard"]]
    assert others.corrwith(pd.Series(infiltrated)).abs().max() < 0.05
    compositions = {
        pattern: [
            simulate_cohort.Composition(0.5, 0.5, immune, 0.1, pattern=pattern)
            for immune in (0.0, 0.3, 1.0)
        ]
        for pattern in simulate_cohort.INFILTRATED_SHARE
    }
    for excluded, within in zip(*compositions.values(), strict=True):
        assert excluded.infiltration < 0.5 * within.infiltration
        assert excluded.immune_area > within.immune_area > 0
        cells = [c.immune_area + c.tumour * c.infiltration for c in (excluded, within)]
        assert cells[0] == pytest.approx(cells[1]) == pytest.approx(excluded.immune_cells)

    standard = (cohort["immune"] - 0.5) * np.sqrt(12)
    x = np.column_stack([standard, 2 * infiltrated - 1])
    fitted = LogisticRegression(penalty=None).fit(x, cohort["response"]).coef_[0]
    assert fitted[0] == pytest.approx(simulate_cohort.LOG_ODDS_IMMUNE, abs=0.4)
    assert fitted[1] == pytest.approx(simulate_cohort.LOG_ODDS_INFILTRATED, abs=0.4)


def test_lifelines_recovers_the_outcome_model():
    from lifelines import CoxPHFitter

    cohort = simulate_cohort.simulate_patients(seed=11, n_with_spots=0, n_without_spots=1500)
    table = pd.DataFrame(
        {
            "time": cohort["time"],
            "event": cohort["event"],
            "clone_b": (cohort["clone_b"] - 0.5) / (0.92 / np.sqrt(12)),
            "age": (cohort["age"] - 61) / 11,
            "stage": cohort["stage"].map({"I": 0, "II": 1, "III": 2, "IV": 3}) / 0.99,
            "immune": cohort["immune"],
            "fat": cohort["fat"],
        }
    )
    model = CoxPHFitter().fit(table, "time", "event").summary
    for name, planted in simulate_cohort.LOG_HAZARD.items():
        assert abs(model.loc[name, "coef"] - planted) < 3.5 * model.loc[name, "se(coef)"]
    assert (model.loc[["immune", "fat"], "z"].abs() < 3).all()
    assert 0.7 < cohort["event"].mean() < 0.9


def test_effects_have_the_designed_size_over_seeds():
    from lifelines.utils import concordance_index
    from sklearn.metrics import roc_auc_score

    latent, clinical, response = [], [], []
    for seed in range(1, 13):
        cohort = simulate_cohort.simulate_patients(seed=seed).iloc[6:]
        bedside = cohort["age"] / 11 + cohort["stage"].map({"I": 0, "II": 1, "III": 2, "IV": 3})
        for found, risk in ((latent, cohort["log_hazard"]), (clinical, bedside)):
            found.append(concordance_index(cohort["time"], -risk, cohort["event"]))
        response.append(roc_auc_score(cohort["response"], cohort["log_odds"]))
    assert 0.80 < np.mean(latent) < 0.88
    assert 0.55 < np.mean(clinical) < 0.66
    assert 0.86 < np.mean(response) < 0.95


def test_compositions_are_even_and_nearly_uncorrelated():
    cohort = simulate_cohort.simulate_patients(seed=1).iloc[6:]
    latent = cohort[["clone_b", "immune", "fat", "tumour", "age"]]
    assert np.abs(np.corrcoef(latent.T) - np.eye(5)).max() < 0.3
    assert cohort["clone_b"].min() < 0.12
    assert cohort["clone_b"].max() > 0.88


# References


def test_positions_are_real(positions, shared_data):
    table = pd.read_csv(
        shared_data / "genepos" / "gencode_v38_gene_pos.txt",
        sep="\t",
        header=None,
        names=["gene", "chromosome", "start", "end"],
    ).drop_duplicates("gene")
    extra = simulate_genes.extra_positions()
    both = extra.merge(table, on="gene", suffixes=("", "_hg38"), how="left")
    assert both["chromosome_hg38"].tolist() == both["chromosome"].tolist()
    # Builds hg19 and GRCh38 differ by up to a few Mb.
    assert (both["start"] - both["start_hg38"]).abs().max() < 3.5e6
    hg38 = both[["chromosome_hg38", "start_hg38", "end_hg38"]]
    hg38.columns = ["chromosome", "start", "end"]
    assert (assign_arms(both) == assign_arms(hg38)).all()
    assert len(positions) > 9450
    assert positions["gene"].is_unique


def test_programmes_and_gene_sets_fit_together(positions, truth):
    known = set(positions["gene"])
    members = [gene for item in truth["programmes"].values() for gene in item["genes"]]
    assert len(members) == len(set(members))
    assert 150 <= len(members) <= 250
    assert set(members) <= known
    assert len(truth["irrelevant"]) >= 15
    relevant = set(truth["programmes"]["hazard"]["genes"] + truth["programmes"]["clone_a"]["genes"])
    relevant |= set(truth["programmes"]["response"]["genes"])
    relevant |= set(truth["programmes"]["tumour"]["genes"])
    for name in truth["irrelevant"]:
        assert len(set(truth["gene_sets"][name])) >= 15
        assert not relevant & set(truth["gene_sets"][name])
    lines = simulate_genes.format_gmt(truth).splitlines()
    assert [line.split("\t")[0] for line in lines] == list(truth["gene_sets"])
    assert lines[0].split("\t")[2:] == truth["gene_sets"]["PLANTED_HAZARD"]


def test_missing_planted_genes_are_named(positions):
    with pytest.raises(InputError, match="EPCAM"):
        simulate_genes.plant_truth(positions[positions["gene"] != "EPCAM"], seed=1)


# Tissue and image


def test_compartments_have_the_areas_asked_for(painted):
    tissue, _ = painted
    shares = tissue.shares()
    assert 0.6 < tissue.mask.mean() < 0.75
    assert abs(shares["clone_a"] - 0.25) < 0.02
    assert abs(shares["clone_b"] - 0.25) < 0.02
    assert abs(shares["fat"] - 0.15) < 0.02
    assert abs(shares["immune"] - (0.05 + 0.13 * 0.3)) < 0.02
    tumour = tissue.compartment <= simulate_tissue.CLONE_B
    tumour &= tissue.mask
    assert 0.7 < tissue.lymphocytes[tumour].mean() / (0.03 + 0.27 * 0.3) < 1.3
    assert not tissue.lymphocytes[~tumour].any()


def test_spot_shares_are_the_disc_means(painted):
    tissue, _ = painted
    x_um, y_um = np.array([500.0, 700.0, 4.0]), np.array([600.0, 500.0, 4.0])
    states = tissue.states(x_um, y_um)
    assert states.shape == (3, len(STATES))
    assert states[:2].sum(axis=1) == pytest.approx(1)
    assert states[2].sum() == 0
    grid_y, grid_x = np.indices(tissue.mask.shape) * simulate_tissue.GRID_UM + 4
    disc = np.hypot(grid_x - 500, grid_y - 600) < 27.5
    share = np.mean(tissue.compartment[disc] == simulate_tissue.STROMA)
    assert tissue.composition(x_um, y_um)[0, simulate_tissue.STROMA] == pytest.approx(
        share, abs=0.1
    )


def test_nuclei_differ_between_compartments(painted):
    """Segment the dark blue blobs with no knowledge of how they were painted."""
    from skimage.filters import threshold_otsu
    from skimage.measure import label, regionprops_table

    tissue, image = painted
    # Eosin hardly absorbs red light, so what is dark in red is nuclei.
    red = ndimage.gaussian_filter(image[..., 0], 1)
    dark = red < threshold_otsu(red)
    blobs = pd.DataFrame(
        regionprops_table(
            label(ndimage.binary_opening(dark, iterations=2)),
            properties=("area", "centroid", "eccentricity"),
        )
    )
    blobs = blobs[blobs["area"] > 30]
    row, col = (blobs[f"centroid-{axis}"].astype(int) // 16 for axis in (0, 1))
    deep = np.stack(
        [ndimage.binary_erosion(tissue.compartment == k, iterations=4) for k in range(5)]
    )
    kind = deep[:, row, col]
    area_um2 = [(blobs["area"] * simulate_image.MPP**2)[k].median() for k in kind]
    eccentricity = [blobs["eccentricity"][k].median() for k in kind]
    per_mm2 = kind.sum(axis=1) / (deep.sum(axis=(1, 2)) * (simulate_tissue.GRID_UM / 1000) ** 2)
    a, b, stroma, immune, fat = range(5)
    assert area_um2[b] > 1.4 * area_um2[a] > 1.4 * area_um2[immune]
    assert eccentricity[stroma] > 0.9 > eccentricity[a] + 0.1
    assert per_mm2[immune] > 1.5 * per_mm2[a] > 3 * per_mm2[stroma]
    assert per_mm2[fat] < 0.4 * per_mm2[a]


def test_colours_are_those_of_a_stained_slide(painted):
    tissue, image = painted
    small = image[8::16, 8::16][: tissue.mask.shape[0], : tissue.mask.shape[1]].astype(float)
    where = tissue.compartment[: small.shape[0], : small.shape[1]]
    glass = small[ndimage.binary_erosion(where < 0, iterations=3)]
    assert (glass.mean(axis=0) > 235).all()
    assert 0.3 < glass.std(axis=0).mean() < 6
    stroma = small[where == simulate_tissue.STROMA].mean(axis=0)
    assert stroma[0] > stroma[2] > stroma[1] + 20
    assert np.median(small[where == simulate_tissue.FAT]) > 220


def test_painting_in_bands_leaves_no_seam(painted, monkeypatch):
    tissue, image = painted
    monkeypatch.setattr(simulate_image, "BAND_PX", 768)
    bands = list(simulate_image.paint_slide(tissue, rng=simulate_cohort.stream(3, "image")))
    assert max(len(band) for band in bands) == 768
    np.testing.assert_array_equal(np.concatenate(bands), image)


# Sections


def test_space_ranger_folder_is_consistent(counts, section):
    folder = section / "P01-1" / "spatial"
    array = pd.read_csv(folder / "tissue_positions.csv")
    assert list(array.columns) == [
        "barcode",
        "in_tissue",
        "array_row",
        "array_col",
        "pxl_row_in_fullres",
        "pxl_col_in_fullres",
    ]
    assert len(array) == 400
    assert array["barcode"].str.fullmatch("[ACGT]{16}-1").all()
    assert array["barcode"].is_unique
    assert ((array["array_row"] + array["array_col"]) % 2 == 0).all()
    assert set(array.loc[array["in_tissue"] == 1, "barcode"]) == set(counts.obs_names)
    assert 0.55 < array["in_tissue"].mean() < 0.85
    near = array[(array["array_row"] == 3)].sort_values("array_col")
    assert np.diff(near["pxl_col_in_fullres"]) == pytest.approx(200)
    rows = array.groupby("array_row")["pxl_row_in_fullres"].first()
    assert np.diff(rows) == pytest.approx(173.205, abs=0.01)
    scales = json.loads((folder / "scalefactors_json.json").read_text())
    assert scales["spot_diameter_fullres"] == 110
    slide = openslide.OpenSlide(str(section / "P01-1.tiff"))
    import matplotlib.image

    hires = matplotlib.image.imread(folder / "tissue_hires_image.png")
    assert max(hires.shape) == 600
    assert scales["tissue_hires_scalef"] * slide.dimensions[0] == pytest.approx(600, abs=1)


def test_slide_states_its_pixel_size_and_has_levels(section):
    slide = openslide.OpenSlide(str(section / "P01-1.tiff"))
    assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5, rel=1e-6)
    assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5, rel=1e-6)
    assert slide.level_count >= 4


def test_in_tissue_spots_lie_on_tissue(counts, section):
    slide = openslide.OpenSlide(str(section / "P01-1.tiff"))
    image = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    array = pd.read_csv(section / "P01-1" / "spatial" / "tissue_positions.csv")
    not_fat = array.merge(counts.obs[["compartment"]], left_on="barcode", right_index=True)
    not_fat = not_fat[not_fat["compartment"] != "fat"]
    x, y = (array[f"pxl_{axis}_in_fullres"].astype(int) for axis in ("col", "row"))
    pink = pd.Series(ndimage.uniform_filter(image.min(axis=2), 56)[y, x] < 222, array["barcode"])
    assert pink[not_fat["barcode"]].mean() > 0.95
    outside = array.loc[array["in_tissue"] == 0, "barcode"]
    assert pink[outside].mean() < 0.35


def test_depth_and_tail_are_realistic(counts):
    total = np.asarray(counts.X.sum(axis=1)).ravel()
    assert 6000 < total.mean() < 10500
    assert total.min() > 500
    mean = np.sort(np.asarray(counts.X.mean(axis=0)).ravel())[::-1]
    assert mean[: len(mean) // 10].sum() / mean.sum() > 0.4
    assert mean[0] / mean.sum() < 0.02
    # More spread than Poisson counts of the same mean have.
    pure = counts[counts.obs["compartment"] == "stroma"].X.toarray()
    scaled = pure / pure.sum(axis=1, keepdims=True) * pure.sum(axis=1).mean()
    top = scaled.mean(axis=0) > 5
    assert np.median(scaled.var(axis=0)[top] / scaled.mean(axis=0)[top]) > 1.2


def test_planted_arms_show_in_the_counts(counts, positions, truth):
    arm = pd.Series(assign_arms(positions), positions["gene"])[counts.var_names].to_numpy()
    scaled = counts.X.toarray() / np.asarray(counts.X.sum(axis=1))
    planted = {gene for item in truth["programmes"].values() for gene in item["genes"]}
    ordinary = ~counts.var_names.isin(list(planted))
    other = scaled[counts.obs["compartment"].isin(["stroma", "immune", "fat"])]
    arms = {arm for clone in truth["arms"].values() for arm in clone} | {"2q", "12q"}
    for clone, factors in truth["arms"].items():
        pure = counts.obs[f"share_clone_{clone.lower()}"] > 0.7
        assert pure.sum() > 10
        own = scaled[pure.to_numpy()]
        ratio = {
            name: np.log2(
                own[:, ordinary & (arm == name)].sum(axis=1).mean()
                / other[:, ordinary & (arm == name)].sum(axis=1).mean()
            )
            for name in arms
        }
        neutral = np.median([ratio[name] for name in arms if name not in factors])
        for name in arms:
            shift = ratio[name] - neutral
            factor = factors.get(name, 1.0)
            if factor == 1.0:
                assert abs(shift) < 0.25, (clone, name)
            else:
                assert np.sign(shift) == np.sign(np.log2(factor)), (clone, name)
                assert abs(shift) > 0.3, (clone, name)


def test_infercnvpy_finds_the_planted_clones(counts, positions):
    import infercnvpy
    import scanpy as sc
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import adjusted_rand_score

    spots = counts.copy()
    sc.pp.normalize_total(spots, target_sum=1e4)
    sc.pp.log1p(spots)
    place = positions.set_index("gene").loc[spots.var_names]
    for column in ("chromosome", "start", "end"):
        spots.var[column] = place[column].to_numpy()
    tumour = (spots.obs["clone"].fillna("") != "").to_numpy()
    spots.obs["kind"] = np.where(tumour, "tumour", "reference")
    infercnvpy.tl.infercnv(
        spots,
        reference_key="kind",
        reference_cat="reference",
        window_size=101,
        step=10,
        chunksize=spots.n_obs,
        n_jobs=1,
    )
    profiles = PCA(10, random_state=0).fit_transform(spots.obsm["X_cnv"].toarray()[tumour])
    found = KMeans(2, n_init=5, random_state=0).fit_predict(profiles)
    assert adjusted_rand_score(spots.obs["clone"][tumour], found) >= 0.8


def test_programmes_follow_their_tissue(counts):
    scaled = counts.X.toarray() / np.asarray(counts.X.sum(axis=1)) * 1e4
    level = pd.DataFrame(np.log1p(scaled), counts.obs_names, counts.var_names)
    compartment = counts.obs["compartment"]
    highest = {
        "EPCAM": {"clone_a", "clone_b"},
        "MKI67": {"clone_b"},
        "ESR1": {"clone_a"},
        "COL1A1": {"stroma"},
        "CD3D": {"immune"},
        "PRF1": {"immune"},
        "MS4A1": {"immune"},
        "ADIPOQ": {"fat"},
        "PECAM1": {"stroma"},
    }
    for gene, expected in highest.items():
        assert level[gene].groupby(compartment).mean().idxmax() in expected, gene


def test_annotation_agrees_with_the_truth(counts, section):
    label = pd.read_csv(section / "P01-1" / "annotation.tsv", sep="\t", index_col="barcode")
    label = label["label"].reindex(counts.obs_names)
    assert label.notna().all()
    tumour = counts.obs["share_clone_a"] + counts.obs["share_clone_b"]
    assert tumour[label == "invasive cancer"].min() > 0.25
    assert tumour[label == "connective tissue"].max() < 0.5
    assert (label == "undetermined").mean() < 0.1


def test_expression_ignores_the_order_in_the_file(positions, truth, references):
    again = Expression.from_truth(positions, read_json(references["truth"]))
    np.testing.assert_array_equal(again.profiles, Expression.from_truth(positions, truth).profiles)


# Jobs


def test_reference_job(run_script, tmp_path):
    output = {
        "gene_positions": tmp_path / "gene_positions.tsv",
        "gene_sets": tmp_path / "gene_sets.gmt",
        "truth": tmp_path / "truth.json",
    }
    run_script(
        "simulate_references.py",
        input={},
        output=output,
        params={"simulation": SMALL, "seed": 1},
    )
    table = read_gene_positions(output["gene_positions"])
    truth = read_json(output["truth"])
    assert len(table) > 9450
    assert truth["outcome"]["log_hazard_per_sd"] == simulate_cohort.LOG_HAZARD
    assert len(output["gene_sets"].read_text().splitlines()) == len(truth["gene_sets"])


def _params(seed, slide):
    composition = simulate_cohort.slide_composition(seed, slide).to_settings()
    return {"simulation": SMALL, "seed": seed, "composition": composition}


def test_section_job_gives_the_same_bytes_twice(run_script, tmp_path, references):
    written = []
    for name in ("first", "second"):
        output = _section_outputs(tmp_path / name, "P02-1")
        run_script(
            "simulate_section.py",
            input=references,
            output=output,
            params=_params(1, "P02-1"),
            wildcards={"slide": "P02-1"},
        )
        written.append({key: path.read_bytes() for key, path in output.items()})
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["P02-1", "P02-1.tiff"]
    assert written[0].keys() == written[1].keys()
    assert [key for key in written[0] if written[0][key] != written[1][key]] == []


def test_slide_jobs_do_not_import_scipy_stats():
    """Half a second in each of thousands of short jobs."""
    program = "import sys, histogep.simulate.files; print('scipy.stats' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


def test_slide_job_gives_the_same_bytes_twice(run_script, tmp_path):
    written = []
    for name, slide, seed in (("a", "H03-1", 1), ("b", "H03-1", 1), ("c", "H03-1", 2)):
        output = {
            "image": tmp_path / name / f"{slide}.tiff",
            "truth": tmp_path / name / f"{slide}.truth.json",
        }
        run_script(
            "simulate_slide.py",
            input={},
            output=output,
            params=_params(seed, slide),
            wildcards={"slide": slide},
        )
        written.append([path.read_bytes() for path in output.values()])
    assert written[0] == written[1]
    assert written[0] != written[2]
    shares = json.loads(written[0][1])["shares"]
    design = simulate_cohort.slide_composition(1, "H03-1")
    assert shares["clone_a"] + shares["clone_b"] == pytest.approx(design.tumour, abs=0.03)
