"""Predicted slides as maps: a few gene programmes and the tumour probability on the lattice."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histogep.errors import InputError
from histogep.inputs.barcodes import PRIMARY, leave_out, patient_of
from histogep.lattice import Lattice
from histogep.slides.same_file import find_copies, image_of
from histogep.spots.matrices import read_h5ad

log = logging.getLogger(__name__)

#: Most tiles of one slide for fitting the programmes, so that large slides do not dominate.
_TILES_PER_SLIDE = 200


@dataclass(frozen=True)
class SlideMap:
    """The tiles of one slide.

    Attributes
    ----------
    slide, patient
        Ids; the patient of a TCGA barcode has 12 characters.
    row, col
        Position on the lattice, (n,).
    lattice
        Lattice of the tiles.
    values
        (n, g + 1) float32: predictable genes (log1p CP10k), and the tumour probability (0 without
        a tumour map).
    """

    slide: str
    patient: str
    row: np.ndarray
    col: np.ndarray
    lattice: Lattice
    values: np.ndarray


@dataclass(frozen=True)
class Programmes:
    """Principal components of the genes over tiles, and the tumour probability, as map channels.

    Attributes
    ----------
    centre, axes
        Of the values, (g + 1,) and (g + 1, channels); a projection has mean 0 and sd 1 over the
        tiles that it was fitted on.
    """

    centre: np.ndarray
    axes: np.ndarray

    @classmethod
    def fit(cls, maps: Sequence[SlideMap], *, components: int, seed: int) -> Programmes:
        """Fit on some tiles of every slide.

        Parameters
        ----------
        maps
            Slides of the training patients, and of nobody else.
        components
            Principal components of the genes.
        seed
            Of the choice of tiles.
        """
        rng = np.random.default_rng([seed, 19])
        tiles = []
        for item in maps:
            rows = rng.permutation(len(item.values))[:_TILES_PER_SLIDE]
            tiles.append(item.values[np.sort(rows)].astype(np.float64))
        values = np.concatenate(tiles)
        centre = values.mean(axis=0)
        genes = values[:, :-1] - centre[:-1]
        width = values.shape[1]
        axes = np.zeros((width, 0))
        if width > 1:
            _, spread, directions = np.linalg.svd(genes, full_matrices=False)
            kept = directions[:components][spread[:components] > 1e-9 * max(spread[0], 1e-9)]
            kept = kept * np.sign(kept[np.arange(len(kept)), np.abs(kept).argmax(axis=1)])[:, None]
            axes = np.concatenate([kept.T, np.zeros((1, len(kept)))])
        tumour = np.zeros((width, 1))
        tumour[-1] = 1
        axes = np.concatenate([axes, tumour], axis=1)
        sd = ((values - centre) @ axes).std(axis=0)
        return cls(centre, axes / np.where(sd > 1e-9, sd, 1.0))

    def project(self, item: SlideMap) -> np.ndarray:
        """Return the channels of every tile of a slide, (n, channels) float32."""
        return ((item.values - self.centre) @ self.axes).astype(np.float32)


def read_slide_maps(
    expression: Sequence[str | Path],
    *,
    slides: Sequence[str],
    slide_patients: Sequence[str],
    patients: Collection[str],
    side: int,
    sample_types: Sequence[str] = PRIMARY,
) -> list[SlideMap]:
    """Return the maps of the slides of some patients, of every patient at least one.

    Parameters
    ----------
    expression, slides, slide_patients
        As for `histogep.outcome.patients.summarise_patients`.
    patients
        Patients whose slides are wanted; the other files are not opened.
    side
        Longest side of a map in positions: tiles of a larger slide are averaged in blocks, whose
        lattice counts as square.
    sample_types
        As for `histogep.outcome.patients.summarise_patients`.

    Raises
    ------
    InputError
        A patient without a slide, or slides predicted by different models.
    """
    owners = [patient_of(patient) for patient in slide_patients]
    left_out = leave_out(slides, owners, sample_types=sample_types)
    wanted = set(patients)
    candidates = [
        (path, slide, owner)
        for path, slide, owner in zip(expression, slides, owners, strict=True)
        if owner in wanted and slide not in left_out
    ]
    images = [image_of(path) for path, _, _ in candidates]
    copies = find_copies(
        images, slides=[c[1] for c in candidates], slide_patients=[c[2] for c in candidates]
    )
    maps, models = [], {}
    for path, slide, owner in candidates:
        if slide in copies:
            continue
        data = read_h5ad(path)
        if not data.n_obs:
            continue
        models[str(data.uns.get("model_digest", ""))] = path
        genes = data[:, data.var["predictable"].to_numpy(bool)].X
        genes = genes.toarray() if hasattr(genes, "toarray") else np.asarray(genes)
        tumour = np.nan_to_num(data.obs["tumour"].to_numpy(np.float32))
        item = SlideMap(
            slide=slide,
            patient=owner,
            row=data.obs["row"].to_numpy(np.int32),
            col=data.obs["col"].to_numpy(np.int32),
            lattice=Lattice(
                kind=str(data.uns["lattice"]["kind"]),
                pitch_um=float(data.uns["lattice"]["pitch_um"]),
                tile_um=float(data.uns["lattice"]["tile_um"]),
            ),
            values=np.column_stack([genes, tumour]).astype(np.float32),
        )
        maps.append(coarsen(item, side=side))
    if len(models) > 1:
        raise InputError(
            f"{' and '.join(map(str, models.values()))} were predicted by different models; "
            "predict both with one"
        )
    absent = sorted(wanted - {item.patient for item in maps})
    if absent:
        raise InputError(f"no slide with tiles of patients {', '.join(absent[:10])}")
    return maps


def coarsen(item: SlideMap, *, side: int) -> SlideMap:
    """Return a slide of at most `side` positions a side: block means where it is larger."""
    row, col = item.row - item.row.min(), item.col - item.col.min()
    factor = -(-(max(int(row.max()), int(col.max())) + 1) // side)
    if factor <= 1:
        return item
    width = int(col.max()) // factor + 1
    blocks, place = np.unique(row // factor * width + col // factor, return_inverse=True)
    sums = np.zeros((len(blocks), item.values.shape[1]))
    np.add.at(sums, place, item.values)
    means = sums / np.bincount(place)[:, None]
    log.info("slide %s: %d x %d tiles averaged to one position", item.slide, factor, factor)
    pitch = item.lattice.pitch_um * factor
    lattice = Lattice(kind="square", pitch_um=pitch, tile_um=pitch)
    rows, cols = np.divmod(blocks, width)
    return SlideMap(
        item.slide,
        item.patient,
        rows.astype(np.int32),
        cols.astype(np.int32),
        lattice,
        means.astype(np.float32),
    )


def canvases(maps: Sequence[SlideMap]) -> list[np.ndarray]:
    """Return where each tile lies on a common canvas, turned and flipped as its lattice allows.

    Returns
    -------
    list of ndarray
        One (slides, rows, cols) int64 per symmetry, the identity first: the place of a tile in the
        slides' concatenated tiles, -1 where there is none. A symmetry that needs a larger canvas
        for some slide leaves this slide as it is.
    """
    shapes = [
        (int(np.ptp(m.row)) + 2, int(np.ptp(m.col)) + 2) for m in maps
    ]  # a flip of the hexagonal lattice may need one more
    rows, cols = max(s[0] for s in shapes), max(s[1] for s in shapes)
    starts = np.cumsum([0, *(len(m.row) for m in maps)])
    n_symmetries = min(len(m.lattice.symmetries()) for m in maps)
    results = []
    for number in range(n_symmetries):
        canvas = np.full((len(maps), rows, cols), -1, np.int64)
        for at, item in enumerate(maps):
            symmetries = item.lattice.symmetries()
            row, col = item.lattice.transform(item.row, item.col, symmetries[number])
            if row.max() >= rows or col.max() >= cols:
                row, col = item.lattice.transform(item.row, item.col, symmetries[0])
            canvas[at, row, col] = starts[at] + np.arange(len(row))
        results.append(canvas)
    return results
