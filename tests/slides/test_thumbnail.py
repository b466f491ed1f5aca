import anndata
import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.slides.thumbnail import (
    read_thumbnail,
    smaller_entry,
    spatial_entry,
    write_thumbnail,
)
from histogep.spots.places import place_on_slides

matplotlib.use("Agg")
WIDTH_PX, HEIGHT_PX = 6000, 4000


def draw(places):
    """Return a slide of 600 x 400 px, white, with a dark square of 300 level-0 px at each place."""
    pixels = np.full((400, 600, 3), 255, np.uint8)
    for x, y in np.round(np.asarray(places) / 10).astype(int):
        pixels[y - 15 : y + 15, x - 15 : x + 15] = 40
    return pixels


def table_of(slide, places, tmp_path, *, scale=1):
    """Write a table with the image that shows its places, as the rules write theirs."""
    data = anndata.AnnData(
        np.arange(len(places), dtype=np.float32)[:, None] + 1,
        obs=pd.DataFrame({"row": [0, 0, 2], "col": [0, 4, 0]}, index=list("abc")),
        var=pd.DataFrame(index=["G"]),
        obsm={"spatial": np.asarray(places, float)},
    )
    pixels = np.kron(draw(places), np.ones((scale, scale, 1), np.uint8))
    entry = spatial_entry(pixels, slide=slide, width_px=WIDTH_PX, spot_px=200)
    data.uns = {"spatial": entry, "lattice": Lattice("st", 200.0, 200.0).to_settings()}
    data.write_h5ad(tmp_path / f"{slide}.h5ad")
    return tmp_path / f"{slide}.h5ad"


PLACES = {
    "S1": [(1000, 800), (3000, 800), (1000, 1800)],
    "S2": [(2000, 900), (4000, 900), (2000, 1900)],
}


def test_squidpy_draws_a_file_as_it_is(tmp_path):
    """Each circle lies in the middle of what the image shows there."""
    import squidpy as sq

    path = table_of("S1", PLACES["S1"], tmp_path)
    axes = sq.pl.spatial_scatter(anndata.read_h5ad(path), color="G", return_ax=True)
    (image,), (circles, *_) = axes.get_images(), axes.collections
    shown = np.asarray(image.get_array())[..., 0] < 100
    label, n = ndimage.label(shown)
    found = sorted((x, y) for y, x in ndimage.center_of_mass(shown, label, range(1, n + 1)))
    boxes = [path.get_extents() for path in circles.get_paths()]
    centres = sorted(tuple((box.min + box.max) / 2) for box in boxes)
    assert n == 3
    assert np.asarray(centres) == pytest.approx(np.asarray(found), abs=1)
    assert boxes[0].width == pytest.approx(20, rel=0.01)  # 200 level-0 px


def test_predictions_of_several_sections_have_the_places_and_images_of_their_spots(tmp_path):
    import squidpy as sq

    spots = [table_of(slide, places, tmp_path, scale=2) for slide, places in PLACES.items()]
    # The order of the rows is another, and S2 has a position without a spot.
    obs = pd.DataFrame(
        {
            "slide": ["S2", "S1", "S2", "S1", "S1", "S2", "S2"],
            "barcode": ["c", "b", "a", "a", "c", "b", ""],
            "row": [2, 0, 0, 0, 2, 0, 2],
            "col": [0, 4, 0, 0, 0, 4, 4],
        },
        index=[f"p{i}" for i in range(7)],
    )
    table = anndata.AnnData(np.ones((7, 1), np.float32), obs=obs, var=pd.DataFrame(index=["G"]))
    place_on_slides(table, spots)
    wanted = [PLACES[s]["abc".index(b)] if b else (4000, 1900) for s, b in obs.values[:, :2]]
    assert table.obsm["spatial"] == pytest.approx(np.asarray(wanted, float))
    for slide, places in PLACES.items():
        entry = table.uns["spatial"][slide]
        # Averaged on the way down, so that edges are grey.
        off = np.abs(entry["images"]["hires"].astype(int) - draw(places))
        assert (off > 10).mean() < 0.005
        assert entry["scalefactors"]["tissue_hires_scalef"] == 0.1
    table.write_h5ad(tmp_path / "predictions.h5ad")
    read = anndata.read_h5ad(tmp_path / "predictions.h5ad")
    axes = sq.pl.spatial_scatter(read, color="G", library_key="slide", return_ax=True)
    assert len(np.ravel(axes)) == 2
    obs.loc["p1", "barcode"] = "x"
    with pytest.raises(InputError, match="1 spots of section S1 are not in .*S1.h5ad"):
        place_on_slides(anndata.AnnData(obs=obs), spots)
    with pytest.raises(InputError, match="no spots of section S2"):
        place_on_slides(table, spots[:1])


def test_a_smaller_image_keeps_its_scale():
    pixels = np.asarray(Image.effect_noise((1000, 500), 60).convert("RGB"))
    entry = smaller_entry(spatial_entry(pixels, slide="S", width_px=20_000, spot_px=110))["S"]
    assert entry["images"]["hires"].shape == (300, 600, 3)
    assert entry["scalefactors"]["tissue_hires_scalef"] == pytest.approx(600 / 20_000)
    assert entry["scalefactors"]["spot_diameter_fullres"] == 110
    again = smaller_entry({"S": entry})
    assert (again["S"]["images"]["hires"] == entry["images"]["hires"]).all()
    with pytest.raises(InputError, match="2 entries"):
        smaller_entry({"S": entry, "T": entry})


def test_a_thumbnail_comes_back_and_a_damaged_one_is_named(tmp_path):
    pixels = np.asarray(Image.linear_gradient("L").convert("RGB"))
    for name in "ab":
        write_thumbnail(pixels, tmp_path / f"{name}.jpg")
    assert np.abs(read_thumbnail(tmp_path / "a.jpg").astype(int) - pixels).max() <= 4
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:900])
    with pytest.raises(InputError, match="b.jpg is damaged"):
        read_thumbnail(tmp_path / "b.jpg")
    with pytest.raises(InputError, match=r"no\.jpg does not exist"):
        read_thumbnail(tmp_path / "no.jpg")
