from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from histogep.errors import InputError
from histogep.neighbourhoods.measures import MEASURES
from histogep.outcome.patients import (
    IN_TRAINING,
    NEIGHBOURHOOD,
    SECOND_COPY,
    count_patients,
    image_columns,
    summarise_patients,
)
from histogep.outcome.signatures import Signature
from histogep.slides.same_file import out_of_sample
from histogep.study.covariates import sex_number, stage_number

GENES = ["GZMA", "PRF1", "COL1A1", "NOISE"]
SIGNATURES = {
    "cytolytic": Signature("cytolytic", "", "", "mean", {"GZMA": 1.0, "PRF1": 1.0}, 1.0),
    "absent": Signature("absent", "", "", "mean", {"X": 1.0, "COL1A1": 1.0}, 0.9),
}


def write_slide(
    path, *, n=20, n_tumour=10, seed=0, out_of_distribution=0.0, digest="d", values=None
):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 3, (n, 4)).astype(np.float32) if values is None else values
    obs = pd.DataFrame(
        {
            "tumour": np.where(np.arange(n) < n_tumour, 0.9, 0.1).astype(np.float32),
            "out_of_distribution": np.arange(n) < out_of_distribution * n,
        },
        index=[f"{i}x0" for i in range(n)],
    )
    var = pd.DataFrame({"predictable": [True, True, True, False]}, index=GENES)
    ad.AnnData(x, obs=obs, var=var, uns={"model_digest": digest}).write_h5ad(path)
    return x


def sheet(**columns):
    table = pd.DataFrame(columns)
    return table.set_index("patient", drop=False)


@pytest.fixture
def cohort(tmp_path):
    paths = [tmp_path / f"{name}.h5ad" for name in ("a1", "a2", "b1", "c1", "d1")]
    slides = {
        "a1": write_slide(paths[0], seed=1),
        "a2": write_slide(paths[1], n=40, n_tumour=30, seed=2),
        "b1": write_slide(paths[2], n_tumour=2, seed=3, out_of_distribution=0.8),
        "c1": write_slide(paths[3], seed=4),
        "d1": write_slide(paths[4], seed=5),
    }
    patients = sheet(
        patient=["007", "B", "C", "E"],
        time=[10.0, 5.0, np.nan, 3.0],
        event=[1.0, 0.0, np.nan, 1.0],
        age=[60.0, np.nan, 50.0, 40.0],
        sex=["female", "M", "", "f"],
        stage=["Stage IIA", "", "IV", "I"],
    )
    options = {
        "slides": list(slides),
        "slide_patients": ["007", "007", "B", "C", "D"],
        "patients": patients,
        "signatures": SIGNATURES,
    }
    return paths, slides, options


def test_tiles_of_all_slides_are_pooled_over_tumour_tiles(cohort):
    paths, slides, options = cohort
    table, _ = summarise_patients(paths, **options)
    row = table.set_index("patient").loc["007"]
    tumour = np.concatenate([slides["a1"][:10], slides["a2"][:30]])
    tissue = np.concatenate([slides["a1"], slides["a2"]])
    assert (row["n_slides"], row["n_tiles"], row["n_tumour_tiles"]) == (2, 60, 40)
    assert row["tumour_fraction"] == pytest.approx(40 / 60)
    assert row["gene:GZMA"] == pytest.approx(tumour[:, 0].mean(), rel=1e-6)
    assert row["signature:cytolytic"] == pytest.approx(tissue[:, :2].mean(), rel=1e-6)
    within = [slides["a1"][:10, :3].var(axis=0) * 10, slides["a2"][:30, :3].var(axis=0) * 30]
    assert row["heterogeneity"] == pytest.approx(np.sqrt(sum(within) / 40).mean(), rel=1e-5)
    assert not row["all_tiles"]


def test_upper_quantiles_are_those_of_all_tumour_tiles_of_a_patient(cohort):
    """Also where another patient's slide stands between those of one."""
    paths, slides, options = cohort
    order = [0, 2, 1, 3, 4]
    mixed = {name: [options[name][i] for i in order] for name in ("slides", "slide_patients")}
    for quantile in (0.9, 0.75):
        table, _ = summarise_patients(
            [paths[i] for i in order], **options | mixed, upper_quantile=quantile
        )
        table = table.set_index("patient")
        tumour = np.concatenate([slides["a1"][:10], slides["a2"][:30]])
        assert table.loc["007", "upper:PRF1"] == pytest.approx(np.quantile(tumour[:, 1], quantile))
        # Described by all tiles for want of tumour, as the means are.
        assert table.loc["B", "upper:PRF1"] == pytest.approx(
            np.quantile(slides["b1"][:, 1], quantile)
        )
    straight, _ = summarise_patients(paths, **options, upper_quantile=0.75)
    pd.testing.assert_frame_equal(straight.set_index("patient"), table)


def test_without_a_tumour_map_all_tiles_are_used(cohort):
    paths, slides, options = cohort
    for path in paths[:2]:
        data = ad.read_h5ad(path)
        data.obs["tumour"] = np.float32(np.nan)
        data.write_h5ad(path)
    table, _ = summarise_patients(paths, **options)
    row = table.set_index("patient").loc["007"]
    assert np.isnan(row["tumour_fraction"])
    assert row["all_tiles"]
    tissue = np.concatenate([slides["a1"], slides["a2"]])
    assert row["gene:GZMA"] == pytest.approx(tissue[:, 0].mean(), rel=1e-6)


def test_only_predictable_genes_and_covered_signatures_are_there(cohort):
    paths, _, options = cohort
    table, _ = summarise_patients(paths, **options)
    genes, upper, others = image_columns(table)
    assert genes == ["gene:GZMA", "gene:PRF1", "gene:COL1A1"]
    assert upper == ["upper:GZMA", "upper:PRF1", "upper:COL1A1"]
    assert others == ["tumour_fraction", "heterogeneity", "signature:cytolytic"]


def test_too_few_tumour_tiles_and_distant_slides_are_flagged(cohort, caplog):
    paths, slides, options = cohort
    table, _ = summarise_patients(paths, **options)
    row = table.set_index("patient").loc["B"]
    assert row["all_tiles"]
    assert row["gene:PRF1"] == pytest.approx(slides["b1"][:, 1].mean(), rel=1e-6)
    assert row["out_of_distribution"]
    assert row["out_of_distribution_fraction"] == pytest.approx(0.8)
    assert "slide b1: 80 % of its tiles are far" in caplog.text
    assert "described by all tiles: B" in caplog.text


def test_the_clinical_columns_are_numbers_and_ids_stay_text(cohort):
    paths, _, options = cohort
    table, _ = summarise_patients(paths, **options)
    assert list(table["patient"]) == ["007", "B"]
    assert table["sex"].tolist() == [0.0, 1.0]
    assert table["stage"].tolist()[0] == 2.0
    assert np.isnan(table["stage"][1])
    assert np.isnan(table["age"][1])


def test_dropped_patients_are_listed_with_their_reason(cohort):
    paths, _, options = cohort
    _, dropped = summarise_patients(paths, **options)
    reasons = dropped.set_index("patient")["reason"]
    assert reasons["C"] == "neither time and event nor response in the patient sheet"
    assert reasons["D"] == "no row in the patient sheet"
    assert reasons["E"] == "no predicted slide in this cohort"
    assert set(reasons.index) == {"C", "D", "E"}
    assert dropped.set_index("patient").loc["D", "slides"] == "d1"


def test_a_response_alone_keeps_a_patient(cohort):
    paths, _, options = cohort
    patients = options["patients"].assign(response=[np.nan, np.nan, 1.0, np.nan])
    table, _ = summarise_patients(paths, **options | {"patients": patients})
    assert "C" in set(table["patient"])


def test_without_a_sheet_every_patient_is_described(cohort):
    paths, _, options = cohort
    table, dropped = summarise_patients(paths, **options | {"patients": None})
    assert list(table["patient"]) == ["007", "B", "C", "D"]
    assert dropped.empty
    assert list(dropped) == ["patient", "slides", "reason"]


def test_copy_number_joins_by_patient(cohort, tmp_path):
    paths, _, options = cohort
    path = tmp_path / "patients.tsv"
    path.write_text(
        "patient\tn_tumour_spots\tcnv_burden\tithcna\tithgex\tshare_0\tshare_1\n"
        "007\t40\t0.3\t0.4\t0.1\t0.25\t0.75\n"
    )
    table, _ = summarise_patients(paths, **options, subtypes=path)
    table = table.set_index("patient")
    assert table.loc["007", ["cnv_burden", "share_0", "share_1"]].tolist() == [0.3, 0.25, 0.75]
    assert np.isnan(table.loc["B", "cnv_burden"])
    assert "n_tumour_spots" not in table
    assert table.loc["007", ["ithcna", "ithgex"]].tolist() == [0.4, 0.1]
    assert {"cnv_burden", "ithcna", "ithgex", "share_0"} <= set(image_columns(table)[2])


def test_neighbourhoods_are_those_of_the_slides_that_describe_the_patient(cohort, tmp_path):
    paths, _, options = cohort
    path = tmp_path / "slides.tsv"
    described = pd.DataFrame({"slide": [*options["slides"], "section"], "patient": "ignored"})
    described["n_places"] = [10, 30, 20, 20, 20, 500]
    for number, measure in enumerate(MEASURES):
        described[measure] = [1.0, 2.0, np.nan, 4.0, 5.0, 99.0]
        described[f"{measure}_null"] = float(number)
    described.to_csv(path, sep="\t", index=False)
    table, _ = summarise_patients(paths, **options, neighbourhoods=path)
    mixing = table.set_index("patient")[f"{NEIGHBOURHOOD}immune_mixing"]
    # A section of the patient, which the model was trained on, and whose slide is not predicted.
    assert mixing["007"] == pytest.approx((10 * 1 + 30 * 2) / 40)
    assert np.isnan(mixing["B"])
    assert not [name for name in table if name.endswith("_null")]
    assert not any(name.startswith(NEIGHBOURHOOD) for part in image_columns(table) for name in part)
    described.iloc[1:].to_csv(path, sep="\t", index=False)
    with pytest.raises(InputError, match="has no row of a1"):
        summarise_patients(paths, **options, neighbourhoods=path)


def test_refusals(cohort, tmp_path):
    paths, _, options = cohort
    with pytest.raises(InputError, match="must be the same text"):
        summarise_patients(paths[:1], **options | {"slides": ["a1"], "slide_patients": ["7"]})
    odd = options["patients"].assign(stage=["II", "V", "I", "I"], sex=["f", "?", "f", "f"])
    with pytest.raises(InputError, match="patient B: sex '\\?'.*\n.*patient B: stage 'V'"):
        summarise_patients(paths, **options | {"patients": odd})
    write_slide(paths[1], digest="another")
    with pytest.raises(InputError, match="different models"):
        summarise_patients(paths, **options)
    values = np.ones((20, 4), np.float32)
    values[3, 0] = np.nan
    write_slide(paths[1], values=values)
    with pytest.raises(InputError, match=r"a2.h5ad holds predictions that are not numbers"):
        summarise_patients(paths, **options)


@pytest.mark.parametrize(
    ("text", "number"),
    [("I", 1), ("Stage IIIC", 3), ("iv", 4), ("2", 2), ("IIB", 2), ("", None), ("Stage X", None)],
)
def test_stages(text, number):
    assert stage_number(text) == number or (number is None and np.isnan(stage_number(text)))


def test_sexes():
    assert [sex_number(text) for text in ("F", "male", "Female", "m")] == [0, 1, 0, 1]
    assert np.isnan(sex_number("unknown"))


def test_frozen_and_normal_slides_of_tcga_describe_nobody(cohort, tmp_path):
    paths, slides, options = cohort
    names = [
        "TCGA-AA-0001-01Z-00-DX1", "TCGA-AA-0001-01A-01-TS1", "TCGA-AA-0002-01A-01-TS1",
        "TCGA-AA-0002-11A-01-TS1", "TCGA-AA-0003-11A-01-TS1",
    ]  # fmt: skip
    patients = sheet(
        patient=[f"TCGA-AA-000{i}" for i in (1, 2, 3)], time=[1.0, 2.0, 3.0], event=[1.0, 0.0, 1.0]
    )
    table, dropped = summarise_patients(
        paths, **options | {"slides": names, "slide_patients": names, "patients": patients}
    )
    table = table.set_index("patient")
    assert list(table.index) == ["TCGA-AA-0001", "TCGA-AA-0002"]
    assert (table["n_slides"] == 1).all()
    tumour = slides["a1"][:10, 0].mean()
    assert table.loc["TCGA-AA-0001", "gene:GZMA"] == pytest.approx(tumour, rel=1e-6)
    reasons = dropped.set_index("slides")["reason"].str[:14].to_dict()
    assert reasons == {
        names[1]: "frozen section", names[3]: "sample type 11", names[4]: "sample type 11",
    }  # fmt: skip


def test_training_patients_are_left_out_with_the_reason_or_kept_with_a_flag(cohort, caplog):
    paths, _, options = cohort
    taught = options | {"training": ["007"]}
    table, dropped = summarise_patients(paths, **taught)
    assert list(table["patient"]) == ["B"]
    assert not table["in_training"].any()
    row = dropped.set_index("patient").loc["007"]
    assert row["reason"] == IN_TRAINING
    assert row["slides"] == "a1,a2"
    counts = count_patients(table, dropped).set_index("what")["n"]
    assert counts[IN_TRAINING] == 1
    kept, _ = summarise_patients(paths, **taught, training_patients="keep")
    assert kept.set_index("patient")["in_training"].to_dict() == {"007": True, "B": False}
    assert "the model was trained on these patients" in caplog.text
    counts = count_patients(kept, dropped).set_index("what")["n"]
    assert counts["that the model was trained on (kept: not out of sample)"] == 1


def test_training_patients_are_found_whatever_the_case_of_their_id(cohort):
    paths, _, options = cohort
    table, _ = summarise_patients(paths, **options, training=["b "])
    assert "B" not in set(table["patient"])


def test_the_image_of_a_training_section_is_no_new_slide_whatever_its_id(cohort):
    paths, _, options = cohort
    data = ad.read_h5ad(paths[2])
    data.uns["training_section"] = "S7"
    data.write_h5ad(paths[2])
    table, dropped = summarise_patients(paths, **options, training=["nobody"])
    assert "B" not in set(table["patient"])
    reason = dropped.set_index("patient").loc["B", "reason"]
    assert reason == f"{IN_TRAINING} (its slides are the images of S7)"
    kept, _ = summarise_patients(paths, **options, training_patients="keep")
    assert kept.set_index("patient")["in_training"].to_dict() == {"007": False, "B": True}
    patients = ["P", "Q", "R ", "r", "S"]
    ids = {"slides": options["slides"], "slide_patients": patients}
    new = out_of_sample(paths, **ids)
    assert new == [True, True, False, False, True]  # the patient's other slide goes too
    assert all(out_of_sample(paths, **ids, training_patients="keep"))
    with pytest.raises(InputError, match="every slide of the cohort is of a patient whose image"):
        out_of_sample(paths[2:3], slides=["b1"], slide_patients=["R"])


def test_a_training_image_counts_though_its_slide_is_left_out(cohort):
    paths, _, options = cohort
    data = ad.read_h5ad(paths[1])
    data.uns["training_section"] = "S7"
    data.write_h5ad(paths[1])
    names = ["TCGA-AA-0001-01Z-00-DX1", "TCGA-AA-0001-01A-01-TS1", "TCGA-AA-0002-01Z-00-DX1"]
    given = {"slides": names, "slide_patients": names, "patients": None}
    table, dropped = summarise_patients(paths[:3], **options | given)
    assert list(table["patient"]) == ["TCGA-AA-0002"]
    reason = dropped[dropped["reason"].str.startswith(IN_TRAINING)]
    assert list(reason["patient"]) == ["TCGA-AA-0001"]


def with_images(paths, images):
    for path, image in zip(paths, images, strict=True):
        data = ad.read_h5ad(path)
        data.uns["image_sha256"] = image
        data.write_h5ad(path)


def test_one_image_under_two_patients_is_refused(cohort):
    paths, _, options = cohort
    with_images(paths, ["x", "y", "z", "w", "y"])
    with pytest.raises(InputError, match="a2 of patient 007 and d1 of patient D"):
        summarise_patients(paths, **options)


def test_a_second_copy_of_a_slide_does_not_count_twice(cohort, caplog):
    paths, _, options = cohort
    alone, _ = summarise_patients(
        [paths[0], *paths[2:]],
        **options
        | {name: [options[name][0], *options[name][2:]] for name in ("slides", "slide_patients")},
    )
    with_images(paths, ["x", "x", "z", "", ""])  # of the others no image is known
    table, dropped = summarise_patients(paths, **options)
    assert table.set_index("patient")["images"].to_dict() == {"007": "x", "B": "z"}
    pd.testing.assert_frame_equal(table.drop(columns="images"), alone.drop(columns="images"))
    assert ("007", "a2", SECOND_COPY) in set(
        dropped[["patient", "slides", "reason"]].itertuples(index=False, name=None)
    )
    assert "slide a2 is the same image as a1" in caplog.text
    assert "of 2 slides no digest of the image is known" in caplog.text
    single = out_of_sample(
        paths,
        slides=options["slides"],
        slide_patients=options["slide_patients"],
        training_patients="keep",
    )
    assert single == [True, False, True, True, True]


def test_an_image_of_a_slide_that_is_left_out_takes_no_slide_along(cohort):
    paths, _, options = cohort
    with_images(paths, ["x", "x", "z", "u", "x"])
    names = ["TCGA-AA-0001-11A-01-TS1", "TCGA-AA-0001-01Z-00-DX1", "TCGA-AA-0002-01Z-00-DX1"]
    given = {"slides": names, "slide_patients": names, "patients": None}
    table, dropped = summarise_patients(paths[:3], **options | given)
    assert list(table["patient"]) == ["TCGA-AA-0001", "TCGA-AA-0002"]
    assert SECOND_COPY not in set(dropped["reason"])
    # Nor does the slide of another patient that describes nobody.
    names[1] = "TCGA-AA-0003-01Z-00-DX1"
    table, _ = summarise_patients(
        paths[:3], **options | {"slides": names, "slide_patients": names, "patients": None}
    )
    assert list(table["patient"]) == ["TCGA-AA-0002", "TCGA-AA-0003"]


def test_a_cohort_of_training_patients_only_is_refused(cohort):
    paths, _, options = cohort
    with pytest.raises(InputError, match="007: the model was trained on this patient's sections"):
        summarise_patients(paths, **options, training=["007", "B"])
