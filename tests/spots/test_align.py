"""Spots on their slide, against sections whose places are known."""

import re
from dataclasses import replace
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from histogep.errors import BadSlide, InputError
from histogep.lattice import Lattice
from histogep.spots.align import (
    align_spots,
    check_alignment,
    collapse_symbols,
    fit_lattice,
    implied_mpp,
)
from histogep.spots.readers import RawSection, read_section

SETTINGS = {"min_counts": 1, "min_on_tissue": 0.8, "mpp_tolerance": 0.1}
MPP = 2.0
VISIUM = Lattice("visium", 100, 112)


class FakeSlide:
    """A white slide, of 3,000 x 2,600 px unless told otherwise."""

    def __init__(self, *, mpp=MPP, width_px=3000, height_px=2600):
        self.slide, self.mpp, self.width_px, self.height_px = "S1", mpp, width_px, height_px

    def picture(self, most_px):
        scale = max(1.0, max(self.width_px, self.height_px) / most_px)
        sides = (max(1, round(side / scale)) for side in (self.height_px, self.width_px))
        return np.full((*sides, 3), 255, np.uint8)


class FakeMask(SimpleNamespace):
    """Tissue within a rectangle of level-0 px."""

    def contains(self, x, y):
        x0, y0, x1, y1 = self.box
        x, y = np.asarray(x), np.asarray(y)
        return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)


EVERYWHERE = FakeMask(box=(0, 0, 3000, 2600))


def _places(n_rows=12, n_cols=10):
    """Return Visium's array indices and the pixels that Space Ranger would write."""
    row, col = (part.ravel() for part in np.mgrid[:n_rows, :n_cols])
    array_col = 2 * col + row % 2
    x_um = 50 * array_col + 100
    y_um = 100 * np.sqrt(3) / 2 * row + 100
    return row, array_col, x_um / MPP, y_um / MPP


def _raw(lattice_kind="visium", **changes):
    row, col, x, y = _places()
    table = pd.DataFrame(
        {"in_tissue": True, "array_row": row, "array_col": col, "x_px": x, "y_px": y},
        index=[f"B{i:03d}-1" for i in range(len(row))],
    )
    table.update(changes.pop("table", pd.DataFrame(index=table.index)))
    counts = np.random.default_rng(0).poisson(3, (len(row), 5)) + 1
    content = {
        "counts": sparse.csr_matrix(counts),
        "genes": np.array(list("ABCDE"), object),
        "gene_ids": np.array([f"ENSG{i}" for i in range(5)], object),
        "table": table,
        "kind": lattice_kind,
        "source": "counts",
    }
    return RawSection(**(content | changes))


def _align(raw, *, lattice=VISIUM, mask=EVERYWHERE, settings=None):
    return align_spots(
        raw, FakeSlide(), mask, lattice=lattice, settings={**SETTINGS, **(settings or {})}
    )


def test_h5ad_gives_the_same_section_from_raw_counts_wherever_they_are(tmp_path):
    raw = _raw()
    spots = _align(raw)
    spots.write_h5ad(tmp_path / "a.h5ad")
    again = read_section(tmp_path / "a.h5ad")
    assert (again.counts != raw.counts).nnz == 0
    pd.testing.assert_frame_equal(again.table, raw.table, check_names=False, check_dtype=False)
    assert again.kind == ""

    spots.layers["counts"] = spots.X.copy()
    spots.X = spots.X.log1p()
    spots.obs = spots.obs[["row", "col"]]
    spots.write_h5ad(tmp_path / "b.h5ad")
    again = read_section(tmp_path / "b.h5ad")
    assert (again.counts != raw.counts).nnz == 0
    pd.testing.assert_frame_equal(
        _align(again).obs[["row", "col"]], _align(raw).obs[["row", "col"]]
    )

    del spots.layers["counts"]
    spots.write_h5ad(tmp_path / "c.h5ad")
    with pytest.raises(InputError, match="raw counts are needed"):
        read_section(tmp_path / "c.h5ad")
    anndata.AnnData(np.ones((2, 2))).write_h5ad(tmp_path / "d.h5ad")
    with pytest.raises(InputError, match=r"obsm\['spatial'\]"):
        read_section(tmp_path / "d.h5ad")


def test_symbols_that_repeat_are_summed_and_keep_their_ids():
    counts = sparse.csr_matrix([[1, 2, 30, 4], [5, 6, 70, 8]])
    summed, var = collapse_symbols(counts, ["A", "B", "A", ""], ["E1", "E2", "E3", "E4"])
    assert summed.toarray().tolist() == [[31, 2, 4], [75, 6, 8]]
    assert list(var.index) == ["A", "B", "E4"]
    assert list(var["gene_id"]) == ["E3", "E2", "E4"]
    # E3 has the most counts, so stands for A.
    assert var.loc["A", "gene_ids"] == "E3;E1"


def test_only_deep_spots_in_tissue_are_kept():
    raw = _raw()
    raw.table.iloc[3, raw.table.columns.get_loc("in_tissue")] = False
    counts = raw.counts.toarray()
    counts[7] = [3, 0, 0, 0, 0]
    counts[8] = [4, 0, 0, 0, 0]
    raw = RawSection(**(raw.__dict__ | {"counts": sparse.csr_matrix(counts)}))
    spots = _align(raw, settings={"min_counts": 4})
    assert spots.n_obs == len(raw.table) - 2
    assert not {"B003-1", "B007-1"} & set(spots.obs_names)
    np.testing.assert_array_equal(spots.X.toarray(), np.delete(counts, [3, 7], axis=0))
    assert spots.obs["total_counts"].min() >= 4
    with pytest.raises(InputError, match=r"none of 120 spots.*min_counts is 9999"):
        _align(raw, settings={"min_counts": 9999})


def test_grid_indices_and_pixels_follow_the_contract():
    spots = _align(_raw())
    row, array_col, x, y = _places()
    np.testing.assert_array_equal(spots.obs["row"], row)
    np.testing.assert_array_equal(spots.obs["col"], array_col // 2)
    assert spots.obs["row"].dtype == np.int32
    np.testing.assert_array_equal(spots.obsm["spatial"], np.c_[x, y])
    assert spots.uns["lattice"] == VISIUM.to_settings()
    neighbours = VISIUM.neighbours(spots.obs["row"].to_numpy(), spots.obs["col"].to_numpy())
    pairs = np.array(neighbours.nonzero())
    distance_um = np.linalg.norm(np.diff(spots.obsm["spatial"][pairs], axis=0)[0], axis=1) * MPP
    np.testing.assert_allclose(distance_um, 100, rtol=1e-6)


def test_squidpys_layout_is_what_scanpy_draws_from():
    image = _align(_raw()).uns["spatial"]["S1"]
    assert image["images"]["hires"].shape == (867, 1000, 3)
    assert image["scalefactors"]["tissue_hires_scalef"] == pytest.approx(1 / 3)
    assert image["scalefactors"]["spot_diameter_fullres"] == pytest.approx(27.5)


def test_the_pitch_gives_a_second_pixel_size(caplog):
    spots = _align(_raw())
    assert spots.uns["mpp_estimates"]["spots"] == pytest.approx(MPP, rel=1e-6)
    assert "check mpp" not in caplog.text
    wider = Lattice("visium", 130, 112)
    assert _align(_raw(), lattice=wider).uns["mpp_estimates"]["spots"] == pytest.approx(2.6)
    assert "check mpp" in caplog.text


def test_pitch_is_not_biased_by_jitter_as_the_nearest_distance_is():
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(5)
    row, col = (part.ravel() for part in np.mgrid[:20, :20])
    x, y = (100.0 * part + rng.normal(0, 6, 400) for part in (col, row))
    fit = fit_lattice(Lattice("st", 200, 112), row, col, x, y)
    nearest = np.median(cKDTree(np.c_[x, y]).query(np.c_[x, y], k=2)[0][:, 1])
    assert fit.pitch_px == pytest.approx(100, abs=0.3)
    assert nearest < 96
    assert fit.residual == pytest.approx(0.06 * np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("degrees", [0, 30, 90, -120])
def test_a_turned_section_fits_and_a_mirrored_one_is_told(degrees, caplog):
    angle = np.radians(degrees)
    raw = _raw()
    x, y = raw.table["x_px"] - 500, raw.table["y_px"] - 500
    turned = raw.table.assign(
        x_px=np.cos(angle) * x - np.sin(angle) * y + 1400,
        y_px=np.sin(angle) * x + np.cos(angle) * y + 1300,
    )
    fit = _align(RawSection(**(raw.__dict__ | {"table": turned}))).uns["lattice_fit"]
    assert fit["rotation_deg"] == pytest.approx(degrees, abs=1e-6)
    assert fit["stretch"] == pytest.approx(1)
    assert not fit["mirrored"]
    assert "mirrored" not in caplog.text
    mirrored = turned.assign(x_px=2800 - turned["x_px"])
    assert _align(RawSection(**(raw.__dict__ | {"table": mirrored}))).uns["lattice_fit"]["mirrored"]
    assert "mirrored" in caplog.text


def test_an_array_of_another_kind_is_refused():
    with pytest.raises(InputError, match=r"legacy ST.*lattice\.kind is 'visium'"):
        _align(_raw("st"))
    with pytest.raises(InputError, match=r"bins of 8 um.*pitch_um is 100"):
        _align(_raw("square", bin_um=8.0), lattice=Lattice("square", 100, 112))


def test_an_h5ad_on_another_lattice_is_told_by_its_pixels():
    with pytest.raises(InputError, match=r"do not fit.*'visium'"):
        _align(_raw(""), lattice=Lattice("st", 200, 112))
    row, col = (part.ravel() for part in np.mgrid[:12, :10])
    square = pd.DataFrame(
        {"array_row": row, "array_col": col, "x_px": col * 100.0, "y_px": row * 100.0},
        index=_raw().table.index,
    ).assign(in_tissue=True)
    with pytest.raises(InputError, match=r"a square grid of 12 x 10, 100 px apart.*'square'"):
        _align(_raw("", table=square))


@pytest.mark.parametrize("kind", ["visium", ""])
@pytest.mark.parametrize("turned", [False, True])
def test_a_square_grid_in_space_rangers_layout_gets_one_message_and_is_then_read(kind, turned):
    """50 x 50, as DBiT-seq is written: what the message says to set is then taken."""
    row, col = (part.ravel() for part in np.mgrid[:50, :50])
    # A quarter turn, as the chip may lie on the scan; some channels are not under tissue.
    across, down = (2500 - 50 * row, 50 * col) if turned else (50 * col, 50 * row)
    table = pd.DataFrame(
        {"array_row": row, "array_col": col, "x_px": across + 20.0, "y_px": down + 20.0},
        index=[f"B{i}" for i in range(2500)],
    ).assign(in_tissue=np.arange(2500) % 7 != 0)
    counts = sparse.csr_matrix(np.full((2500, 5), 4))
    raw = _raw(kind, table=table, counts=counts)
    raw = RawSection(**(raw.__dict__ | {"table": table}))
    with pytest.raises(InputError) as caught:
        _align(raw)
    said = str(caught.value)
    assert "a square grid of 50 x 50, 50 px apart" in said
    assert "set lattice.kind to 'square'" in said
    assert "pitch_um" in said
    for same in ("square", "st"):
        spots = _align(raw, lattice=Lattice(same, 50 * MPP, 50 * MPP))
        assert spots.uns["mpp_estimates"]["spots"] == pytest.approx(MPP, rel=1e-6)
        assert (spots.obs["col"] == spots.obs["array_col"]).all()
    # A true Visium section stays one, whatever the study's lattice.
    with pytest.raises(InputError, match=r"is of a Visium array|do not fit.*'visium'"):
        _align(_raw(kind), lattice=Lattice("square", 100, 112))


def test_the_distance_of_the_spots_says_the_pixel_size_before_any_job(tmp_path, shared_data):
    row, array_col, x, y = _places()
    folder = tmp_path / "outs"
    (folder / "spatial").mkdir(parents=True)
    (folder / "filtered_feature_bc_matrix").mkdir()
    table = pd.DataFrame(
        {
            "barcode": [f"B{i}-1" for i in range(len(row))],
            **{"in_tissue": 1, "array_row": row, "array_col": array_col},
            **{"pxl_row_in_fullres": y, "pxl_col_in_fullres": x},
        }
    )
    table.to_csv(folder / "spatial/tissue_positions.csv", index=False)
    for given in (folder, tmp_path):
        found = implied_mpp(given, positions=None, lattice=VISIUM)
        assert found == pytest.approx(MPP, rel=1e-6)
    # Where they do not fit the lattice, or are not there, nothing is said.
    assert implied_mpp(folder, positions=None, lattice=Lattice("st", 200, 112)) is None
    assert implied_mpp(tmp_path / "nowhere", positions=None, lattice=VISIUM) is None
    section = shared_data / "her2st"
    found = implied_mpp(
        section / "counts/B4.tsv.gz",
        positions=section / "spots/B4.tsv",
        lattice=Lattice("st", 200, 112),
    )
    assert found == pytest.approx(0.687, rel=0.03)


def test_pixels_that_belong_to_other_spots_are_refused():
    raw = _raw()
    shuffled = raw.table.copy()
    order = np.random.default_rng(0).permutation(len(shuffled))
    shuffled[["x_px", "y_px"]] = shuffled[["x_px", "y_px"]].to_numpy()[order]
    with pytest.raises(InputError, match="sorted apart from their barcodes"):
        _align(RawSection(**(raw.__dict__ | {"table": shuffled})))


def test_spots_outside_the_image_are_refused():
    raw = _raw()
    larger = raw.table.assign(x_px=raw.table["x_px"] * 8, y_px=raw.table["y_px"] * 8)
    spots = _align(RawSection(**(raw.__dict__ | {"table": larger})))
    with pytest.raises(InputError, match=r"outside the image of 3000 x 2600.*0\.25 um per px"):
        check_alignment(spots, FakeSlide(), EVERYWHERE, min_on_tissue=0.8)


def test_spots_that_tell_quite_another_pixel_size_are_refused():
    narrow = Lattice("visium", 50, 112)
    spots = _align(_raw(), lattice=narrow)
    with pytest.raises(
        InputError, match=r"it has 2 um per px.*lattice.pitch_um 50 .* it has 1: set"
    ):
        check_alignment(spots, FakeSlide(), EVERYWHERE, min_on_tissue=0.8)
    check_alignment(_align(_raw()), FakeSlide(), EVERYWHERE, min_on_tissue=0.8)


def test_spots_beside_the_tissue_are_refused_with_the_likely_cause():
    raw = _raw()
    left = FakeMask(box=(0, 0, 600, 600))
    check_alignment(_align(raw, mask=left), FakeSlide(), left, min_on_tissue=0.8)
    right = FakeMask(box=(2400, 0, 3000, 600))
    spots = _align(raw, mask=right)
    assert not spots.obs["on_tissue"].any()
    with pytest.raises(InputError, match=r"only 0% of 120.*flipped left to right 100%"):
        check_alignment(spots, FakeSlide(), right, min_on_tissue=0.8)


def test_a_section_of_two_spots_passes_without_a_pitch():
    raw = _raw()
    few = RawSection(**(raw.__dict__ | {"table": raw.table[:2], "counts": raw.counts[:2]}))
    assert _align(few).uns["mpp_estimates"] == {"slide": MPP}


@pytest.mark.parametrize("value", [-1.0, 0.5, np.nan, np.inf, 2.0**25])
def test_what_is_no_raw_count_is_refused(value):
    raw = _raw()
    counts = raw.counts.astype(np.float64)
    counts.data[17] = value
    with pytest.raises(
        InputError, match=f"1 values .*such as {re.escape(f'{value:g}')}; give raw counts"
    ):
        _align(RawSection(**(raw.__dict__ | {"counts": counts})))


HIRES = {"tissue_hires_scalef": 0.1, "tissue_lowres_scalef": 0.03}


def _full_resolution(*, scale=0.1, **changes):
    """Return the section in pixels of an image 1 / `scale` times as large as the slide."""
    raw = _raw(**changes)
    table = raw.table.assign(x_px=raw.table["x_px"] / scale, y_px=raw.table["y_px"] / scale)
    return replace(raw, table=table, scales=HIRES, spot_px=27.5 / scale)


@pytest.mark.parametrize("scale", [0.1, 0.03])
def test_on_space_rangers_smaller_image_its_scale_factor_is_used(scale, caplog):
    small = FakeSlide(mpp=MPP, width_px=800, height_px=600)
    raw = _full_resolution(scale=scale)
    spots = align_spots(raw, small, EVERYWHERE, lattice=VISIUM, settings=SETTINGS)
    check_alignment(spots, small, EVERYWHERE, min_on_tissue=0.8)
    np.testing.assert_allclose(spots.obsm["spatial"], _raw().table[["x_px", "y_px"]])
    image = "tissue_hires_image.png" if scale == 0.1 else "tissue_lowres_image.png"
    assert f"the image is Space Ranger's {image}" in spots.uns["joins"]
    assert "tiles are enlarged" in caplog.text
    assert spots.uns["mpp_estimates"]["spots"] == pytest.approx(MPP, rel=1e-6)
    assert spots.uns["spatial"]["S1"]["scalefactors"]["spot_diameter_fullres"] == pytest.approx(
        27.5
    )


def test_the_pixel_size_of_the_full_image_is_refused_for_the_smaller_one():
    small = FakeSlide(mpp=0.2, width_px=800, height_px=600)
    spots = align_spots(_full_resolution(), small, EVERYWHERE, lattice=VISIUM, settings=SETTINGS)
    with pytest.raises(
        InputError, match=r"it has 0.2 um per px, .* it has 2: set .*mpp in the slide"
    ):
        check_alignment(spots, small, EVERYWHERE, min_on_tissue=0.8)


def test_the_full_image_is_never_scaled():
    large = FakeSlide(mpp=0.2, width_px=8000, height_px=6000)
    raw = _full_resolution()
    spots = align_spots(raw, large, EVERYWHERE, lattice=VISIUM, settings=SETTINGS)
    np.testing.assert_array_equal(spots.obsm["spatial"], raw.table[["x_px", "y_px"]])
    # An image of another section, into the corner of which everything would fit.
    other = FakeSlide(mpp=2, width_px=4000, height_px=3500)
    raw = replace(raw, scales={"tissue_hires_scalef": 0.05})
    spots = align_spots(raw, other, EVERYWHERE, lattice=VISIUM, settings=SETTINGS)
    with pytest.raises(InputError, match="lie outside the image"):
        check_alignment(spots, other, EVERYWHERE, min_on_tissue=0.8)


def test_without_a_slide_the_pitch_alone_gives_the_pixel_size():
    spots = align_spots(_raw(), None, None, lattice=VISIUM, settings=SETTINGS)
    expected = _align(_raw())
    assert spots.uns["mpp"] == pytest.approx(MPP)
    assert set(spots.uns["mpp_estimates"]) == {"spots"}
    pd.testing.assert_frame_equal(spots.obs, expected.obs)
    np.testing.assert_array_equal(spots.obsm["spatial"], expected.obsm["spatial"])
    with pytest.raises(InputError, match="normalised"):
        align_spots(_raw(counts=_raw().counts * 0.3), None, None, lattice=VISIUM, settings=SETTINGS)


def test_exchanged_x_and_y_are_named_though_enough_spots_lie_on_tissue():
    raw = _raw()
    x, y = raw.table["x_px"], raw.table["y_px"] + 300
    mask = FakeMask(box=(0, 250, 700, 900))
    right = _align(replace(raw, table=raw.table.assign(y_px=y)), mask=mask)
    check_alignment(right, FakeSlide(), mask, min_on_tissue=0.3)
    spots = _align(replace(raw, table=raw.table.assign(x_px=y, y_px=x)), mask=mask)
    assert 0.3 < spots.obs["on_tissue"].mean() < 0.9
    with pytest.raises(BadSlide, match="mirrored.*with x and y exchanged 100%"):
        check_alignment(spots, FakeSlide(), mask, min_on_tissue=0.3)


def test_places_in_um_are_named():
    raw = _raw()
    table = raw.table.assign(x_px=raw.table["x_px"] * MPP, y_px=raw.table["y_px"] * MPP)
    spots = _align(replace(raw, table=table))
    with pytest.raises(BadSlide, match=r"the places of the spots are um.*pixel size \(2\)"):
        check_alignment(spots, FakeSlide(), EVERYWHERE, min_on_tissue=0.8)


def test_places_on_a_smaller_image_are_named():
    raw = _raw()
    table = raw.table.assign(x_px=raw.table["x_px"] / 8, y_px=raw.table["y_px"] / 8)
    spots = _align(replace(raw, table=table))
    with pytest.raises(BadSlide, match="pixels of an image 8 times smaller: multiply"):
        check_alignment(spots, FakeSlide(), EVERYWHERE, min_on_tissue=0.8)
