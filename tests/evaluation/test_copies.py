"""Near copies of a section: by image, by counts, by id."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw
from scipy import sparse

from histogep.errors import InputError
from histogep.evaluation.copies import (
    compare_sections,
    id_parts,
    notices,
    read_profiles,
    require_no_copies,
    similar_counts,
    similar_ids,
)
from histogep.slides.same_tissue import (
    Keypoints,
    compare_images,
    judge_images,
    keypoints_of,
    read_keypoints,
    similar_images,
    write_keypoints,
)
from histogep.spots.normalise import add_expression


def tissue(seed, side=300):
    """A picture with structure at several scales, as tissue has: blobs of many sizes and shades."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), (235, 230, 235))
    draw = ImageDraw.Draw(image)
    for _ in range(260):
        (x, y), (a, b) = rng.uniform(0, side, 2), rng.uniform(3, 16, 2)
        shade = tuple(int(value) for value in rng.uniform(60, 220, 3))
        draw.ellipse((x - a, y - b, x + a, y + b), fill=shade)
    return image


def picture(image):
    found = keypoints_of(np.asarray(image))
    return Keypoints(found.places[:200], found.descriptors[:200])


@pytest.fixture(scope="module")
def image():
    return tissue(0)


@pytest.mark.parametrize("change", ["turned", "mirrored", "scaled", "cropped", "dark", "any angle"])
def test_a_changed_image_is_a_copy(image, change):
    copy = {
        "turned": lambda: image.rotate(90),
        "mirrored": lambda: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "scaled": lambda: image.resize((210, 210)),
        "cropped": lambda: image.crop((0, 0, 170, 300)),
        "dark": lambda: image.point(lambda value: int(value * 0.7)),
        "any angle": lambda: image.rotate(33, fillcolor=(160, 160, 160)),
    }[change]()
    assert judge_images(picture(image), picture(copy))[0] == "copy"


def test_other_tissue_is_not_alike(image):
    assert judge_images(picture(image), picture(tissue(1)))[0] == ""
    none = keypoints_of(np.full((64, 64, 3), 255, np.uint8))
    assert len(none) == 0
    assert compare_images(none, picture(image)) == (0, 0.0)


def test_copies_of_one_patient_are_silent_and_those_of_two_are_named(image, tmp_path):
    pictures = {"S1": picture(image), "S2": picture(image.rotate(90)), "S3": picture(tissue(2))}
    write_keypoints(pictures, tmp_path / "k.parquet")
    again = read_keypoints(tmp_path / "k.parquet")
    assert list(again) == list(pictures)
    np.testing.assert_array_equal(again["S1"].descriptors, pictures["S1"].descriptors)
    assert similar_images(again, {"S1": "P", "S2": "p ", "S3": "Q"}).empty
    pairs = compare_sections(again, {"S1": "P", "S2": "R", "S3": "Q"})
    assert pairs["verdict"].tolist() == ["copy"]
    with pytest.raises(InputError, match="S1 of patient P and S2 of patient R .image."):
        require_no_copies(pairs)


def test_the_script_stops_a_copy_before_training(run_script, image, tmp_path):
    other = {"S1": image, "S2": image.rotate(90), "S3": tissue(2)}
    pictures = {name: picture(shown) for name, shown in other.items()}
    # S0 has no keypoint: its file is there and empty.
    for name in ("S0", *pictures):
        own = {name: pictures[name]} if name in pictures else {}
        write_keypoints(own, tmp_path / f"{name}.parquet")

    def compare(*patients):
        slides = [f"S{number}" for number in range(len(patients))]
        return run_script(
            "compare_slides.py",
            input={"keypoints": [tmp_path / f"{slide}.parquet" for slide in slides]},
            output={"pairs": tmp_path / "pairs.tsv"},
            params={"patients": dict(zip(slides, patients, strict=True)), "seed": 1},
        )

    assert "4 slides compared, 0 pairs are alike" in compare("P", "Q", "Q", "R")
    with pytest.raises(InputError, match="S1 of patient Q and S2 of patient R .image."):
        compare("P", "Q", "R", "T")


def test_a_damaged_file_of_keypoints_is_named(tmp_path):
    pd.DataFrame({"slide": ["S"], "row": [1.0], "col": [1.0], "descriptor": [b"xx"]}).to_parquet(
        tmp_path / "k.parquet"
    )
    with pytest.raises(InputError, match="cannot be read as keypoints"):
        read_keypoints(tmp_path / "k.parquet")


def section(seed, *, n=150, genes=200, programme=None):
    rng = np.random.default_rng(seed)
    programme = (
        np.random.default_rng(99).normal(size=(4, genes)) if programme is None else programme
    )
    mean = np.exp(0.5 * rng.normal(size=(n, 4)) @ programme * 0.5 + np.linspace(0, 2, genes))
    return add_expression(
        anndata.AnnData(
            sparse.csr_matrix(rng.poisson(mean).astype(np.float32)),
            obs=pd.DataFrame(index=[f"{i}x1" for i in range(n)]),
            var=pd.DataFrame(index=[f"G{i}" for i in range(genes)]),
        )
    )


@pytest.mark.parametrize("change", ["one spot", "one count", "thinned", "renamed", "half"])
def test_changed_counts_are_a_copy(change):
    table, rng = section(0), np.random.default_rng(1)
    copy = table.copy()
    if change == "one spot":
        copy = table[1:].copy()
    if change == "one count":
        copy.X.data[0] += 1
    if change == "thinned":
        copy.X.data = rng.binomial(copy.X.data.astype(int), 0.5).astype(np.float32)
    if change == "renamed":
        copy = table[rng.permutation(table.n_obs)].copy()
        copy.obs_names = [f"s{i}" for i in range(table.n_obs)]
    if change == "half":
        copy = table[::2].copy()
    add_expression(copy)
    spots = {"S1": table, "S2": copy, "S3": section(5)}
    found = similar_counts(read_profiles(spots), {"S1": "P", "S2": "Q", "S3": "R"})
    copies = found[found["verdict"] == "copy"]
    assert copies[["slide", "other"]].to_numpy().tolist() == [["S1", "S2"]]
    assert similar_counts(read_profiles(spots), {"S1": "P", "S2": "P", "S3": "R"}).empty


def test_the_sections_of_her2st_raise_no_false_alarm(shared_data):
    """Sections of three patients; of one patient under two ids they are told, not refused."""

    def read(name):
        table = pd.read_csv(shared_data / f"her2st/counts/{name}.tsv.gz", sep="\t", index_col=0)
        return add_expression(
            anndata.AnnData(
                sparse.csr_matrix(table.to_numpy(np.float32)),
                obs=pd.DataFrame(index=table.index.astype(str)),
                var=pd.DataFrame(index=table.columns),
            )
        )

    spots = {name: read(name) for name in ("A1", "B4", "C2", "C3")}
    profiles = read_profiles(spots)
    assert similar_counts(profiles, {name: name[0] for name in spots}).empty
    found = similar_counts(profiles, {name: name for name in spots})
    assert found[["slide", "other", "verdict"]].to_numpy().tolist() == [["C2", "C3", "alike"]]


def test_ids_that_differ_in_separators_or_zeros_are_told():
    assert id_parts("P01") == id_parts("p-1") == id_parts(" P_001 ") == ("p", "1")
    assert id_parts("P11") != id_parts("P-1-1")
    assert id_parts("TCGA-AB-1234-01Z") == id_parts("tcga-ab-1234")
    pairs = similar_ids({"S1": "P01", "S2": "P-01", "S3": "P1", "S4": "P2"})
    assert len(pairs) == 3
    require_no_copies(pairs)
    told = notices(pairs)
    assert {row["what"] for row in told} == {"patient id"}
    assert "P-01 and P01" in told[0]["detail"]
