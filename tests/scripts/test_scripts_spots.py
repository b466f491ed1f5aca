"""The scripts of a section: its spots on the slide, and their labels."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histogep.errors import BadSlide, InputError
from histogep.files import read_tsv, write_json
from histogep.labels import annotated
from histogep.slides.prepare import describe_slide
from histogep.slides.rejected import refuse_failed_spots

ST = {"kind": "st", "pitch_um": 200, "tile_um": 112}
SPOTS = {"min_counts": 100, "min_on_tissue": 0.8, "mpp_tolerance": 0.1}
LABELS = {
    "malignant": ["invasive cancer", "cancer in situ"],
    "boundary": [],
    "non_malignant": ["connective tissue", "adipose tissue", "immune infiltrate"],
    "undetermined": ["undetermined"],
}


@pytest.fixture(scope="module")
def prepared_a1(shared_data, tmp_path_factory):
    """Geometry of the section A1 of her2st."""
    folder = tmp_path_factory.mktemp("a1")
    image = shared_data / "her2st" / "images" / "A1.jpg"
    geometry = describe_slide(slide="A1", source=image, folder=folder / "pyramid", mpp=3.19)
    write_json(geometry, folder / "A1.json")
    return folder / "A1.json"


def _outputs(folder):
    return {
        "spots": folder / "A1.h5ad",
        "overlay": folder / "A1.png",
        "quality": folder / "quality.png",
        "quality_table": folder / "quality.tsv",
    }


def _align(run_script, folder, *, counts, positions, slide, lattice=ST, **settings):
    run = run_script(
        "align_spots.py",
        input={"counts": counts, "positions": positions, "slide": slide},
        output=_outputs(folder),
        params={"lattice": lattice, "spots": SPOTS | settings, "tissue": {}},
        wildcards={"slide": "A1"},
    )
    return run, folder / "A1.h5ad"


def test_a_real_section_is_aligned_labelled_and_drawn(
    run_script, shared_data, prepared_a1, tmp_path
):
    her2st = shared_data / "her2st"
    log, path = _align(
        run_script,
        tmp_path,
        counts=her2st / "counts" / "A1.tsv.gz",
        positions=her2st / "spots" / "A1.tsv",
        slide=prepared_a1,
    )
    assert "345 spots, 15045 genes" in log
    spots = anndata.read_h5ad(path)
    assert spots.obs["on_tissue"].mean() > 0.98
    assert spots.uns["mpp_estimates"]["spots"] == pytest.approx(3.19, rel=0.01)
    assert spots.uns["lattice"] == ST
    given = pd.read_csv(her2st / "spots" / "A1.tsv", sep="\t")
    given.index = given["x"].astype(str) + "x" + given["y"].astype(str)
    given = given.loc[spots.obs_names]
    np.testing.assert_array_equal(spots.obs[["row", "col"]], given[["y", "x"]])
    np.testing.assert_array_equal(spots.obsm["spatial"], given[["pixel_x", "pixel_y"]])
    with h5py.File(path) as file:
        assert file["X"].attrs["encoding-type"] == "csr_matrix"
    for name in ("A1.png", "quality.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300
    quality = read_tsv(tmp_path / "quality.tsv").set_index("metric")["value"]
    counts = pd.read_csv(her2st / "counts" / "A1.tsv.gz", sep="\t", index_col=0)
    counts = counts.loc[spots.obs_names]
    assert quality["spots"] == 345
    assert quality["median_counts"] == counts.sum(axis=1).median()
    assert quality["median_genes"] == (counts > 0).sum(axis=1).median()
    # These tables hold no mitochondrial gene: that is no share of 0.
    assert quality["mitochondrial_genes"] == 0
    assert np.isnan(quality["mitochondrial_share"])

    run_script(
        "label_spots.py",
        input={"labels": her2st / "labels" / "A1.tsv", "spots": path, "markers": "not read"},
        output={"labels": tmp_path / "A1.tsv", "map": tmp_path / "map.png"},
        params={"labels": LABELS, "cnv": {}},
    )
    labels = read_tsv(tmp_path / "A1.tsv", keep_default_na=False)
    assert tuple(labels.columns) == annotated.COLUMNS
    assert labels["barcode"].tolist() == spots.obs_names.tolist()
    assert (labels["label"] == "malignant").sum() == 302
    with Image.open(tmp_path / "map.png") as picture:
        assert min(picture.size) > 300


def test_without_annotation_the_markers_speak(run_script, shared_data, prepared_a1, tmp_path):
    her2st = shared_data / "her2st"
    _, path = _align(
        run_script,
        tmp_path,
        counts=her2st / "counts" / "A1.tsv.gz",
        positions=her2st / "spots" / "A1.tsv",
        slide=prepared_a1,
    )
    markers = tmp_path / "markers.tsv"
    markers.write_text("lineage\tgene\nepithelial\tEPCAM\nepithelial\tKRT8\nfibroblast\tCOL1A1\n")
    log = run_script(
        "label_spots.py",
        input={"spots": path, "markers": markers},
        output={"labels": tmp_path / "A1.tsv", "map": tmp_path / "map.png"},
        params={"labels": LABELS, "cnv": {}},
    )
    assert "markers" in log
    labels = read_tsv(tmp_path / "A1.tsv", keep_default_na=False)
    assert set(labels["source"]) == {"markers"}
    assert labels["confidence"].between(0, 1).all()


def test_spots_of_a_shifted_image_are_refused_with_an_overlay(
    run_script, shared_data, prepared_a1, tmp_path
):
    her2st = shared_data / "her2st"
    table = pd.read_csv(her2st / "spots" / "A1.tsv", sep="\t")
    table["pixel_y"] -= table["pixel_y"].min() - 1
    table.to_csv(tmp_path / "spots.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match="on tissue"):
        _align(
            run_script,
            tmp_path,
            counts=her2st / "counts" / "A1.tsv.gz",
            positions=tmp_path / "spots.tsv",
            slide=prepared_a1,
        )
    assert "on tissue" in (tmp_path / "job.log").read_text()
    assert (tmp_path / "job.png").stat().st_size > 10_000
    assert not (tmp_path / "A1.h5ad").exists()


def test_damaged_counts_cost_their_slide_and_not_the_study(
    run_script, shared_data, prepared_a1, tmp_path
):
    her2st = shared_data / "her2st"
    counts = tmp_path / "A1.tsv"
    counts.write_text("\tA\tB\n10x10\t1.5\t2\n")
    task = {
        "input": {"counts": counts, "positions": her2st / "spots" / "A1.tsv", "slide": prepared_a1},
        "output": _outputs(tmp_path),
        "params": {"lattice": ST, "spots": SPOTS, "tissue": {}},
        "wildcards": {"slide": "A1"},
    }
    with pytest.raises(BadSlide, match=r"slide A1: .*A1\.tsv.*on_bad_slide: skip"):
        run_script("align_spots.py", **task)
    run_script("align_spots.py", config={"on_bad_slide": "skip"}, **task)
    with pytest.raises(BadSlide, match="not whole"):
        refuse_failed_spots(tmp_path / "A1.h5ad")
    assert read_tsv(tmp_path / "quality.tsv").empty
    assert (tmp_path / "quality.png").stat().st_size > 1000
    # What concerns every slide still stops the study.
    task["input"]["counts"] = her2st / "counts" / "A1.tsv.gz"
    task["params"]["lattice"] = {"kind": "visium", "pitch_um": 100, "tile_um": 112}
    with pytest.raises(InputError, match=r"lattice\.kind") as caught:
        run_script("align_spots.py", config={"on_bad_slide": "skip"}, **task)
    assert not isinstance(caught.value, BadSlide)
