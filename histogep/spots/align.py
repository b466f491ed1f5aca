"""Spots of a section in the pixels of its slide, checked against lattice, pixel size and tissue.

Everything downstream trusts these places, so what can be checked is checked here: that counts and
positions are of the same section, that rows and columns fit the lattice of the study, that the
pitch of the spots agrees with the pixel size of the slide, and that the spots lie on tissue.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from histogep.errors import BadSlide, InputError
from histogep.lattice import KINDS, Lattice
from histogep.slides.reader import Slide
from histogep.slides.thumbnail import HIRES_PX, spatial_entry
from histogep.slides.tissue import TissueMask
from histogep.spots.matrices import wrong_counts
from histogep.spots.normalise import add_expression
from histogep.spots.quality import measure_quality
from histogep.spots.readers import RawSection, is_legacy, read_positions
from histogep.spots.space_ranger import bin_folder, find_matrix, find_positions
from histogep.warned import decides

log = logging.getLogger(__name__)
#: How far apart the slide and its spots may say a pixel is, as a ratio.
_MOST_MPP_RATIO = 1.4
#: What goes with a kind of lattice, as a remedy says it.
_USUAL_PITCH = {"visium": " and pitch_um to 100", "st": " and pitch_um to 200"}

#: Spots off the fitted lattice by more than this share of the pitch are on another one.
MAX_RESIDUAL = 0.25
#: Pitch along x and y may differ by this factor before rows and columns are on another lattice.
MAX_STRETCH = 1.15
#: Scale factors of the smaller images that Space Ranger writes, and their names.
_SMALLER_IMAGES = {
    "tissue_hires_scalef": "tissue_hires_image.png",
    "tissue_lowres_scalef": "tissue_lowres_image.png",
}
#: Share of an image, in either direction, that the spots of its array span at least.
_LEAST_SPAN = 0.2
#: By how much more spots must lie on tissue before another way to place them is named.
_BETTER_SHARE = 0.1
#: Farthest row or column of any array; beyond it numbers are no indices.
_MAX_INDEX = 100_000


@dataclass(frozen=True)
class LatticeFit:
    """How the spots of a section lie on a lattice.

    Attributes
    ----------
    pitch_px
        Distance in level-0 px of neighbouring spots; NaN if the spots are too few to tell.
    residual
        Root mean square distance of spots from the fitted lattice, as a share of the pitch.
    stretch
        Ratio of the larger to the smaller scale along the two main axes; 1 without distortion.
    rotation_deg
        Turn of the columns' axis against the x axis of the slide, in degrees.
    mirrored
        Whether the slide shows the array from behind.
    """

    pitch_px: float
    residual: float
    stretch: float
    rotation_deg: float
    mirrored: bool

    @property
    def fits(self) -> bool:
        """Whether the spots lie on the lattice, or are too few to say."""
        return not (self.residual > MAX_RESIDUAL or self.stretch > MAX_STRETCH)


def fit_lattice(
    lattice: Lattice, row: np.ndarray, col: np.ndarray, x_px: np.ndarray, y_px: np.ndarray
) -> LatticeFit:
    """Return the affine map from a lattice to the slide that fits best (least squares).

    All spots take part, so that a jitter of single spots does not bias the pitch, as it does the
    median distance to the nearest spot (of hand-placed legacy spots too small by some per cent).

    Parameters
    ----------
    lattice
        The lattice.
    row, col
        Grid indices of the spots.
    x_px, y_px
        Their centres in level-0 px.
    """
    x_um, y_um = lattice.centres_um(row, col)
    design = np.column_stack([x_um, y_um, np.ones(len(x_um))])
    if len(row) < 3 or np.linalg.matrix_rank(design - [*design[0, :2], 0]) < 3:
        return LatticeFit(np.nan, np.nan, np.nan, np.nan, False)
    target = np.column_stack([x_px, y_px]).astype(np.float64)
    solution, *_ = np.linalg.lstsq(design, target, rcond=None)
    matrix = solution[:2].T
    determinant = float(np.linalg.det(matrix))
    scales = np.linalg.svd(matrix, compute_uv=False)
    pitch_px = float(np.sqrt(abs(determinant)) * lattice.pitch_um)
    distance = np.sqrt(((design @ solution - target) ** 2).sum(axis=1).mean())
    with np.errstate(divide="ignore", invalid="ignore"):
        return LatticeFit(
            pitch_px=pitch_px,
            residual=float(distance / np.float64(pitch_px)),
            stretch=float(scales[0] / scales[1]),
            rotation_deg=float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))),
            mirrored=determinant < 0,
        )


def grid_indices(raw: RawSection, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return grid row and column (int32) of the spots on a lattice of a kind."""
    row = raw.table["array_row"].to_numpy()
    col = raw.table["array_col"].to_numpy()
    if kind == "visium" and not raw.grid:
        col = col // 2
    if len(row) and (min(row.min(), col.min()) < 0 or max(row.max(), col.max()) > _MAX_INDEX):
        raise InputError(
            f"{raw.source}: rows {row.min()} to {row.max()} and columns {col.min()} to {col.max()} "
            f"are not places of an array; they must be whole numbers from 0 to {_MAX_INDEX}"
        )
    return row.astype(np.int32), col.astype(np.int32)


def align_spots(
    raw: RawSection,
    slide: Slide | None,
    mask: TissueMask | None,
    *,
    lattice: Lattice,
    settings: Mapping[str, Any],
) -> anndata.AnnData:
    """Return the in-tissue spots of a section in the pixels of its slide.

    Nothing is said yet about whether they lie on the tissue: draw them, then call
    `check_alignment`.

    Parameters
    ----------
    raw
        What `histogep.spots.readers.read_section` read.
    slide
        The slide whose level-0 pixels the positions are in; None to look at the counts alone: nothing
        is then held against an image, and the pitch of the spots gives the pixel size.
    mask
        Its tissue; None if there is none, and every spot counts as on tissue.
    lattice
        The lattice of the study.
    settings
        min_counts: spots with fewer counts are dropped; mpp_tolerance: relative difference of
        pixel sizes that is warned of.

    Returns
    -------
    AnnData
        X raw counts (CSR, float32); layers log1p_cp10k (`histogep.spots.normalise`); obs array_row,
        array_col, row, col, in_tissue, on_tissue, total_counts, n_genes_by_counts, pct_counts_mt
        (`histogep.spots.quality`); var gene_id, gene_ids, mitochondrial; obsm spatial (x, y in
        level-0 px); uns spatial (as squidpy reads it), lattice, slide, source, mpp, mpp_estimates,
        lattice_fit, joins
        (what share of counts and positions matched, and on which image).

    Raises
    ------
    InputError
        If a count is no count, the spots are not on the study's lattice, share a cell, or none is
        left.
    """
    _check_counts(raw)
    raw = _in_tissue(raw, settings)
    if slide is not None:
        raw = put_on_smaller_image(raw, slide)
    _check_kind(raw, lattice)
    row, col = grid_indices(raw, lattice.kind)
    table = raw.table
    x_px, y_px = table["x_px"].to_numpy(np.float64), table["y_px"].to_numpy(np.float64)
    shared = pd.DataFrame({"row": row, "col": col}).duplicated(keep=False).to_numpy()
    if shared.any():
        raise InputError(
            f"{raw.source}: spots {', '.join(table.index[shared][:2])} share row "
            f"{row[shared][0]}, column {col[shared][0]} of the {lattice.kind} lattice"
            f"{_better_kind(raw, lattice)}"
        )
    fit = _check_fit(raw, lattice)
    estimates = _pixel_sizes(slide, fit, lattice, tolerance=float(settings["mpp_tolerance"]))

    counts, var = collapse_symbols(raw.counts, raw.genes, raw.gene_ids)
    obs = pd.DataFrame(
        {
            "array_row": table["array_row"].to_numpy(np.int32),
            "array_col": table["array_col"].to_numpy(np.int32),
            "row": row,
            "col": col,
            "in_tissue": True,
            "on_tissue": True if mask is None else mask.contains(x_px, y_px),
        },
        index=pd.Index(table.index.to_numpy(object), name=None),
    )
    spots = anndata.AnnData(
        X=counts.astype(np.float32), obs=obs, var=var, obsm={"spatial": np.c_[x_px, y_px]}
    )
    measure_quality(spots)
    add_expression(spots)
    mpp = slide.mpp if slide is not None else estimates.get("spots", np.nan)
    name = slide.slide if slide is not None else ""
    spots.uns = {
        "slide": name,
        "source": raw.source,
        "lattice": lattice.to_settings(),
        "mpp": mpp,
        "mpp_estimates": estimates,
        "lattice_fit": asdict(fit),
        "joins": "; ".join(raw.notes),
    }
    if slide is not None:
        spots.uns["spatial"] = spatial_entry(
            slide.picture(HIRES_PX),
            slide=name,
            width_px=slide.width_px,
            spot_px=raw.spot_px or lattice.spot_um / mpp,
        )
    log.info(
        "slide %s: %d spots, %d genes, median %d counts; pitch %.2f px, turned by %.1f degrees",
        *(name, spots.n_obs, spots.n_vars, np.median(spots.obs["total_counts"])),
        *(fit.pitch_px, fit.rotation_deg),
    )
    return spots


def put_on_smaller_image(raw: RawSection, slide: Slide) -> RawSection:
    """Return the spots in the pixels of Space Ranger's smaller image, where the slide is that.

    Public data often has only `tissue_hires_image.png`. It is known by its scale: in full pixels
    the spots do not fit the image, and times the scale factor beside the positions all of them do
    and span it as an array spans its image.

    Parameters
    ----------
    raw
        Spots in pixels of the full image.
    slide
        The image that the sheet names.
    """
    if not raw.scales:
        return raw
    places = raw.table[["x_px", "y_px"]].to_numpy(np.float64)
    size = np.array([slide.width_px, slide.height_px])
    if ((places >= 0) & (places < size)).all():
        return raw
    for name, image in _SMALLER_IMAGES.items():
        scale = raw.scales.get(name, 1.0)
        scaled = places * scale
        if (
            scale >= 1
            or not ((scaled >= 0) & (scaled < size)).all()
            or (scaled.max(axis=0) < _LEAST_SPAN * size).any()
        ):
            continue
        note = (
            f"the image is Space Ranger's {image}: {name} {scale:.4g} puts all spots on it; its pixels "
            f"are {slide.mpp:.3g} um, too coarse to show cells: tiles are enlarged"
        )
        log.warning("slide %s: %s", slide.slide, note, **decides("slide"))
        table = raw.table.assign(x_px=scaled[:, 0], y_px=scaled[:, 1])
        spot_px = raw.spot_px * scale if raw.spot_px else None
        return replace(raw, table=table, spot_px=spot_px, notes=(*raw.notes, note))
    return raw


def check_alignment(
    spots: anndata.AnnData, slide: Slide, mask: TissueMask, *, min_on_tissue: float
) -> None:
    """Raise a BadSlide if spots and slide cannot belong together.

    Spots lie outside the slide, they tell quite another pixel size, or too few are on its tissue.

    Parameters
    ----------
    spots
        What `align_spots` returned.
    slide, mask
        The slide and its tissue.
    min_on_tissue
        Least share of the spots whose centre is on the tissue mask.
    """
    x_px, y_px = spots.obsm["spatial"].T
    estimate = spots.uns["mpp_estimates"].get("spots")
    outside = (x_px < 0) | (y_px < 0) | (x_px >= slide.width_px) | (y_px >= slide.height_px)
    if outside.any():
        hint = "they may be in the pixels of another image"
        if estimate and abs(estimate / slide.mpp - 1) > 0.01:
            hint += (
                f" (by their pitch one of {estimate:.3g} um per px; this slide has {slide.mpp:.3g})"
            )
        raise BadSlide(
            f"slide {slide.slide}: {outside.sum()} of {spots.n_obs} spots lie outside the image of "
            f"{slide.width_px} x {slide.height_px} px, such as {spots.obs_names[outside][0]} at "
            f"({x_px[outside][0]:.0f}, {y_px[outside][0]:.0f}); {hint}. Give the full-resolution "
            "image that was handed to Space Ranger (or that the positions were made on)"
        )
    if estimate and max(estimate / slide.mpp, slide.mpp / estimate) > _MOST_MPP_RATIO:
        pitch_um = spots.uns["lattice"]["pitch_um"]
        raise BadSlide(_pitch_differs(slide.slide, slide.mpp, estimate, pitch_um))
    share = float(spots.obs["on_tissue"].mean())
    if spots.uns["lattice_fit"]["mirrored"]:
        exchanged = float(mask.contains(y_px, x_px).mean())
        if exchanged > share + _BETTER_SHARE:
            raise BadSlide(
                f"slide {slide.slide}: the slide shows the array mirrored, {share:.0%} of {spots.n_obs} "
                f"spots lie on tissue, and with x and y exchanged {exchanged:.0%} would: exchange the "
                "columns of the positions (obsm['spatial'] holds x, then y)"
            )
    log.info("slide %s: %.1f %% of the spots lie on tissue", slide.slide, 100 * share)
    if share < min_on_tissue:
        raise BadSlide(
            f"slide {slide.slide}: only {share:.0%} of {spots.n_obs} spots lie on tissue, "
            f"{min_on_tissue:.0%} are needed (spots.min_on_tissue); image and positions do not "
            f"belong together{_better_turn(x_px, y_px, slide, mask, share)}. See the overlay beside "
            "the log"
        )


def check_stated_size(table: pd.DataFrame, *, slide: str, mpp: float, lattice: Lattice) -> None:
    """Raise a BadSlide if the um per px that the sheet states are not those of the spots' pitch.

    The slide is not opened, so this can be done before the first job; `check_alignment` holds the
    spots against the image too. Spots of another lattice are its affair, and so is an image that is
    coarser than the positions' pixels, as Space Ranger's smaller images are.

    Parameters
    ----------
    table
        What `histogep.spots.readers.read_positions` read.
    slide
        Its id.
    mpp
        Um per px; NaN if the sheet does not state it.
    lattice
        The lattice of the study.
    """
    fit = _fit_table(table, lattice)
    if not (mpp > 0 and fit.fits and fit.pitch_px > 0):
        return
    estimate = lattice.pitch_um / fit.pitch_px
    coarse = mpp > estimate and not is_legacy(table)
    if max(estimate / mpp, mpp / estimate) > _MOST_MPP_RATIO and not coarse:
        raise BadSlide(_pitch_differs(slide, mpp, estimate, lattice.pitch_um))


def implied_mpp(
    counts: str | Path, *, positions: str | Path | None, lattice: Lattice
) -> float | None:
    """Return the um per px that the distance of a section's spots implies, before the first job.

    Parameters
    ----------
    counts
        Space Ranger folder or matrix, or a table of counts.
    positions
        Positions, where the sheet names them.
    lattice
        The lattice of the study.

    Returns
    -------
    float or None
        None where positions are not found, cannot be read or do not fit the lattice: what is wrong
        with them is said by the job that aligns them.
    """
    try:
        if not positions:
            counts = Path(counts)
            folder = bin_folder(counts, lattice.pitch_um) if counts.is_dir() else counts.parent
            matrix = find_matrix(folder) if counts.is_dir() else counts
            positions = find_positions(folder, matrix=matrix)
        fit = _fit_table(read_positions(positions), lattice)
    except (InputError, OSError):
        return None
    return lattice.pitch_um / fit.pitch_px if fit.fits and fit.pitch_px > 0 else None


def _fit_table(table: pd.DataFrame, lattice: Lattice) -> LatticeFit:
    row, col = (table[name].to_numpy() for name in ("array_row", "array_col"))
    if lattice.kind == "visium":
        col = col // 2
    return fit_lattice(lattice, row, col, table["x_px"].to_numpy(), table["y_px"].to_numpy())


def _pitch_differs(slide: str, mpp: float, estimate: float, pitch_um: float) -> str:
    return (
        f"slide {slide}: it has {mpp:.4g} um per px, but by lattice.pitch_um {pitch_um:g} and the "
        f"distance of its spots it has {estimate:.4g}: set lattice.pitch_um to the array's (100 for "
        f"Visium, 200 for legacy ST), or mpp in the slide sheet to the image's{_other_scale(mpp, estimate)}"
    )


def collapse_symbols(
    counts: sparse.spmatrix,
    genes: Sequence[str] | np.ndarray,
    gene_ids: Sequence[str] | np.ndarray,
) -> tuple[sparse.csr_matrix, pd.DataFrame]:
    """Return counts with the columns of one symbol summed, and the genes: index symbol, gene_id.

    Symbols keep the order of their first column. Of several Ensembl ids `gene_id` is the one with
    the most counts; `gene_ids` lists all, joined by ";". A gene without a symbol goes by its id.
    """
    ids = pd.Series(list(gene_ids), dtype=object).fillna("").astype(str)
    names = pd.Series(list(genes), dtype=object).fillna("").astype(str).str.strip()
    names = names.where(names != "", ids)
    code, unique = pd.factorize(names)
    counts = sparse.csr_matrix(counts)
    member = sparse.csr_matrix(
        (np.ones(len(code), counts.dtype), (np.arange(len(code)), code)),
        shape=(len(code), len(unique)),
    )
    columns = pd.DataFrame(
        {"code": code, "id": ids, "total": np.asarray(counts.sum(axis=0)).ravel()}
    ).sort_values(["code", "total"], ascending=[True, False], kind="stable")
    by_gene = columns.groupby("code")["id"]
    var = pd.DataFrame(
        {
            "gene_id": by_gene.first().to_numpy(object),
            "gene_ids": by_gene.agg(lambda group: ";".join(i for i in group if i)).to_numpy(object),
        },
        index=pd.Index(unique.astype(object)),
    )
    summed = sparse.csr_matrix(counts @ member)
    summed.sort_indices()
    return summed, var


def _check_counts(raw: RawSection) -> None:
    """Refuse what cannot be raw counts: all later steps count on whole numbers."""
    if wrong := wrong_counts(raw.counts.data):
        raise InputError(f"{raw.source}: {wrong}; give raw counts, not normalised ones")


def _in_tissue(raw: RawSection, settings: Mapping[str, Any]) -> RawSection:
    """Leave out spots beside the tissue and spots with too few counts."""
    least = max(1, int(settings["min_counts"]))
    under_tissue = raw.table["in_tissue"].to_numpy(bool)
    totals = np.asarray(raw.counts.sum(axis=1)).ravel()
    keep = under_tissue & (totals >= least)
    if not keep.any():
        most = f"{totals[under_tissue].max():g}" if under_tissue.any() else "none"
        raise BadSlide(
            f"{raw.source}: none of {len(keep)} spots is left; {under_tissue.sum()} are in tissue, "
            f"the deepest of them has {most} counts, spots.min_counts is {least}"
        )
    log.info(
        "%s: %d spots, %d in tissue, %d of those below %d counts dropped",
        *(raw.source, len(keep), under_tissue.sum(), under_tissue.sum() - keep.sum(), least),
    )
    return replace(raw, counts=raw.counts[keep], table=raw.table[keep])


def _square_grid(raw: RawSection) -> str:
    """Return what a square grid in Space Ranger's layout is, "" for what is none or may be Visium.

    Visium's rows and columns add up to even numbers (or all to odd ones). Tools for other assays, such
    as DBiT-seq, write the same files with every row and column of a square grid.
    """
    if raw.kind not in ("", "visium") or raw.grid:
        return ""
    row, col = (raw.table[name].to_numpy() for name in ("array_row", "array_col"))
    if len(set((row + col) % 2)) < 2:
        return ""
    fit = _fit(raw, Lattice(kind="square"), "square")
    if not (fit.fits and fit.pitch_px > 0):
        return ""
    n_rows, n_cols = (int(part.max() - part.min()) + 1 for part in (row, col))
    return f"a square grid of {n_rows} x {n_cols}, {fit.pitch_px:.4g} px apart"


def _check_kind(raw: RawSection, lattice: Lattice) -> None:
    """Compare what tool and geometry imply with the study's lattice."""
    if grid := _square_grid(raw):
        if lattice.hexagonal:
            raise InputError(
                f"{raw.source} lies on {grid} (as of DBiT-seq), though its files are laid out like "
                "Visium's: set lattice.kind to 'square' and lattice.pitch_um to the distance of its "
                "spots in um (DBiT-seq: twice the width of a channel)"
            )
        log.info("%s lies on %s", raw.source, grid)
        return
    if raw.kind and raw.kind != lattice.kind:
        names = {"visium": "Visium", "st": "legacy ST (XxY)", "square": "Visium HD"}
        pitch = _USUAL_PITCH.get(raw.kind, "")
        raise InputError(
            f"{raw.source} is of a {names[raw.kind]} array but lattice.kind is {lattice.kind!r}: "
            f"set it to {raw.kind!r}{pitch}; a study has one lattice, so other arrays need a study of "
            "their own"
        )
    if raw.bin_um and abs(raw.bin_um / lattice.pitch_um - 1) > 0.01:
        raise InputError(
            f"{raw.source} has bins of {raw.bin_um:g} um but lattice.pitch_um is "
            f"{lattice.pitch_um:g}: set it to {raw.bin_um:g}, or name the folder of the bins wanted"
        )


def _fit(raw: RawSection, lattice: Lattice, kind: str) -> LatticeFit:
    row, col = grid_indices(raw, kind)
    other = Lattice(kind=kind, pitch_um=lattice.pitch_um, tile_um=lattice.tile_um)
    return fit_lattice(other, row, col, raw.table["x_px"], raw.table["y_px"])


def _better_kind(raw: RawSection, lattice: Lattice) -> str:
    """Return a clause that names the kinds of lattice on which the spots would lie, if any."""
    kinds = [
        kind
        for kind in KINDS
        if kind != lattice.kind and (fit := _fit(raw, lattice, kind)).fits and fit.pitch_px > 0
    ]
    return f"; they would fit lattice.kind {' or '.join(map(repr, kinds))}" if kinds else ""


def _check_fit(raw: RawSection, lattice: Lattice) -> LatticeFit:
    fit = _fit(raw, lattice, lattice.kind)
    if not fit.fits:
        raise BadSlide(
            f"{raw.source}: rows and columns of the spots do not fit their pixels on a "
            f"{lattice.kind} lattice (off by {fit.residual:.0%} of the pitch, scales of the axes "
            f"differ by {fit.stretch:.2f}){_better_kind(raw, lattice)}; positions may be of "
            "another section, or sorted apart from their barcodes"
        )
    if fit.mirrored:
        log.warning(
            "%s: the slide shows the array mirrored; was the image flipped, or are x and y of the "
            "spots exchanged?",
            raw.source,
            **decides("slide"),
        )
    return fit


def _pixel_sizes(
    slide: Slide | None, fit: LatticeFit, lattice: Lattice, *, tolerance: float
) -> dict[str, float]:
    """Return the estimates of um per px; warn when the spots tell another size than the slide."""
    estimates = {} if slide is None else {"slide": slide.mpp}
    if np.isfinite(fit.pitch_px) and fit.pitch_px > 0:
        estimates["spots"] = lattice.pitch_um / fit.pitch_px
        if slide is not None and abs(estimates["spots"] / slide.mpp - 1) > tolerance:
            log.warning(
                "slide %s: %.4g um per px, but a pitch of %.4g px says %.4g; check mpp in the "
                "slide sheet and lattice.pitch_um",
                *(slide.slide, slide.mpp, fit.pitch_px, estimates["spots"]),
                **decides("slide"),
            )
    return estimates


def _better_turn(
    x_px: np.ndarray, y_px: np.ndarray, slide: Slide, mask: TissueMask, share: float
) -> str:
    """Return a clause that tells which swap or flip would bring the spots onto the tissue."""
    width, height = slide.width_px, slide.height_px
    tries = {
        "with x and y swapped": (y_px, x_px),
        "flipped left to right": (width - x_px, y_px),
        "flipped top to bottom": (x_px, height - y_px),
        "turned by 180 degrees": (width - x_px, height - y_px),
        "turned by 90 degrees": (height - y_px, x_px),
        "turned by 270 degrees": (y_px, width - x_px),
    }
    found = {name: float(mask.contains(*place).mean()) for name, place in tries.items()}
    name = max(found, key=lambda tried: found[tried])
    return f" ({name} {found[name]:.0%} would)" if found[name] > share + _BETTER_SHARE else ""


def _other_scale(mpp: float, estimate: float) -> str:
    """Return a clause for places that are no level-0 pixels of the slide, "" if they may be."""
    if not 0.97 < estimate < 1.03:
        times = estimate / mpp
        return (
            f"; or the places of the spots are in the pixels of an image {times:.3g} times smaller: "
            "multiply them by that"
            if times > 1
            else ""
        )
    return (
        "; or the places of the spots are um, not pixels: divide them by the pixel size "
        f"({mpp:.4g})"
    )
