"""Files of simulated slides: the pyramid, and for a section its Space Ranger folder and truth."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyvips
from scipy import sparse

from histogep.files import complete, write_json, write_tsv
from histogep.lattice import Lattice
from histogep.simulate.cohort import Composition, stream
from histogep.simulate.counts import Expression, simulate_counts, write_10x_h5
from histogep.simulate.image import MPP, paint_slide, slide_size_px
from histogep.simulate.tissue import CLONE_A, CLONE_B, COMPARTMENTS, Tissue, grow_tissue
from histogep.slides.pictures import save_pyramid

#: Settings of `simulation` and their defaults; rows and columns are those of the lattice.
DEFAULTS: dict[str, float] = {
    "section_rows": 20,
    "section_cols": 20,
    "slide_rows": 9,
    "slide_cols": 10,
    "depth": 8000,
}
LATTICE = Lattice("visium", pitch_um=100.0)
MARGIN_UM = 40.0
SPOT_UM = 55.0
HIRES_PX = 600
LOWRES_PX = 300
#: A spot is in tissue when this share of it is.
MIN_TISSUE = 0.5
#: What a pathologist would write; tumour and other tissue about even is left undetermined.
ANNOTATIONS = {
    "clone_a": "invasive cancer",
    "clone_b": "invasive cancer",
    "stroma": "connective tissue",
    "immune": "immune infiltrate",
    "fat": "adipose tissue",
}
UNDETERMINED = "undetermined"
_EVEN = (0.4, 0.6)

log = logging.getLogger(__name__)


def simulate_section(
    slide: str,
    settings: Mapping[str, Any],
    composition: Composition,
    *,
    positions: pd.DataFrame,
    truth: Mapping[str, Any],
    seed: int,
    image: str | Path,
    folder: str | Path,
) -> dict[str, Any]:
    """Write one section: its image and a Space Ranger (2.0 and later) folder with its truth.

    In `folder`: filtered_feature_bc_matrix.h5; spatial/tissue_positions.csv with every position of
    the array, scalefactors_json.json, tissue_hires_image.png; annotation.tsv (barcode, label);
    truth.tsv (barcode, compartment, clone, and the share of each compartment in the spot).

    Parameters
    ----------
    slide
        Id as `histogep.simulate.cohort.simulate_sheets` gives it.
    settings
        The section `simulation` of the configuration; `DEFAULTS` fill it up.
    composition
        What the tissue consists of, as `histogep.simulate.cohort.slide_composition` designs it.
    positions
        gene, chromosome, start, end of every gene.
    truth
        As `histogep.simulate.genes.plant_truth` gives it.
    seed
        Seed of the study.
    image, folder
        Where to write.

    Returns
    -------
    dict
        n_spots, mean_counts, width and height in px, and the share of each compartment.
    """
    settings = DEFAULTS | dict(settings)
    n_rows, n_cols = int(settings["section_rows"]), int(settings["section_cols"])
    tissue = _tissue(slide, composition, n_rows, n_cols, seed=seed)
    spots = _array(tissue, n_rows, n_cols, rng=stream(seed, "barcodes", slide))
    inside = spots[spots["in_tissue"] == 1].sort_values("barcode", ignore_index=True)
    counts, shares = _measure(
        tissue,
        inside,
        Expression.from_truth(positions, dict(truth)),
        depth=float(settings["depth"]),
        rng=stream(seed, "counts", slide),
    )
    folder = Path(folder)
    scales = write_pyramid(
        paint_slide(tissue, rng=stream(seed, "image", slide)),
        slide_size_px(tissue),
        image,
        hires=folder / "spatial" / "tissue_hires_image.png",
    )
    write_10x_h5(
        counts,
        positions["gene"].to_numpy(),
        inside["barcode"].to_numpy(),
        folder / "filtered_feature_bc_matrix.h5",
    )
    with complete(folder / "spatial" / "tissue_positions.csv") as temporary:
        columns = ["barcode", "in_tissue", "array_row", "array_col"]
        pixels = ["pxl_row_in_fullres", "pxl_col_in_fullres"]
        spots[columns + pixels].to_csv(temporary, index=False)
    diameter_px = SPOT_UM / MPP
    write_json(
        {**scales, "spot_diameter_fullres": diameter_px, "fiducial_diameter_fullres": diameter_px},
        folder / "spatial" / "scalefactors_json.json",
    )
    table = _truth_table(inside["barcode"], shares)
    write_tsv(table, folder / "truth.tsv")
    write_tsv(_annotation(table), folder / "annotation.tsv")
    width, height = slide_size_px(tissue)
    summary = {
        "n_spots": len(inside),
        "mean_counts": float(counts.sum() / max(len(inside), 1)),
        "width": width,
        "height": height,
        "shares": tissue.shares(),
    }
    log.info("section %s: %s", slide, json.dumps(summary))
    return summary


def simulate_slide(
    slide: str,
    settings: Mapping[str, Any],
    composition: Composition,
    *,
    seed: int,
    image: str | Path,
    truth: str | Path,
) -> dict[str, Any]:
    """Write one slide without spots: its image, and as JSON what it consists of.

    Parameters
    ----------
    slide
        Id as `histogep.simulate.cohort.simulate_sheets` gives it.
    settings
        The section `simulation` of the configuration; `DEFAULTS` fill it up.
    composition
        What the tissue consists of, as `histogep.simulate.cohort.slide_composition` designs it.
    seed
        Seed of the study.
    image, truth
        Where to write the pyramid and the JSON.

    Returns
    -------
    dict
        slide, composition (as designed), shares (of the tissue area, as drawn), width and height
        in px.
    """
    settings = DEFAULTS | dict(settings)
    n_rows, n_cols = int(settings["slide_rows"]), int(settings["slide_cols"])
    tissue = _tissue(slide, composition, n_rows, n_cols, seed=seed)
    size = slide_size_px(tissue)
    write_pyramid(paint_slide(tissue, rng=stream(seed, "image", slide)), size, image)
    summary = {
        "slide": slide,
        "composition": composition.to_settings(),
        "shares": tissue.shares(),
        "width": size[0],
        "height": size[1],
    }
    write_json(summary, truth)
    log.info("slide %s: %s", slide, json.dumps(summary))
    return summary


def write_pyramid(
    bands: Iterator[np.ndarray],
    size: tuple[int, int],
    path: str | Path,
    *,
    hires: str | Path | None = None,
) -> dict[str, float]:
    """Write bands of an image as a tiled pyramidal TIFF that states its pixel size.

    The bands pass through a raw file beside the output, so that memory holds one at a time.

    Parameters
    ----------
    bands
        Arrays (rows, width, 3) uint8 from top to bottom.
    size
        Width and height in px.
    path
        The TIFF.
    hires
        Where to write a PNG of at most `HIRES_PX`, if anywhere.

    Returns
    -------
    dict
        tissue_hires_scalef and tissue_lowres_scalef.
    """
    width, height = size
    path = Path(path)
    with complete(path) as temporary:
        raw = temporary.with_suffix(".raw")
        try:
            with open(raw, "wb") as handle:
                for band in bands:
                    handle.write(np.ascontiguousarray(band).data)
            # Both tell pyvips nothing of the file's name, so that the same image is the same bytes.
            source = pyvips.Image.rawload(str(raw), width, height, 3, access="sequential")
            save_pyramid(source, temporary, mpp=MPP)
            if hires is not None:
                whole = pyvips.Image.rawload(str(raw), width, height, 3, access="sequential")
                small = whole.copy(interpretation="srgb").thumbnail_image(HIRES_PX, height=HIRES_PX)
                with complete(hires) as temporary_png:
                    small.pngsave(str(temporary_png), keep="none")
        finally:
            raw.unlink(missing_ok=True)
    longest = max(size)
    return {
        "tissue_hires_scalef": min(1.0, HIRES_PX / longest),
        "tissue_lowres_scalef": min(1.0, LOWRES_PX / longest),
    }


def _tissue(slide: str, composition: Composition, n_rows: int, n_cols: int, *, seed: int) -> Tissue:
    width_um = (n_cols + 0.5) * LATTICE.pitch_um + 2 * MARGIN_UM
    height_um = (n_rows - 1) * LATTICE.row_um + LATTICE.pitch_um + 2 * MARGIN_UM
    return grow_tissue(
        composition,
        width_um=width_um,
        height_um=height_um,
        rng=stream(seed, "tissue", slide),
    )


def _array(tissue: Tissue, n_rows: int, n_cols: int, *, rng: np.random.Generator) -> pd.DataFrame:
    """Return every position of the array, with its place in um and in px."""
    row, col = np.divmod(np.arange(n_rows * n_cols), n_cols)
    x_um, y_um = LATTICE.centres_um(row, col)
    x_um, y_um = x_um + MARGIN_UM, y_um + MARGIN_UM
    covered = tissue.around(tissue.mask.astype(np.float32), x_um, y_um)
    return pd.DataFrame(
        {
            "barcode": _barcodes(len(row), rng),
            "in_tissue": (covered >= MIN_TISSUE).astype(int),
            "array_row": row,
            "array_col": 2 * col + row % 2,
            "pxl_row_in_fullres": y_um / MPP,
            "pxl_col_in_fullres": x_um / MPP,
            "x_um": x_um,
            "y_um": y_um,
        }
    ).round({"pxl_row_in_fullres": 3, "pxl_col_in_fullres": 3})


def _barcodes(count: int, rng: np.random.Generator) -> list[str]:
    """Return distinct barcodes of 16 bases and the suffix of Space Ranger."""
    found: dict[str, None] = {}
    while len(found) < count:
        letters = np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, (count, 16))]
        found.update(dict.fromkeys(f"{bases.tobytes().decode()}-1" for bases in letters))
    return list(found)[:count]


def _measure(
    tissue: Tissue,
    spots: pd.DataFrame,
    expression: Expression,
    *,
    depth: float,
    rng: np.random.Generator,
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return the counts of spots and the shares (spot, compartment) they come from."""
    x_um, y_um = spots["x_um"].to_numpy(), spots["y_um"].to_numpy()
    fields = {
        "hypoxia": tissue.around(tissue.hypoxia, x_um, y_um),
        "stress": tissue.around(tissue.stress, x_um, y_um),
    }
    counts = simulate_counts(expression, tissue.states(x_um, y_um), fields, depth=depth, rng=rng)
    return counts, tissue.composition(x_um, y_um)


def _truth_table(barcodes: pd.Series, shares: np.ndarray) -> pd.DataFrame:
    """Return what each spot mostly is, a tumour spot by the clone that prevails in it."""
    tumour = shares[:, [CLONE_A, CLONE_B]].sum(axis=1)
    others = np.delete(np.arange(len(COMPARTMENTS)), [CLONE_A, CLONE_B])
    other = others[shares[:, others].argmax(axis=1)]
    clone = np.where(shares[:, CLONE_A] >= shares[:, CLONE_B], CLONE_A, CLONE_B)
    is_tumour = tumour >= shares[:, others].max(axis=1)
    code = np.where(is_tumour, clone, other)
    names = np.array(COMPARTMENTS, dtype=object)[code]
    table = pd.DataFrame({"barcode": barcodes.to_numpy(), "compartment": names})
    table["clone"] = [name[-1].upper() if name.startswith("clone_") else "" for name in names]
    for index, name in enumerate(COMPARTMENTS):
        table[f"share_{name}"] = shares[:, index]
    return table


def _annotation(truth: pd.DataFrame) -> pd.DataFrame:
    """Return a pathologist's words for each spot."""
    # Lymphocytes in the tumour do not make a spot less of one: compare with the other tissue.
    other = truth[["share_stroma", "share_fat"]].sum(axis=1)
    tumour = truth[["share_clone_a", "share_clone_b"]].sum(axis=1)
    share = tumour / np.maximum(tumour + other, 1e-9)
    even = share.between(*_EVEN) & (truth["share_immune"] < 0.5) & (tumour > 0.15)
    label = truth["compartment"].map(ANNOTATIONS).where(~even, UNDETERMINED)
    return pd.DataFrame({"barcode": truth["barcode"], "label": label})
