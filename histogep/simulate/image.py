"""H&E-like images of simulated tissue, painted in horizontal bands so that any size fits in memory.

Two stains are laid down as optical densities and mixed by Beer and Lambert's law. Eosin is a
texture per compartment (fibres, vacuoles, granular cytoplasm); haematoxylin is one stamp per
nucleus, from a bank of shapes that differs between the compartments in size, elongation,
irregularity, chromatin and density. Densities are coded as integers, `CODE_PER_OD` to the unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from histogep.simulate.tissue import (
    CLONE_A,
    CLONE_B,
    COMPARTMENTS,
    FAT,
    GRID_UM,
    IMMUNE,
    STROMA,
    Tissue,
)

MPP = 0.5
CODE_PER_OD = 100.0
#: Optical density in red, green and blue of a unit of each stain (natural logarithm).
HAEMATOXYLIN = (0.66, 0.70, 0.28)
EOSIN = (0.13, 0.88, 0.46)
BAND_PX = 512
#: Wide slides are painted in lower bands, of about this many px.
_BAND_AREA_PX = 4_000_000
#: Period in px of the eosin textures; a smooth displacement hides that they repeat.
PERIOD = 512
_COARSE = round(GRID_UM / MPP)
#: The compartments are refined to blocks of this many px before painting.
_BLOCK = 4
_BACKGROUND = len(COMPARTMENTS)
_ANGLES = 16


@dataclass(frozen=True)
class NucleusKind:
    """How the nuclei of one kind look.

    Attributes
    ----------
    per_mm2
        Density.
    length_um, width_um
        Mean axes.
    spread
        Standard deviation of the logarithm of the size.
    lobes
        Irregularity of the outline, relative to the radius.
    darkness
        Optical density of haematoxylin.
    vesicular
        0: chromatin even; 1: pale inside with a dark rim and nucleoli.
    """

    per_mm2: float
    length_um: float
    width_um: float
    spread: float
    lobes: float
    darkness: float
    vesicular: float


#: Nuclei of the compartments and, last, the lymphocytes between tumour cells.
NUCLEI: dict[int, NucleusKind] = {
    CLONE_A: NucleusKind(4200, 8.2, 7.2, 0.10, 0.04, 1.00, 0.15),
    CLONE_B: NucleusKind(2500, 13.5, 10.5, 0.26, 0.14, 1.25, 0.85),
    STROMA: NucleusKind(1000, 15.0, 3.4, 0.18, 0.05, 1.05, 0.10),
    IMMUNE: NucleusKind(11500, 6.0, 5.6, 0.07, 0.03, 1.60, 0.25),
    FAT: NucleusKind(2500, 9.0, 2.6, 0.10, 0.03, 1.20, 0.0),
}
#: Densities of eosin and of haematoxylin outside the nuclei, by compartment; last the background.
_EOSIN = (0.42, 0.36, 0.58, 0.26, 0.55, 0.010)
_CYTOPLASM = (0.10, 0.22, 0.02, 0.20, 0.00, 0.004)
_LYMPHOCYTE = -1


@dataclass
class _Stamps:
    """Nuclei of one kind on a slide: where, and which patch of the bank."""

    x: np.ndarray
    y: np.ndarray
    patch: np.ndarray
    bank: list[np.ndarray] = field(repr=False)


def slide_size_px(tissue: Tissue) -> tuple[int, int]:
    """Return width and height in px of the image of a slide."""
    return round(tissue.width_um / MPP), round(tissue.height_um / MPP)


def paint_slide(tissue: Tissue, *, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Paint a slide from top to bottom.

    Parameters
    ----------
    tissue
        What is on the slide.
    rng
        Random stream of the slide's image: stain, textures and nuclei.

    Yields
    ------
    numpy.ndarray
        Band (rows, width, 3) uint8 of at most `BAND_PX` rows.
    """
    width, height = slide_size_px(tissue)
    colours = _stain_table(rng)
    shift_y, shift_x = _displacement(tissue.compartment.shape, rng)
    theta = rng.uniform(0, np.pi)
    textures = _textures(theta, rng)
    stamps = [
        _scatter(kind, tissue, textures, theta, shift_y, shift_x, rng)
        for kind in (*NUCLEI, _LYMPHOCYTE)
    ]
    vessels = _scatter_vessels(tissue, rng)
    grain = rng.integers(-3, 4, (PERIOD, PERIOD + 389), dtype=np.int16)
    cytoplasm = (np.array(_CYTOPLASM) * CODE_PER_OD).astype(np.float32)
    columns = np.arange(0, width + _BLOCK, _BLOCK)
    shares = _soften(tissue.compartment)
    smooth = ndimage.gaussian_filter(tissue.hypoxia, 1.0)
    noise = rng.normal(0, 0.06, (257, 263)).astype(np.float32)
    band = min(BAND_PX, max(64, _BAND_AREA_PX // width // 64 * 64))
    for top in range(0, height, band):
        n_rows = min(band, height - top)
        rows = np.arange(top, top + n_rows + _BLOCK, _BLOCK)
        code = _refine(shares, rows, columns, noise)
        dy = _bilinear(shift_y, rows, columns).astype(np.int32)
        dx = _bilinear(shift_x, rows, columns).astype(np.int32)
        depth = 0.85 + 0.35 * _bilinear(smooth, rows, columns)
        blocks = [_enlarge(a, n_rows, width) for a in (code, dy, dx, depth.astype(np.float32))]
        code, dy, dx, depth = blocks
        y = (np.arange(top, top + n_rows, dtype=np.int32)[:, None] + dy) & (PERIOD - 1)
        x = (np.arange(width, dtype=np.int32)[None, :] + dx) & (PERIOD - 1)
        index = (code.astype(np.int32) * PERIOD + y) * PERIOD + x
        eosin = np.take(textures.reshape(-1), index) * depth
        nuclei, overlay = np.zeros((2, n_rows, width), np.uint8)
        for kind in stamps:
            _stamp(nuclei, kind, top)
        if len(vessels.x):
            _stamp(overlay, vessels, top)
        density = nuclei * np.float32(1 / CODE_PER_OD)
        eosin *= 1 - 0.55 * np.minimum(density, 1)
        haematoxylin = cytoplasm[code] * depth + nuclei
        if overlay.any():
            vessel = overlay > 0
            eosin[vessel] = overlay[vessel]
            haematoxylin[vessel] = 2
        grained = _tiled(grain, top, n_rows, width)
        eosin += grained
        haematoxylin += np.roll(grained, 7, axis=1) * 0.7
        first = np.clip(haematoxylin, 0, 255).astype(np.uint16) << 8
        first |= np.clip(eosin, 0, 255).astype(np.uint8)
        yield np.take(colours, first, axis=0)


def _stain_table(rng: np.random.Generator) -> np.ndarray:
    """Return the colour (65536, 3) of each pair of codes, with this slide's own staining."""
    strength = np.exp(rng.normal(0, 0.06, 2))
    vectors = np.array([HAEMATOXYLIN, EOSIN]) * np.exp(rng.normal(0, 0.03, (2, 3)))
    od = np.arange(256) / CODE_PER_OD
    density = od[:, None, None] * strength[0] * vectors[0] + od[:, None] * strength[1] * vectors[1]
    glass = 243 + 3 * rng.random(3)
    return np.round(glass * np.exp(-density)).astype(np.uint8).reshape(-1, 3)


def _displacement(
    shape: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return smooth shifts (y, x) in px of the textures on the coarse grid, gentle in slope."""
    fields = []
    for _ in range(2):
        value = ndimage.gaussian_filter(rng.standard_normal(shape), 13.0, mode="reflect")
        fields.append((value * 2 * np.sqrt(np.pi) * 13.0 * 42.0).astype(np.float32))
    return fields[0], fields[1]


def _textures(theta: float, rng: np.random.Generator) -> np.ndarray:
    """Return the eosin codes (compartment and background, PERIOD, PERIOD) as float32."""
    fine, coarse = _periodic(1.6, rng), _periodic(9.0, rng)
    cells = _cell_edges(6, rng)
    # Nests of clone A: packed cells between thin pink septa; B: sheets, granular and pale.
    septa = np.exp(-((cells / 5.0) ** 2))
    textures = np.empty((_BACKGROUND + 1, PERIOD, PERIOD), np.float32)
    textures[CLONE_A] = _EOSIN[CLONE_A] * (1 + 0.10 * fine + 0.08 * coarse + 0.55 * septa)
    textures[CLONE_B] = _EOSIN[CLONE_B] * (1 + 0.16 * fine + 0.22 * coarse)
    fibres = _fibres(theta, rng)
    textures[STROMA] = _EOSIN[STROMA] * np.clip(1 + 0.34 * fibres + 0.06 * fine, 0.15, 2.2)
    textures[IMMUNE] = _EOSIN[IMMUNE] * (1 + 0.15 * fine + 0.1 * coarse)
    walls = _cell_edges(5, rng)
    wall = 1 / (1 + np.exp((walls - 5.0) / 1.0))
    textures[FAT] = _EOSIN[FAT] * wall * (1 + 0.15 * fine) + 0.015
    textures[_BACKGROUND] = _EOSIN[_BACKGROUND]
    return textures * np.float32(CODE_PER_OD)


def _periodic(sigma_px: float, rng: np.random.Generator) -> np.ndarray:
    """Return standardised smooth noise that repeats every PERIOD px."""
    noise = ndimage.gaussian_filter(
        rng.standard_normal((PERIOD, PERIOD)).astype(np.float32), sigma_px, mode="wrap"
    )
    return noise / noise.std()


def _fibres(theta: float, rng: np.random.Generator) -> np.ndarray:
    """Return standardised periodic noise drawn out along the angle `theta`."""
    fy, fx = np.meshgrid(np.fft.fftfreq(PERIOD), np.fft.rfftfreq(PERIOD), indexing="ij")
    along = fx * np.cos(theta) + fy * np.sin(theta)
    across = -fx * np.sin(theta) + fy * np.cos(theta)
    spectrum = np.exp(-((along * 190) ** 2)) * (
        np.exp(-((across * 9) ** 2)) + 1.6 * np.exp(-((across * 28) ** 2))
    )
    white = np.fft.rfft2(rng.standard_normal((PERIOD, PERIOD)).astype(np.float32))
    noise = np.fft.irfft2(white * spectrum, s=(PERIOD, PERIOD)).astype(np.float32)
    return noise / noise.std()


def _cell_edges(per_side: int, rng: np.random.Generator) -> np.ndarray:
    """Return the distance in px to the border between the cells of a periodic Voronoi pattern."""
    pitch = PERIOD / per_side
    y, x = np.divmod(np.arange(per_side**2), per_side)
    centres = (np.stack([y, x], 1) + 0.5 + rng.uniform(-0.33, 0.33, (per_side**2, 2))) * pitch
    axis = np.arange(0, PERIOD, 4) + 2.0
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    distance, _ = cKDTree(centres % PERIOD, boxsize=PERIOD).query(points, k=2)
    edge = ((distance[:, 1] - distance[:, 0]) / 2).reshape(len(axis), len(axis))
    grown = np.repeat(np.repeat(edge, 4, 0), 4, 1).astype(np.float32)
    return ndimage.uniform_filter(grown, 4, mode="wrap")


def _scatter(
    kind: int,
    tissue: Tissue,
    textures: np.ndarray,
    theta: float,
    shift_y: np.ndarray,
    shift_x: np.ndarray,
    rng: np.random.Generator,
) -> _Stamps:
    """Place the nuclei of one kind on a jittered hexagonal lattice over its compartment."""
    lymphocyte = kind == _LYMPHOCYTE
    look = NUCLEI[IMMUNE if lymphocyte else kind]
    x, y = _jittered(tissue, look.per_mm2, rng)
    row, col = (y // _COARSE).astype(int), (x // _COARSE).astype(int)
    code = tissue.compartment[row, col]
    chance = rng.random(len(x))
    keep = chance < 0.55 * tissue.lymphocytes[row, col] if lymphocyte else code == kind
    if kind in (CLONE_A, CLONE_B):
        keep &= chance > 0.6 * tissue.lymphocytes[row, col]
    if kind in (CLONE_A, FAT):
        ty = (y.astype(int) + shift_y[row, col].astype(int)) % PERIOD
        tx = (x.astype(int) + shift_x[row, col].astype(int)) % PERIOD
        eosin = textures[kind, ty, tx]
        keep &= eosin < 130 * _EOSIN[CLONE_A] if kind == CLONE_A else eosin > 70 * _EOSIN[FAT]
    x, y, row, col = x[keep], y[keep], row[keep], col[keep]
    angle = rng.uniform(0, np.pi, len(x))
    if kind == STROMA:
        # A fibre is a line of equal phase of the displaced texture; follow its slope.
        slope_y, slope_x = np.gradient(shift_y, _COARSE), np.gradient(shift_x, _COARSE)
        sin, cos = np.sin(theta), np.cos(theta)
        along_x = -sin * (1 + slope_x[1][row, col]) + cos * slope_y[1][row, col]
        along_y = -sin * slope_x[0][row, col] + cos * (1 + slope_y[0][row, col])
        angle = np.arctan2(-along_x, along_y) + rng.normal(0, 0.15, len(x))
    per_angle = 6
    bank = _nucleus_bank(look, per_angle, rng)
    turn = np.round(angle / np.pi * _ANGLES).astype(int) % _ANGLES
    return _Stamps(x, y, turn * per_angle + rng.integers(0, per_angle, len(x)), bank)


def _jittered(
    tissue: Tissue, per_mm2: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return points (x, y) in px of a jittered hexagonal lattice over the slide."""
    width, height = slide_size_px(tissue)
    pitch = np.sqrt(2 / np.sqrt(3) / per_mm2) * 1000 / MPP
    n_rows, n_cols = int(height / (pitch * 0.866)) + 1, int(width / pitch) + 1
    row, col = np.divmod(np.arange(n_rows * n_cols), n_cols)
    jitter = rng.uniform(-0.34, 0.34, (2, len(row))) * pitch
    x = (col + 0.5 * (row % 2)) * pitch + jitter[0]
    y = row * 0.866 * pitch + jitter[1]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return x[inside], y[inside]


def _nucleus_bank(look: NucleusKind, per_angle: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return patches of haematoxylin codes: `_ANGLES` directions times `per_angle` shapes."""
    bank = []
    for turn in range(_ANGLES):
        for _ in range(per_angle):
            size = np.exp(rng.normal(0, look.spread))
            half_long, half_wide = np.array([look.length_um, look.width_um]) / 2 / MPP * size
            half_wide *= np.exp(rng.normal(0, look.spread / 2))
            reach = int(np.ceil(max(half_long, half_wide) * 1.35)) + 2
            y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
            angle = turn * np.pi / _ANGLES
            u = (x * np.cos(angle) + y * np.sin(angle)) / half_long
            v = (-x * np.sin(angle) + y * np.cos(angle)) / half_wide
            radius, around = np.hypot(u, v), np.arctan2(v, u)
            outline = 1.0
            for order in (1, 2, 3, 4):
                wave = np.cos(order * around + rng.uniform(0, 2 * np.pi))
                outline = outline + look.lobes * rng.normal() * wave * 1.5 / order
            inside = radius / np.clip(outline, 0.6, 1.5)
            sharp = min(half_long, half_wide)
            shape = 1 / (1 + np.exp(np.clip((inside - 1) * sharp / 0.7, -30, 30)))
            clumps = ndimage.gaussian_filter(rng.standard_normal(shape.shape), 1.3)
            clumps /= clumps.std()
            chromatin = 1 + (0.10 + 0.12 * look.vesicular) * clumps
            chromatin *= 1 - 0.55 * look.vesicular * np.clip(1 - (inside / 0.85) ** 4, 0, 1)
            for _ in range(rng.integers(1, 3) if look.vesicular > 0.5 else 0):
                centre = rng.uniform(-0.4, 0.4, 2)
                spot = np.hypot((u - centre[0]) * half_long, (v - centre[1]) * half_wide)
                chromatin += 0.75 * np.exp(-((spot / 2.3) ** 2))
            code = look.darkness * np.exp(rng.normal(0, 0.10)) * CODE_PER_OD * shape * chromatin
            bank.append(np.clip(code, 0, 255).astype(np.uint8))
    return bank


def _scatter_vessels(tissue: Tissue, rng: np.random.Generator) -> _Stamps:
    """Place vessels in the stroma where the vessel field is high."""
    x, y = _jittered(tissue, 130.0, rng)
    row, col = (y // _COARSE).astype(int), (x // _COARSE).astype(int)
    keep = tissue.compartment[row, col] == STROMA
    keep &= rng.random(len(x)) < np.clip(1.6 * tissue.vessels[row, col] - 0.4, 0, 1)
    x, y = x[keep], y[keep]
    bank = []
    for _ in range(24):
        half = rng.uniform(7, 19, 2) / MPP
        reach = int(half.max() * 1.3) + 2
        v, u = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
        turn = rng.uniform(0, np.pi)
        along, across = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
        radius = np.hypot(along / half[0], across / half[1])
        around = np.arctan2(across, along)
        radius = radius / (1 + 0.06 * np.cos(3 * around + rng.uniform(0, 6)))
        patch = np.where(radius < 1, 4, 0)
        wall = (radius < 1) & (radius > 1 - 5 / half.min())
        patch[wall] = 78
        for _ in range(int(half.prod() / 90)):
            # Red cells: discs of 7 um inside the lumen.
            a, r = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform(0, 0.4))
            cell = np.hypot(along - r * half[0] * np.cos(a), across - r * half[1] * np.sin(a))
            patch[(cell < 6.5) & (radius < 0.8)] = 120
        bank.append(patch.astype(np.uint8))
    return _Stamps(x, y, rng.integers(0, len(bank), len(x)), bank)


def _stamp(canvas: np.ndarray, stamps: _Stamps, top: int) -> None:
    """Lay patches on a band that starts at row `top`, darkest on top."""
    n_rows, width = canvas.shape
    reach = max((patch.shape[0] for patch in stamps.bank), default=0) // 2 + 1
    near = np.flatnonzero((stamps.y > top - reach) & (stamps.y < top + n_rows + reach))
    for x, y, which in zip(
        stamps.x[near].astype(int).tolist(),
        stamps.y[near].astype(int).tolist(),
        stamps.patch[near].tolist(),
        strict=True,
    ):
        patch = stamps.bank[which]
        half = patch.shape[0] // 2
        y0, x0 = y - top - half, x - half
        y1, x1 = y0 + patch.shape[0], x0 + patch.shape[1]
        if y0 < 0 or x0 < 0 or y1 > n_rows or x1 > width:
            patch = patch[max(0, -y0) : n_rows - y0, max(0, -x0) : width - x0]
            y0, x0, y1, x1 = max(0, y0), max(0, x0), min(y1, n_rows), min(x1, width)
            if y1 <= y0 or x1 <= x0:
                continue
        view = canvas[y0:y1, x0:x1]
        np.maximum(view, patch, out=view)


def _soften(compartment: np.ndarray) -> list[np.ndarray]:
    """Return the smoothed presence of each compartment and, last, of the background."""
    codes = (*range(_BACKGROUND), -1)
    present = ((compartment == code).astype(np.float32) for code in codes)
    return [ndimage.gaussian_filter(share, 0.9, mode="nearest") for share in present]


def _refine(
    shares: list[np.ndarray], rows: np.ndarray, columns: np.ndarray, noise: np.ndarray
) -> np.ndarray:
    """Return the compartment of each block, with the steps of the coarse grid rounded off."""
    best = np.full((len(rows), len(columns)), -1.0, np.float32)
    code = np.zeros(best.shape, np.uint8)
    wobble = noise[np.ix_((rows // _BLOCK) % noise.shape[0], (columns // _BLOCK) % noise.shape[1])]
    for index, share in enumerate(shares):
        value = _bilinear(share, rows, columns) + (wobble if index % 2 else -wobble)
        higher = value > best
        best[higher] = value[higher]
        code[higher] = index
    return code


def _bilinear(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return a field of the coarse grid at the centres of blocks that start at given px."""
    for axis, start in ((0, rows), (1, columns)):
        place = np.clip((start + _BLOCK / 2) / _COARSE - 0.5, 0, values.shape[axis] - 1)
        low = np.minimum(place.astype(int), values.shape[axis] - 2)
        part = (place - low).astype(np.float32)
        part = part[:, None] if axis == 0 else part[None, :]
        values = np.take(values, low, axis) * (1 - part) + np.take(values, low + 1, axis) * part
    return values


def _enlarge(blocks: np.ndarray, n_rows: int, width: int) -> np.ndarray:
    return np.repeat(np.repeat(blocks, _BLOCK, axis=0), _BLOCK, axis=1)[:n_rows, :width]


def _tiled(pattern: np.ndarray, top: int, n_rows: int, width: int) -> np.ndarray:
    """Return a periodic pattern over a band, row `top` on its first line."""
    rows = np.arange(top, top + n_rows) % pattern.shape[0]
    repeats = -(-width // pattern.shape[1])
    return np.tile(pattern[rows], (1, repeats))[:, :width]
