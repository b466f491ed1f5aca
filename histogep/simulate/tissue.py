"""The tissue of a simulated slide: its outline, its compartments and the fields inside them.

Everything is drawn on a coarse grid of `GRID_UM`; the image and the spots both read from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from histogep.simulate.cohort import Composition

GRID_UM = 8.0
#: Compartments, in the order of the codes of `Tissue.compartment`; outside the tissue is -1.
COMPARTMENTS = ("clone_a", "clone_b", "stroma", "immune", "fat")
CLONE_A, CLONE_B, STROMA, IMMUNE, FAT = range(5)
#: Radius in um of a Visium spot.
SPOT_RADIUS_UM = 27.5
_TISSUE_SHARE = (0.64, 0.74)


@dataclass(frozen=True)
class Tissue:
    """Maps of one slide, all of shape (rows, columns) of the coarse grid.

    Attributes
    ----------
    width_um, height_um
        Size of the slide in um.
    compartment
        Code of `COMPARTMENTS`, -1 outside the tissue; int8.
    lymphocytes
        Share of lymphocytes among the cells, 0..1: in the tumour its infiltration, 0 elsewhere.
    b_cells
        Share of B cells among the lymphocytes, 0..1.
    vessels
        Density of vessels in the stroma, 0..1.
    hypoxia, stress
        Smooth fields 0..1 that follow no compartment; hypoxia deepens the eosin, stress is
        invisible.
    """

    width_um: float
    height_um: float
    compartment: np.ndarray
    lymphocytes: np.ndarray
    b_cells: np.ndarray
    vessels: np.ndarray
    hypoxia: np.ndarray
    stress: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """Where there is tissue."""
        return self.compartment >= 0

    def shares(self) -> dict[str, float]:
        """Return the share of the tissue area that each compartment covers."""
        codes = self.compartment[self.mask]
        return {name: float(np.mean(codes == i)) for i, name in enumerate(COMPARTMENTS)}

    def around(self, field: np.ndarray, x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
        """Return the mean of a field over the spot around each point."""
        reach = int(SPOT_RADIUS_UM // GRID_UM)
        dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        inside = np.hypot(dy, dx) * GRID_UM <= SPOT_RADIUS_UM
        rows = np.floor(y_um / GRID_UM).astype(int)[:, None] + dy[inside]
        cols = np.floor(x_um / GRID_UM).astype(int)[:, None] + dx[inside]
        height, width = field.shape
        values = field[np.clip(rows, 0, height - 1), np.clip(cols, 0, width - 1)]
        return values.mean(axis=1, dtype=np.float64)

    def composition(self, x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
        """Return the share (point, compartment) of cells in the spot around each point.

        The lymphocytes inside the tumour count as immune. Rows sum to 1, or are 0 where a spot
        touches no tissue.
        """
        tumour = (self.compartment == CLONE_A) | (self.compartment == CLONE_B)
        shares = []
        for code in range(len(COMPARTMENTS)):
            share = (self.compartment == code).astype(np.float64)
            if code in (CLONE_A, CLONE_B):
                share *= 1 - self.lymphocytes
            elif code == IMMUNE:
                share += tumour * self.lymphocytes
            shares.append(self.around(share, x_um, y_um))
        shares = np.stack(shares, axis=1)
        total = shares.sum(axis=1, keepdims=True)
        return np.divide(shares, total, out=np.zeros_like(shares), where=total > 0)

    def states(self, x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
        """Return the shares (point, state) of `histogep.simulate.counts.STATES`."""
        shares = self.composition(x_um, y_um)
        b_cells = self.around(self.b_cells, x_um, y_um)
        vessels = 0.5 * self.around(self.vessels, x_um, y_um)
        return np.stack(
            [
                shares[:, CLONE_A],
                shares[:, CLONE_B],
                shares[:, STROMA] * (1 - vessels),
                shares[:, FAT],
                shares[:, IMMUNE] * (1 - b_cells),
                shares[:, IMMUNE] * b_cells,
                shares[:, STROMA] * vessels,
            ],
            axis=1,
        )


def grow_tissue(
    composition: Composition, *, width_um: float, height_um: float, rng: np.random.Generator
) -> Tissue:
    """Return the tissue of one slide.

    Compartments are where smooth random fields exceed the quantile that gives each the area that
    the composition asks for: first the tumour and in it clone B, then fat away from the tumour,
    then immune infiltrates near it; the rest is stroma.

    Parameters
    ----------
    composition
        What the tissue consists of.
    width_um, height_um
        Size of the slide in um.
    rng
        Random stream of the slide's tissue.
    """
    shape = int(np.ceil(height_um / GRID_UM)), int(np.ceil(width_um / GRID_UM))
    mask = _outline(shape, rng)
    compartment = np.full(shape, -1, np.int8)
    compartment[mask] = STROMA

    tumour = _highest(_field(shape, 150.0, rng), mask, composition.tumour)
    clone_b = _highest(_field(shape, 170.0, rng), tumour, composition.clone_b)
    compartment[tumour] = CLONE_A
    compartment[clone_b] = CLONE_B

    away_um = ndimage.distance_transform_edt(~tumour) * GRID_UM
    rest = mask & ~tumour
    fat = _highest(
        _field(shape, 130.0, rng) + 0.4 * _standard(away_um, rest),
        rest,
        composition.fat / max(1 - composition.tumour, 1e-6),
    )
    compartment[fat] = FAT
    rest &= ~fat
    immune = _highest(
        _field(shape, 125.0, rng) - 0.3 * _standard(away_um, rest),
        rest,
        composition.immune_area / max(1 - composition.tumour - composition.fat, 1e-6),
    )
    compartment[immune] = IMMUNE

    smooth = _field(shape, 170.0, rng)
    lymphocytes = composition.infiltration * np.exp(0.5 * smooth - 0.125)
    lymphocytes = np.where(tumour, np.clip(lymphocytes, 0, 0.6), 0.0)
    return Tissue(
        width_um=width_um,
        height_um=height_um,
        compartment=compartment,
        lymphocytes=lymphocytes.astype(np.float32),
        b_cells=_unit(_field(shape, 160.0, rng)),
        vessels=_unit(_field(shape, 160.0, rng)),
        hypoxia=_unit(_field(shape, 200.0, rng)),
        stress=_unit(_field(shape, 200.0, rng)),
    )


def _outline(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return an irregular blob, in a third of the slides torn in two, without specks and holes."""
    y, x = (np.linspace(-1, 1, n) for n in shape)
    # A squarish disc whose edge a field roughens; the margin of the slide stays free.
    radius = (np.abs(x[None, :]) ** 3 + np.abs(y[:, None]) ** 3) ** (1 / 3)
    height = -1.2 * radius + 0.11 * _field(shape, 120.0, rng) + 0.02 * _field(shape, 30.0, rng)
    if rng.random() < 1 / 3:
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.2, 0.2)
        across = np.cos(angle) * x[None, :] + np.sin(angle) * y[:, None] - offset
        across = across + 0.08 * _field(shape, 150.0, rng)
        height = height - 1.2 * np.exp(-((across / 0.07) ** 2))
    share = rng.uniform(*_TISSUE_SHARE)
    border = radius > 0.96
    mask = (height >= np.quantile(height, 1 - share)) & ~border
    labels, n_pieces = ndimage.label(mask)
    if n_pieces > 1:
        areas = np.bincount(labels.ravel())[1:]
        mask = np.isin(labels, 1 + np.flatnonzero(areas >= 0.12 * areas.sum()))
    return ndimage.binary_fill_holes(mask)


def _field(shape: tuple[int, int], scale_um: float, rng: np.random.Generator) -> np.ndarray:
    """Return a Gaussian random field of mean 0 and variance about 1."""
    sigma = scale_um / GRID_UM / np.sqrt(2)
    noise = rng.standard_normal(shape).astype(np.float32)
    return ndimage.gaussian_filter(noise, sigma, mode="reflect") * np.float32(
        2 * np.sqrt(np.pi) * sigma
    )


def _highest(field: np.ndarray, inside: np.ndarray, share: float) -> np.ndarray:
    """Return the `share` of the cells of `inside` where the field is highest."""
    if not inside.any():
        return np.zeros_like(inside)
    return inside & (field > np.quantile(field[inside], np.clip(1 - share, 0, 1)))


def _standard(field: np.ndarray, inside: np.ndarray) -> np.ndarray:
    values = field[inside]
    return (field - values.mean()) / max(values.std(), 1e-9) if len(values) else field * 0


def _unit(field: np.ndarray) -> np.ndarray:
    """Return a field squeezed to 0..1."""
    return (1 / (1 + np.exp(-2.5 * field))).astype(np.float32)
