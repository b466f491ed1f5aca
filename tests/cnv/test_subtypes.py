from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from histogep.cnv.clones import call_arms, call_clones, join_clones, measure_distances
from histogep.cnv.cohort import SlideProfile, read_profile
from histogep.cnv.controls import COLUMNS, compare_arms, name_result, run_controls
from histogep.cnv.profiles import compare_genes
from histogep.cnv.reference import join_labels, tile_labels
from histogep.cnv.slide import MARKER_COLUMNS, profile_slide, write_profile
from histogep.cnv.subtypes import SUBTYPE_COLUMNS, subtype_cohort
from histogep.errors import InputError
from histogep.inputs.genome import assign_arms, order_arms
from histogep.lattice import Lattice
from histogep.report.figures.cnv import profile_figure, subtype_figure, subtype_maps

CLONE_A = {"1q": 1.5, "16q": 0.5, "8q": 1.5, "17p": 0.5}
CLONE_B = {"1q": 1.5, "16q": 0.5, "3p": 0.5, "20q": 1.5, "7p": 1.5}
LATTICE = Lattice("visium")
N_ROWS, N_COLS = 18, 13


@pytest.fixture(scope="module")
def genome():
    """Return 4,000 genes along chromosomes 1 to 22."""
    ends = [249, 242, 198, 190, 181, 171, 159, 145, 138, 134, 135]
    ends += [133, 114, 107, 102, 90, 83, 80, 59, 64, 47, 51]
    rows = []
    for number, end in enumerate(ends, start=1):
        places = np.linspace(20 if number in (13, 14, 15, 21, 22) else 1, end, end * 4000 // 2872)
        rows += [(f"g{number}_{i}", f"chr{number}", int(p * 1e6)) for i, p in enumerate(places)]
    table = pd.DataFrame(rows, columns=["gene", "chromosome", "start"])
    return table.assign(end=table["start"] + 1000)


def simulate(genome, *, clones=(CLONE_A, CLONE_B), seed=1, programme=0.5):
    """Return log1p CP10k of a section of 234 spots, half of them tumour, and the clone of each."""
    rng = np.random.default_rng(seed)
    arm, n = assign_arms(genome), len(genome)
    base = rng.lognormal(0, 1.2, n)
    stroma = base * np.exp(rng.normal(0, programme, n) * (rng.random(n) < 0.25))
    tumour = base * np.exp(rng.normal(0, programme, n) * (rng.random(n) < 0.25))
    profiles = [tumour * [clone.get(a, 1.0) for a in arm] for clone in clones]
    row, col = np.divmod(np.arange(N_ROWS * N_COLS), N_COLS)
    # The tumour is the lower half; its clones lie side by side.
    truth = np.where(row < N_ROWS // 2, -1, col * len(clones) // N_COLS)
    purity = rng.uniform(0.5, 0.95, len(row))
    values = np.empty((len(row), n))
    for spot, clone in enumerate(truth):
        mean = stroma / stroma.sum()
        if clone >= 0:
            own = profiles[clone] / profiles[clone].sum()
            mean = purity[spot] * own + (1 - purity[spot]) * mean
        mean = mean * rng.gamma(10, 0.1, n) * 8000 * np.exp(rng.normal(0, 0.25))
        values[spot] = rng.poisson(mean)
    values = np.log1p(values / values.sum(axis=1, keepdims=True) * 1e4)
    return sparse.csr_matrix(values.astype(np.float32)), truth, row, col


def _profiles(genome, section):
    values, truth, _, _ = section
    return compare_genes(values, genome, truth < 0, genes=list(genome["gene"]))


@pytest.fixture(scope="module")
def section(genome):
    return simulate(genome)


@pytest.fixture(scope="module")
def called(genome, section):
    profiles = _profiles(genome, section)
    neighbours = LATTICE.neighbours(section[2], section[3])
    clones = call_clones(profiles, section[1] >= 0, neighbours=neighbours)
    return profiles, clones, call_arms(profiles, clones.labels, neighbours=neighbours)


def test_planted_clones_are_found(section, called):
    tumour = section[1] >= 0
    _, clones, _ = called
    assert clones.names == ["0", "1"]
    assert adjusted_rand_score(section[1][tumour], clones.labels[tumour]) >= 0.8
    assert set(clones.labels[~tumour]) == {"reference"}
    chosen = clones.table.set_index("chosen").loc[True]
    assert chosen["n_clones"] == 2
    assert 0.02 <= chosen["resolution"] <= 2


def test_planted_arms_are_called_with_the_right_sign(section, called):
    _, clones, arms = called
    for clone in clones.names:
        own = pd.Series(section[1][clones.labels == clone]).mode()[0]
        planted = (CLONE_A, CLONE_B)[own]
        calls = arms[arms["clone"] == clone].set_index("arm")["call"]
        for arm, factor in planted.items():
            assert calls[arm] == ("gain" if factor > 1 else "loss"), arm
        others = calls.drop(index=list(planted))
        assert (others != "neutral").sum() <= 1


@pytest.mark.parametrize("clones", [(CLONE_A,), ({},)])
def test_one_clone_stays_one(genome, clones):
    section = simulate(genome, clones=clones, seed=4, programme=1.0)
    profiles = _profiles(genome, section)
    neighbours = LATTICE.neighbours(section[2], section[3])
    found = call_clones(profiles, section[1] >= 0, neighbours=neighbours)
    assert found.names == ["0"]
    arms = call_arms(profiles, found.labels, neighbours=neighbours)
    wrong = arms[~arms["arm"].isin(list(clones[0])) & (arms["call"] != "neutral")]
    assert len(wrong) <= 1


def test_shuffled_positions_destroy_the_clones(genome, section):
    shuffled = genome.assign(gene=np.random.default_rng(0).permutation(genome["gene"]))
    values, truth, row, col = section
    profiles = compare_genes(values, shuffled, truth < 0, genes=list(genome["gene"]))
    clones = call_clones(profiles, truth >= 0, neighbours=LATTICE.neighbours(row, col))
    assert clones.names == ["0"]
    controls = run_controls(profiles, clones.labels).set_index("control")
    assert controls.loc["whole arms, tumour", "verdict"] == "fail"
    assert (call_arms(profiles, clones.labels)["call"] == "neutral").mean() > 0.95


def test_controls_pass_on_planted_copy_number(called):
    profiles, clones, _ = called
    controls = run_controls(profiles, clones.labels, permutations=99).set_index("control")
    assert (controls["verdict"] == "pass").all()
    order = controls.loc["whole arms, clones"]
    assert order["value"] > order["null_q95"]
    few = run_controls(profiles, clones.labels, guard_genes=5000, permutations=19)
    assert few.set_index("control").loc["genes", "verdict"] == "fail"
    assert name_result(few, measured=False) == "expression subtype"
    assert name_result(few, measured=True) == "CNV"
    assert name_result(few, measured=True, ranked=True) == "expression subtype"
    assert name_result(controls.reset_index(), measured=False) == "CNV"


def test_markers_of_clones_lie_where_the_clones_differ(genome, section, called):
    result, _, markers = _slide(genome, section)
    assert list(markers.columns) == MARKER_COLUMNS
    clones = result.obs["clone"].to_numpy(object)
    assert set(markers["clone"]) == {"0", "1"} == set(clones) - {"reference"}
    assert set(markers["name"]) == {"CNV"}
    for clone, table in markers.groupby("clone"):
        assert len(table) == 50
        assert table["n_in"].iloc[0] == (clones == clone).sum()
        planted = pd.Series(section[1])[clones == clone].mode()[0]
        own, other = ((CLONE_A, CLONE_B), (CLONE_B, CLONE_A))[planted]
        higher = [a for a in {*own, *other} if own.get(a, 1) > other.get(a, 1)]
        # These arms hold 4 to 10 % of the genes.
        assert table["arm"].head(20).isin(higher).mean() > 0.9
        assert table["arm"].isin(higher).mean() > 0.6
    found = result.uns["heterogeneity"]
    assert found["n_places"] == (section[1] >= 0).sum()


def test_shuffled_labels_fail_their_control(called):
    profiles, _, _ = called
    rng = np.random.default_rng(5)
    mixed = profiles.reference.copy()
    mixed[:] = rng.permutation(mixed)
    from dataclasses import replace

    labels = np.where(mixed, "reference", "0").astype(object)
    controls = run_controls(replace(profiles, reference=mixed), labels, permutations=199)
    assert controls.set_index("control").loc["labels shuffled", "verdict"] == "fail"


def test_a_prediction_without_place_on_the_genome_is_no_copy_number(genome):
    # Low rank, as a ridge on few components gives: gene loadings know nothing of positions.
    rng = np.random.default_rng(2)
    _, truth, row, col = simulate(genome, seed=2)
    factors = rng.normal(size=(len(truth), 8)) + (truth >= 0)[:, np.newaxis]
    values = np.maximum(1 + 0.1 * factors @ rng.normal(size=(8, len(genome))), 0)
    result, arms, markers = _slide(
        genome, (values.astype(np.float32), truth, row, col), measured=False
    )
    assert result.uns["name"] == "expression subtype"
    assert result.uns["refused"] == ""
    verdict = result.uns["controls"].set_index("control")["verdict"]
    assert verdict["whole arms, tumour"] == "fail"
    assert verdict["labels shuffled"] == "pass"
    assert "expression subtype" in _text(profile_figure(result, arms))
    assert "clone" not in _text(profile_figure(result, arms)).lower()
    assert set(arms["name"]) == {"expression subtype"}
    assert "group" in arms
    assert "group" in markers
    assert not {"clone", "gain", "loss"} & {*arms.columns, *arms["call"], *markers.columns}


def test_agreement_over_arms_is_told_from_agreement_of_genes(genome):
    rng = np.random.default_rng(0)
    arm = assign_arms(genome)
    altered = np.array([{"1q": 0.3, "8q": 0.3, "3p": -0.3, "16q": -0.3}.get(a, 0.0) for a in arm])
    programme = rng.normal(0, 0.4, len(genome))
    noise = rng.normal(0, 0.1, (2, len(genome)))
    both, table = compare_arms(altered + programme + noise[0], altered + programme, arm)
    assert both["r"] > 0.95
    assert max(both["p_arms"], both["p_genes"]) < 0.02
    assert list(table["arm"]) == order_arms(arm)
    largest = table.set_index("arm")["measured"].abs().nlargest(4).index
    assert set(largest) == {"1q", "8q", "3p", "16q"}
    # The same programme without copy number: arms agree, and random sets of genes do as well.
    programme_only, _ = compare_arms(programme + noise[0], programme + noise[1], arm)
    assert programme_only["r"] > 0.8
    assert programme_only["p_arms"] < 0.02
    assert programme_only["p_genes"] > 0.05
    nothing, _ = compare_arms(noise[0], noise[1], arm)
    assert nothing["p_arms"] > 0.02
    assert abs(nothing["null_arms_mean"]) < 0.1


@pytest.mark.parametrize("what", ["few arms", "constant"])
def test_agreement_is_undefined_without_arms_or_variation(genome, what):
    arm = assign_arms(genome)
    values = np.random.default_rng(0).normal(size=len(arm))
    keep = np.isin(arm, ["1p", "1q", "2p"]) | (what == "constant")
    other = np.zeros(len(arm)) if what == "constant" else values
    found, table = compare_arms(values[keep], other[keep], arm[keep])
    assert np.isnan([found["r"], found["p_arms"], found["null_genes_q95"]]).all()
    assert found["n_arms"] == len(table)


def _slide(genome, section, *, slide="s1", measured=True, labels=None, positions=None):
    values, truth, row, col = section
    obs = pd.DataFrame({"row": row, "col": col}, index=[f"{slide}-{i}" for i in range(len(row))])
    if labels is None:
        labels = np.where(truth >= 0, "malignant", "non-malignant")
    return profile_slide(
        values,
        genome if positions is None else positions,
        slide=slide,
        labels=labels,
        obs=obs,
        lattice=LATTICE,
        settings={},
        measured=measured,
        genes=list(genome["gene"]),
    )


def _text(fig):
    texts = [text.get_text() for text in fig.texts]
    for axes in fig.axes:
        texts += [axes.get_title(loc="left"), *(text.get_text() for text in axes.texts)]
    return " ".join(texts)


@pytest.fixture(scope="module")
def cohort(genome, tmp_path_factory):
    """Return five slides of four patients: two kinds of tumour, and one without reference."""
    folder = tmp_path_factory.mktemp("cnv")
    other = {"5q": 0.5, "13q": 1.5, "10q": 0.5}
    planted = {"s1": (CLONE_B,), "s2": (CLONE_B,), "s3": (other,), "s4": (other,), "s5": None}
    patients = {"s1": "p1", "s2": "p1", "s3": "p2", "s4": "p3", "s5": "p4"}
    profiles = []
    for seed, (slide, clones) in enumerate(planted.items()):
        section = simulate(genome, clones=clones or ({},), seed=seed)
        labels = None if clones else np.full(len(section[1]), "malignant", dtype=object)
        result, _, _ = _slide(genome, section, slide=slide, measured=False, labels=labels)
        write_profile(result, folder / f"{slide}.h5ad")
        profiles.append(
            read_profile(folder / f"{slide}.h5ad", slide=slide, patient=patients[slide])
        )
    return profiles


def test_subtypes_of_a_cohort(cohort, genome):
    subtypes = subtype_cohort(cohort)
    kinds = subtypes.spots.groupby("slide")["subtype"].agg(lambda names: names.mode()[0])
    assert kinds["s1"] == kinds["s2"]
    assert kinds["s3"] == kinds["s4"]
    assert kinds["s1"] != kinds["s3"]
    assert "s5" not in kinds
    patients = subtypes.patients.set_index("patient")
    assert list(patients.index) == ["p1", "p2", "p3", "p4"]
    assert patients.loc["p1", "n_tumour_spots"] == N_ROWS * N_COLS
    shares = patients.filter(like="share_")
    np.testing.assert_allclose(shares.loc[["p1", "p2", "p3"]].sum(axis=1), 1)
    assert shares.loc["p4"].isna().all()
    assert patients.loc["p4", "n_tumour_spots"] == 0
    assert (patients["cnv_burden"].drop("p4") > 0).all()
    # Two slides of a patient are averaged.
    mean = np.mean([cohort[i].heterogeneity["ithgex"] for i in (0, 1)])
    assert patients.loc["p1", "ithgex"] == pytest.approx(mean)
    assert (patients[["ithcna", "ithgex"]].drop("p4") > 0).all(axis=None)
    assert patients.loc["p4", ["ithcna", "ithgex"]].isna().all()
    # Genes that tell the subtypes apart lie where the copy number does (the rest of the genome
    # differs too: each tumour was drawn with its own expression programme).
    markers = subtypes.markers
    assert set(markers["subtype"]) == set(kinds)
    planted = [*CLONE_B, "5q", "13q", "10q"]
    assert (
        markers["arm"].isin(planted).mean() > 0.6 > 2 * np.isin(assign_arms(genome), planted).mean()
    )
    assert (markers[["score", "difference", "log2_fold_change"]] > 0).all(axis=None)
    assert (markers["auroc"] > 0.5).all()
    assert (markers["p_adjusted"] >= markers["p"]).all()
    assert list(markers.columns[:4]) == ["subtype", "gene", "arm", "score"]
    assert (markers["n_in"] + markers["n_out"] == len(subtypes.clones)).all()
    # Gained here or lost there, and not the other way round.
    for slide, up, down in (
        ("s1", ["1q", "20q", "7p", "5q", "10q"], ["13q", "3p", "16q"]),
        ("s3", ["13q", "3p", "16q"], ["1q", "20q", "7p", "5q", "10q"]),
    ):
        arms = markers.loc[markers["subtype"] == kinds[slide], "arm"]
        assert arms.isin(up).sum() > 20
        assert not arms.isin(down).any()
    refused = subtypes.controls[subtypes.controls["slide"] == "s5"].iloc[0]
    assert refused["verdict"] == "fail"
    assert "none is a reference" in refused["note"]
    assert "s1 clone 0" in " ".join(
        label.get_text() for label in subtype_figure(subtypes, cohort="c").axes[0].get_yticklabels()
    )


def test_only_slides_that_describe_their_patient_are_in_its_row(cohort):
    """A frozen section or normal tissue beside the diagnostic slide is nobody's tumour."""
    one, two, other, last, _ = cohort
    diagnostic = replace(one, slide="TCGA-AA-0001-01Z-00-DX1", patient="TCGA-AA-0001")
    rest = [replace(p, patient=p.slide) for p in (other, last)]
    alone = subtype_cohort([diagnostic, *rest]).patients.set_index("patient").loc["TCGA-AA-0001"]
    for slide in ("TCGA-AA-0001-11A-01-TS1", "TCGA-AA-0001-01A-01-TS1"):
        beside = replace(two, slide=slide, patient="TCGA-AA-0001")
        found = subtype_cohort([diagnostic, beside, *rest])
        assert slide in set(found.spots["slide"])
        row = found.patients.set_index("patient").loc["TCGA-AA-0001"]
        columns = ["n_tumour_spots", "cnv_burden", "ithcna", "ithgex", "name"]
        pd.testing.assert_series_equal(row[columns], alone[columns])
    metastasis = replace(one, slide="TCGA-AA-0002-06A-00-DX1", patient="TCGA-AA-0002")
    counted = [
        subtype_cohort([metastasis, *rest], sample_types=types).patients.set_index("patient")
        for types in (("01",), ("06",))
    ]
    assert [table.loc["TCGA-AA-0002", "n_tumour_spots"] > 0 for table in counted] == [False, True]


def test_measured_and_predicted_slides_of_a_patient_are_not_averaged(cohort):
    one, two, other, last, _ = cohort
    rest = [replace(p, patient=p.slide) for p in (other, last)]
    measured = replace(two, measured=True, name="CNV")
    alone = subtype_cohort([one, *rest]).patients.set_index("patient").loc["p1"]
    both = subtype_cohort([one, measured, *rest]).patients.set_index("patient").loc["p1"]
    columns = ["n_tumour_spots", "cnv_burden", "ithcna", "ithgex"]
    pd.testing.assert_series_equal(both[columns], alone[columns])


def test_a_barcode_in_the_slide_sheet_is_its_patient(genome, section, tmp_path):
    """The table of patients goes by the patient's part, and would find no profile."""
    result, _, _ = _slide(genome, section)
    write_profile(result, tmp_path / "s1.h5ad")
    profile = read_profile(tmp_path / "s1.h5ad", slide="s1", patient="TCGA-3C-AALI-01Z-00-DX1")
    assert profile.patient == "TCGA-3C-AALI"


def test_spots_lie_on_their_places_in_the_colours_of_their_subtypes(cohort):
    subtypes = subtype_cohort(cohort)
    fig = subtype_maps(subtypes, cohort, cohort="c")
    legend = {
        text.get_text(): patch.get_facecolor()
        for text, patch in zip(fig.legends[0].texts, fig.legends[0].get_patches(), strict=True)
    }
    assert list(legend) == ["S1", "S2", "reference", "unassigned"]
    assert len(set(legend.values())) == 4
    assert [axes.get_title(loc="left") for axes in fig.axes][:2] == ["s1 (p1)", "s2 (p1)"]
    assert "no profile" in fig.axes[4].get_title(loc="left")
    own = subtypes.spots.set_index(["slide", "spot"])["subtype"]
    for axes, profile in zip(fig.axes, cohort, strict=True):
        (dots,) = axes.collections
        spots = profile.spots
        kind = [
            own.get((profile.slide, spot), "reference" if reference else "unassigned")
            for spot, reference in zip(spots.index, spots["reference"], strict=True)
        ]
        np.testing.assert_allclose(dots.get_facecolors(), [legend[name] for name in kind])
        row, col = np.divmod(np.arange(N_ROWS * N_COLS), N_COLS)
        np.testing.assert_allclose(dots.get_offsets().T, LATTICE.centres_um(row, col))
    many = subtype_maps(subtypes, cohort * 13, cohort="c")
    assert len(many.axes) == 60
    assert "60 of 65 slides" in many.get_suptitle()


def test_the_number_of_subtypes_is_the_most_stable_one(tmp_path):
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(3, 40))
    profiles = []
    for i in range(9):
        values = kinds[i % 3] + rng.normal(0, 0.15, 40)
        clone = pd.DataFrame([values], index=["0"], columns=order_arms(_arms())[:40])
        spots = pd.DataFrame({"clone": "0", "cnv_score": 1.0, "reference": False}, index=["a", "b"])
        genes = pd.DataFrame(rng.normal(size=(1, 5)), index=["0"], columns=list("abcde"))
        arms = pd.Series("1p", index=genes.columns)
        profiles.append(
            SlideProfile(
                *(f"s{i}", f"p{i}", True, "CNV", "", "labels"),
                spots=spots,
                clones=clone,
                genes=genes,
                gene_arms=arms,
                gene_levels=pd.Series(1.0, index=genes.columns),
                heterogeneity={"ithcna": 0.1, "ithgex": 0.2, "n_places": 2.0},
                controls=pd.DataFrame(columns=list(COLUMNS)),
                pitch_um=100.0,
            )
        )
    subtypes = subtype_cohort(profiles)
    found = subtypes.spots.drop_duplicates("slide").set_index("slide")["subtype"]
    assert adjusted_rand_score([i % 3 for i in range(9)], [found[f"s{i}"] for i in range(9)]) == 1
    row = subtypes.controls.set_index("control").loc["subtypes, stability"]
    assert row["value"] == 1
    assert "3: 1.00" in row["note"]
    assert "3 kept" in row["note"]


def _arms():
    return [f"{number}{side}" for number in range(1, 23) for side in "pq"]


def test_distances_and_tree_of_clones(called, section):
    distances = pd.DataFrame(
        [[0, 4, 6], [4, 0, 2], [6, 2, 0]], index=["reference", "0", "1"], dtype=float
    )
    assert join_clones(distances) == "(reference:2.5,(0:1,1:1):1.5);"
    assert join_clones(distances.iloc[:1, :1]) == "reference;"
    profiles, clones, _ = called
    found = measure_distances(profiles, clones.labels)
    assert list(found.index) == ["reference", "0", "1"]
    np.testing.assert_allclose(found, found.T)
    means = [profiles.bins[clones.labels == name].mean(axis=0) for name in ("0", "1")]
    weights = profiles.bin_table["n_genes"]
    expected = np.sqrt(np.average((means[0] - means[1]) ** 2, weights=weights))
    assert found.loc["0", "1"] == pytest.approx(expected, rel=1e-5)


def test_like_tumours_are_one_subtype(genome, tmp_path):
    profiles = []
    for seed in range(4):
        slide = f"s{seed}"
        section = simulate(genome, clones=(CLONE_A,), seed=20 + seed)
        result, _, _ = _slide(genome, section, slide=slide, measured=False)
        write_profile(result, tmp_path / f"{slide}.h5ad")
        profiles.append(read_profile(tmp_path / f"{slide}.h5ad", slide=slide, patient=slide))
    subtypes = subtype_cohort(profiles)
    assert set(subtypes.spots["subtype"]) == {"S1"}
    # Four patients with one profile: that is what a model gives that knows a single tumour.
    control = subtypes.controls.set_index("control").loc["same predicted profile in all patients"]
    assert control["value"] > 0.9
    assert control["verdict"] == "fail"
    # So nothing of it is called copy number, though each slide passes its own controls.
    assert {profile.name for profile in profiles} == {"CNV"}
    assert subtypes.name == "expression subtype"
    for table in (subtypes.spots, subtypes.patients):
        assert set(table["name"]) == {"expression subtype"}
    assert subtypes.patients["expression_burden"].notna().all()
    assert not {"cnv_burden", "ithcna"} & set(subtypes.patients)
    assert subtypes.patients["ithprofile"].notna().all()
    slides = subtypes.controls[subtypes.controls["slide"] != "cohort"]
    assert set(slides["name"]) == {"expression subtype"}


@pytest.mark.parametrize(
    ("noise", "patients", "verdict"),
    [(0.4, 2, "fail"), (0.4, 6, "fail"), (3.0, 6, "pass"), (0.4, 1, None)],
)
def test_two_patients_are_enough_to_see_one_profile_in_all(noise, patients, verdict):
    from histogep.cnv.subtypes import _imprint

    # At a noise of .4 the profiles correlate by .8 and more, and not by .9.
    rng = np.random.default_rng(5)
    shared = np.repeat([-1, 1], 20)
    values = pd.DataFrame(shared + rng.normal(0, noise, (patients, 40)))
    clones = pd.DataFrame({"patient": range(patients), "measured": False})
    found = _imprint(values, clones)["verdict"].tolist()
    assert found == ([] if verdict is None else [verdict])


@pytest.mark.parametrize("chosen", [[0], [4], [4, 0], []])
def test_small_cohorts_and_refused_slides(cohort, chosen):
    subtypes = subtype_cohort([cohort[i] for i in chosen])
    assert len(subtypes.patients) == len(chosen)
    assert list(subtypes.spots.columns) == SUBTYPE_COLUMNS
    assert set(subtypes.spots["subtype"]) <= {"S1"}
    subtype_figure(subtypes, cohort="c")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("tumour everywhere", "no spot is labelled non-malignant (234 malignant)"),
        ("tumour map", "the predicted tumour map calls every tile tumour"),
        ("undetermined", "the label of all 234 spots is undetermined"),
        ("few reference", "needs 20 reference"),
        ("genes", "needs 1000 genes"),
        ("build", "genome build"),
        ("constant", "vary, here are 0 of"),
    ],
)
def test_a_refused_slide_is_listed_with_its_reason_and_the_cohort_goes_on(
    cohort, genome, section, tmp_path, what, message
):
    values, truth, row, col = section
    labels, positions = None, genome
    if what in ("tumour everywhere", "tumour map", "few reference"):
        labels = np.full(len(truth), "malignant", dtype=object)
        labels[:5] = "non-malignant" if what == "few reference" else "malignant"
    elif what == "undetermined":
        labels = np.full(len(truth), "undetermined", dtype=object)
    elif what == "genes":
        values = values[:, :900]
        positions = genome[:900]
    elif what == "build":
        positions = genome.assign(gene="mouse" + genome["gene"])
    else:
        values = sparse.csr_matrix(np.ones(values.shape, np.float32))
    result, arms, markers = _slide(
        genome[: values.shape[1]],
        (values, truth, row, col),
        slide="bad",
        measured=what in ("tumour everywhere", "undetermined"),
        labels=labels,
        positions=positions,
    )
    assert message in result.uns["refused"]
    assert arms.empty
    write_profile(result, tmp_path / "bad.h5ad")
    bad = read_profile(tmp_path / "bad.h5ad", slide="bad", patient="p9")
    subtypes = subtype_cohort([bad, cohort[0], cohort[2]])
    assert set(subtypes.spots["slide"]) == {"s1", "s3"}
    listed = subtypes.controls[subtypes.controls["slide"] == "bad"]
    assert listed["verdict"].tolist() == ["fail"]
    assert message in listed["note"].iloc[0]
    assert subtypes.patients.set_index("patient").loc["p9", "n_tumour_spots"] == 0


def test_a_slide_without_tumour_has_no_clone_and_says_so(genome, section, cohort, tmp_path):
    labels = np.full(len(section[1]), "undetermined", dtype=object)
    labels[section[1] < 0] = "non-malignant"
    result, _, _ = _slide(genome, section, slide="normal", labels=labels)
    assert result.uns["refused"] == ""
    write_profile(result, tmp_path / "a.h5ad")
    normal = read_profile(tmp_path / "a.h5ad", slide="normal", patient="p8")
    subtypes = subtype_cohort([normal, cohort[0]])
    notes = subtypes.controls.set_index("slide").loc["normal", "note"]
    assert notes.str.contains("no malignant spot, so no clone").all()
    assert set(subtypes.spots["slide"]) == {"s1"}


def test_a_slide_without_reference_is_refused_not_lost(genome, section, tmp_path):
    labels = np.full(len(section[1]), "malignant", dtype=object)
    result, arms, markers = _slide(genome, section, labels=labels)
    assert "no spot is labelled non-malignant" in result.uns["refused"]
    assert arms.empty
    assert "no spot is labelled non-malignant" in _text(profile_figure(result, arms)).replace(
        "\n", " "
    )
    write_profile(result, tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert back.obsm["X_cnv"].shape == (len(labels), 0)
    assert set(back.obs["clone"]) == {"unassigned"}


def test_same_seed_same_result(genome, section, called):
    neighbours = LATTICE.neighbours(section[2], section[3])
    again = call_clones(called[0], section[1] >= 0, neighbours=neighbours)
    np.testing.assert_array_equal(again.labels, called[1].labels)
    pd.testing.assert_frame_equal(again.table, called[1].table)


def test_labels_of_tiles_and_spots():
    assert tile_labels(np.array([0.2, 0.5, np.nan]), threshold=0.5).tolist() == [
        "non-malignant",
        "malignant",
        "undetermined",
    ]
    table = pd.DataFrame({"barcode": ["b", "a"], "label": ["malignant", "boundary"]})
    found = join_labels(pd.Index(["a", "b", "c"]), table, "labels.tsv")
    assert found.tolist() == ["boundary", "malignant", "undetermined"]
    with pytest.raises(InputError, match="labels.tsv"):
        join_labels(pd.Index(["x"]), table, "labels.tsv")


def test_arms_follow_the_genome(called):
    arms = called[2].loc[called[2]["clone"] == "0", "arm"].tolist()
    assert arms == order_arms(arms)
