"""Encode the tiles of a slide: read ahead in the background, encode in batches, write on the way.

Memory depends on the batch, not on the slide. On the CPU each thread encodes batches of its own,
small enough for the cache, so that the features do not depend on the number of threads. What runs
the networks is behind `TileEncoder`: OpenVINO on a CPU (`histogep.encoders.exported`), torch on a
GPU (`histogep.encoders.networks`).
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from histogep.encoders.batches import encode_on_cpu, encode_on_gpu
from histogep.encoders.descriptors import DescriptorEncoder
from histogep.encoders.exported import CPU_BATCH, read_exported
from histogep.encoders.feature_file import FeatureWriter, tile_attributes
from histogep.encoders.given_features import GivenFeatures, match_given
from histogep.encoders.tile_pixels import TILE_PX, read_tiles
from histogep.errors import BadSlide, InputError
from histogep.lattice import Lattice
from histogep.progress import progress
from histogep.slides.reader import Slide
from histogep.study.encoder_choices import DESCRIPTORS, block_name

log = logging.getLogger(__name__)

#: Tiles encoded at once on a GPU: what keeps it busy.
GPU_BATCH = 256


class TileEncoder(Protocol):
    """What turns tiles into features: descriptors, or a network on some device."""

    @property
    def name(self) -> str:
        """Name of the block of features."""

    @property
    def dim(self) -> int:
        """Number of features."""

    @property
    def sha256(self) -> str:
        """Digest of the weights, or of the code of descriptors."""

    @property
    def input_px(self) -> int:
        """Side in px of the tiles that `prepare` takes."""

    @property
    def precision(self) -> str:
        """Numbers that the network computes in, such as "float32"."""

    def prepare(self, tiles: np.ndarray) -> Any:
        """Return what `start` takes of uint8 tiles (n, side, side, 3): work of reading threads."""

    def start(self, prepared: Any) -> Callable[[], np.ndarray]:
        """Start the work on a batch; what is returned waits for its features (n, dim) float32."""


def open_encoders(
    settings: Sequence[Mapping[str, Any]],
    *,
    exported: Mapping[str, str | Path],
    threads: int,
    cuda: bool,
) -> list[TileEncoder]:
    """Return the encoders of a study, except precomputed ones, ready to run.

    Parameters
    ----------
    settings
        The setting `encoders`, complete.
    exported
        Description of each encoder that `histogep.encoders.exported` wrote, by its name: on a CPU
        these run, but for those in bfloat16, which torch runs everywhere.
    threads
        CPU threads.
    cuda
        Whether to use the GPU.
    """
    encoders: list[TileEncoder] = []
    for each in settings:
        name = block_name(each["name"])
        if each.get("precomputed"):
            continue
        if each["name"] == DESCRIPTORS:
            encoders.append(DescriptorEncoder())
        elif not cuda and name in exported:
            encoders.append(read_exported(exported[name], threads=threads))
        else:
            import torch

            from histogep.encoders.load import load_encoder
            from histogep.encoders.networks import place_encoder

            device = torch.device("cuda" if cuda else "cpu")
            encoders.append(place_encoder(load_encoder(each), device))
    return encoders


@dataclasses.dataclass(frozen=True)
class GivenBlock:
    """Features that are not computed here, one row for each tile of the slide.

    No white tile was encoded with them; their mean, which is not informative, stands in for it.
    """

    name: str
    values: np.ndarray
    input_px: int
    sha256: str = "precomputed"
    precision: str = "as given"

    @property
    def dim(self) -> int:
        """Number of features."""
        return self.values.shape[1]


def given_block(
    name: str, given: GivenFeatures, tiles: pd.DataFrame, *, slide: Slide
) -> tuple[pd.DataFrame, GivenBlock]:
    """Return the tiles that lie in a patch of given features, and the features of these.

    Raises
    ------
    InputError
        If a spot lies in no patch, or fewer than half of the tiles do: the
        features are of other tissue.
    """
    row = match_given(given, tiles["x_px"].to_numpy(), tiles["y_px"].to_numpy(), slide=slide)
    found = row >= 0
    lost = tiles["barcode"].astype(str)[~found]
    if (lost != "").any() or found.sum() < 0.5 * len(tiles):
        raise InputError(
            f"{given.path} has a patch for {found.sum()} of the {len(tiles)} tiles of slide "
            f"{slide.slide}: give features of all of its tissue (and of every spot), or let the "
            "workflow encode it"
        )
    block = GivenBlock(name, given.values[row[found]], given.patch_px)
    return tiles[found].reset_index(drop=True), block


def encode_slide(
    slide: Slide,
    tiles: pd.DataFrame,
    path: str | Path,
    *,
    lattice: Lattice,
    encoders: Sequence[TileEncoder | GivenBlock],
    threads: int = 1,
    cuda: bool = False,
    batch_size: int | None = None,
) -> float:
    """Write the features of all tiles of a slide, in their order.

    Parameters
    ----------
    slide
        The slide.
    tiles
        row, col, x_px, y_px (level-0 centres) and barcode of the tiles.
    path
        The HDF5 file, complete or absent.
    lattice
        Gives the side of a tile in um, and wider squares around it that are encoded as well.
    encoders
        Their features lie side by side, in this order, those of wider squares after all of the tile;
        those of a `GivenBlock` are copied, and are of the tile only.
    threads
        CPU threads.
    cuda
        Whether to use the GPU.
    batch_size
        Tiles at once; `CPU_BATCH` or `GPU_BATCH` by default.

    Returns
    -------
    float
        Tiles per second.
    """
    if len(tiles) == 0:
        raise BadSlide(
            f"slide {slide.slide} has no tiles to encode: lower tissue.min_tissue, "
            "or leave the slide out of the sheet"
        )
    names = [encoder.name for encoder in encoders]
    if not names or len(set(names)) != len(names):
        raise InputError(f"encoders: name at least one, and each once (got {', '.join(names)})")
    batch_size = batch_size or (GPU_BATCH if cuda else CPU_BATCH)
    computed = [encoder for encoder in encoders if not isinstance(encoder, GivenBlock)]
    given = [encoder for encoder in encoders if isinstance(encoder, GivenBlock)]
    views = lattice.views if computed else lattice.views[:1]
    # (side of the square in um, what its names end in, encoders): one for each block of columns.
    blocks = [
        (um, suffix, encoder)
        for um, suffix in views
        for encoder in (computed if suffix else encoders)
    ]
    sides_px = [um / slide.mpp for um, _ in views]
    centres = np.column_stack([tiles[name].to_numpy(np.float64) for name in ("x_px", "y_px")])
    started = time.perf_counter()
    with FeatureWriter(
        path,
        slide=slide.slide,
        row=tiles["row"].to_numpy(),
        col=tiles["col"].to_numpy(),
        coords=np.round(centres - sides_px[0] / 2).astype(np.int64),
        barcode=tiles["barcode"].astype(str).tolist(),
        blocks=[(encoder.name + suffix, encoder.dim) for _, suffix, encoder in blocks],
        lattice=lattice.to_settings(),
        encoders=[
            {
                "name": encoder.name + suffix,
                "sha256": encoder.sha256,
                "dim": encoder.dim,
                "mpp": um / encoder.input_px,
                "precision": encoder.precision,
            }
            for um, suffix, encoder in blocks
        ],
        attributes=tile_attributes(
            slide=slide.slide,
            mpp=slide.mpp,
            tile_um=lattice.tile_um,
            pitch_um=lattice.pitch_um,
            width_px=slide.width_px,
            height_px=slide.height_px,
            objective=slide.objective,
            tile_px=TILE_PX,
        ),
    ) as writer:
        white = np.full((1, TILE_PX, TILE_PX, 3), 255, np.uint8)
        own = _checked(encode_batch(white, computed), computed)
        means = [block.values.mean(0)[None] for block in given]
        writer.set_white(_side_by_side([own] * len(views), encoders, means)[0])

        def read(rows: slice) -> list[list[Any]]:
            views = (
                read_tiles(slide, centres[rows] - side / 2, side, size=TILE_PX) for side in sides_px
            )
            return [[encoder.prepare(view) for encoder in computed] for view in views]

        def written() -> Iterator[None]:
            starts = range(0, len(tiles), batch_size)
            batches = [slice(at, min(at + batch_size, len(tiles))) for at in starts]
            encode = partial(_start, encoders=computed)
            encoded: Iterable[list[np.ndarray]]
            if computed:
                slide.handle  # noqa: B018 - opened once, before the threads
                on_device = encode_on_gpu if cuda else encode_on_cpu
                encoded = on_device(batches, read, encode, threads=threads)
            else:
                encoded = ([np.zeros((rows.stop - rows.start, 0))] for rows in batches)
            for rows, own in zip(batches, encoded, strict=True):
                values = [block.values[rows] for block in given]
                writer.append(_side_by_side(own, encoders, values))
                yield from (None for _ in range(rows.stop - rows.start))

        for _ in progress(written(), total=len(tiles), unit="tile", what="encode"):
            pass
    speed = len(tiles) / (time.perf_counter() - started)
    log.info(
        "%d tiles of %s um, %.1f tiles/s on %s (%s)",
        len(tiles),
        " and ".join(f"{um:g}" for um, _ in views),
        speed,
        "cuda" if cuda else "cpu",
        ", ".join(f"{encoder.name} {encoder.precision}" for encoder in encoders),
    )
    return speed


def _checked(features: np.ndarray, encoders: Sequence[TileEncoder]) -> np.ndarray:
    """Return the features of a tile, if an encoder gives as many as it says, and all finite."""
    if features.shape[1] != sum(encoder.dim for encoder in encoders):
        raise InputError(
            f"encoders: a tile has {features.shape[1]} features of "
            f"{' + '.join(f'{e.name} ({e.dim})' for e in encoders)}"
        )
    if not np.isfinite(features).all():
        raise InputError(
            f"encoders: the features of a white tile are not finite "
            f"({', '.join(e.name for e in encoders)}): the weights of a network are wrong"
        )
    return features


def _side_by_side(
    computed: Sequence[np.ndarray],
    encoders: Sequence[TileEncoder | GivenBlock],
    given: Sequence[np.ndarray],
) -> np.ndarray:
    """Return the columns of all blocks in order, from those computed for each view and those given."""
    first, *wider = computed
    columns, start, waiting = [], 0, iter(given)
    for encoder in encoders:
        if isinstance(encoder, GivenBlock):
            columns.append(next(waiting))
        else:
            columns.append(first[:, start : start + encoder.dim])
            start += encoder.dim
    return np.concatenate([*columns, *wider], axis=1)


def encode_batch(tiles: np.ndarray, encoders: Sequence[TileEncoder]) -> np.ndarray:
    """Return the features (n, sum of dims) float32 of uint8 RGB tiles (n, height, width, 3)."""
    if not encoders:
        return np.zeros((len(tiles), 0), np.float32)
    return _start([encoder.prepare(tiles) for encoder in encoders], encoders=encoders)()


def _start(prepared: Sequence[Any], *, encoders: Sequence[TileEncoder]) -> Callable[[], np.ndarray]:
    """Start all encoders on a batch; what is returned waits for them and gives the features."""
    waiting = [encoder.start(part) for encoder, part in zip(encoders, prepared, strict=True)]
    return lambda: np.concatenate([finish() for finish in waiting], axis=1)
