"""Encode the tiles of a slide: read ahead in the background, encode in batches, write as it goes.

Memory depends on the batch, not on the slide. On the CPU each thread encodes batches of its own,
small enough for the cache, so that the features do not depend on the number of threads.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from histogep.batches import encode_on_cpu, encode_on_gpu
from histogep.descriptors import describe_tiles
from histogep.encoders import Encoder, LoadedEncoder
from histogep.features import FeatureWriter, tile_attributes
from histogep.fused import fuse_convolutions, pack_weights
from histogep.given_features import GivenFeatures, match_given
from histogep.jobs import BadSlide, InputError, progress
from histogep.lattice import Lattice
from histogep.precision import fast_bfloat16
from histogep.slides import Slide
from histogep.tile_pixels import read_tiles

log = logging.getLogger(__name__)

#: Side in px at which tiles are read.
TILE_PX = 224
#: Tiles encoded at once: what a core's cache holds, and what keeps a GPU busy.
CPU_BATCH, GPU_BATCH = 4, 256
#: Largest difference that folding batch norms may make, as a share of the features' spread.
_FOLD_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class GivenBlock:
    """Features that are not computed here, one row for each tile of the slide.

    Their white tile, which nobody encoded, is their mean: it says nothing.
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
        If a spot lies in no patch, or not half of the tiles do: the features are of other tissue.
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
    encoders: Sequence[LoadedEncoder | GivenBlock],
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
    device = torch.device("cuda" if cuda else "cpu")
    torch.set_num_threads(threads if cuda else 1)
    torch.backends.cudnn.deterministic = True
    batch_size = batch_size or (GPU_BATCH if cuda else CPU_BATCH)
    encoders = [
        encoder if isinstance(encoder, GivenBlock) else place_encoder(encoder, device)
        for encoder in encoders
    ]
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
        own = encode_batch(white, computed, device=device)
        means = [block.values.mean(0)[None] for block in given]
        writer.set_white(_side_by_side([own] * len(views), encoders, means)[0])

        def read(rows: slice) -> list[_Prepared]:
            return [
                _prepare(
                    read_tiles(slide, centres[rows] - side / 2, side, size=TILE_PX),
                    computed,
                    device=device,
                )
                for side in sides_px
            ]

        def written() -> Iterator[None]:
            starts = range(0, len(tiles), batch_size)
            batches = [slice(at, min(at + batch_size, len(tiles))) for at in starts]
            encode = partial(_start, encoders=computed, device=device)
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
        device.type,
        ", ".join(f"{encoder.name} {encoder.precision}" for encoder in encoders),
    )
    return speed


def _side_by_side(
    computed: Sequence[np.ndarray],
    encoders: Sequence[LoadedEncoder | GivenBlock],
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


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A batch of tiles: pixels for the networks (pinned for a GPU), and their descriptors."""

    pixels: torch.Tensor | None
    described: np.ndarray | None


def encode_batch(
    tiles: np.ndarray, encoders: Sequence[LoadedEncoder], *, device: torch.device
) -> np.ndarray:
    """Return the features (n, sum of dims) float32 of uint8 RGB tiles (n, height, width, 3)."""
    if not encoders:
        return np.zeros((len(tiles), 0), np.float32)
    return _start(_prepare(tiles, encoders, device=device), encoders=encoders, device=device)()


def _prepare(
    tiles: np.ndarray, encoders: Sequence[LoadedEncoder], *, device: torch.device
) -> _Prepared:
    pixels = None
    if any(encoder.network is not None for encoder in encoders):
        pixels = torch.from_numpy(tiles)
        if device.type == "cuda":
            pixels = pixels.pin_memory()
    described = any(encoder.network is None for encoder in encoders)
    return _Prepared(pixels, describe_tiles(tiles) if described else None)


def _start(
    batch: _Prepared, *, encoders: Sequence[LoadedEncoder], device: torch.device
) -> Callable[[], np.ndarray]:
    """Start the networks on a batch; what is returned waits for them and gives the features.

    On a GPU copies and networks are queued, so that the next batch can be queued behind them.
    """
    columns: list[torch.Tensor] = []
    done = None
    with torch.inference_mode():
        if batch.pixels is not None:
            pixels = batch.pixels.to(device, non_blocking=True)
            columns = [e.network(pixels).float() for e in encoders if e.network is not None]
        if device.type == "cuda" and columns:
            columns = [values.to("cpu", non_blocking=True) for values in columns]
            done = torch.cuda.Event()
            done.record()

    def finish() -> np.ndarray:
        if done is not None:
            done.synchronize()
        values = iter(columns)
        return np.concatenate(
            [batch.described if e.network is None else next(values).numpy() for e in encoders],
            axis=1,
        )

    return finish


def place_encoder(encoder: LoadedEncoder, device: torch.device) -> LoadedEncoder:
    """Return an encoder on a device: batch norms folded, channels last, in its precision.

    "auto" is bfloat16 on a GPU that multiplies in it, and float32 on every CPU: those of a cluster
    differ in what they can, and a slide's features must not depend on the node that encoded it.
    On the CPU activations are fused into convolutions too. The precision that is in use is recorded
    in the result.
    """
    if encoder.network is None:
        return encoder
    network = fold_batch_norms(encoder.network)
    precision = encoder.precision
    if precision == "auto":
        fast = device.type == "cuda" and fast_bfloat16(device.type)
        precision = "bfloat16" if fast else "float32"
    fused = None
    if device.type == "cpu" and (precision == "float32" or fast_bfloat16(device.type)):
        side = network.input_px
        noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        fused = fuse_convolutions(network.network, noise)
        if fused is network.network:
            fused = None
        else:
            network = copy.copy(network)
            network._modules = network._modules | {"network": fused}
    if device.type == "cuda" and precision == "float32":
        torch.backends.cudnn.allow_tf32 = False  # its products have ten bits, bfloat16's have seven
    network = network.to(device, memory_format=torch.channels_last)
    if precision == "bfloat16":
        network = network.to(torch.bfloat16)
    if fused is not None:
        kind = next(fused.parameters()).dtype
        pack_weights(fused, noise.to(kind), batch=CPU_BATCH)
    return dataclasses.replace(encoder, network=network, precision=precision)


def fold_batch_norms(encoder: Encoder) -> Encoder:
    """Fold each batch norm into the convolution registered before it, then check the result.

    If the features of noise change by more than rounding, the encoder is returned as it was.
    """
    folded = copy.deepcopy(encoder)
    changed = [_fold_children(module) for module in list(folded.network.modules())]
    if not any(changed):
        return encoder
    generator = torch.Generator().manual_seed(0)
    side = encoder.input_px
    noise = torch.randint(0, 256, (1, side, side, 3), generator=generator, dtype=torch.uint8)
    with torch.inference_mode():
        before, after = encoder(noise), folded(noise)
    if (before - after).abs().max() > _FOLD_TOLERANCE * before.std():
        log.warning("batch norms of the encoder could not be folded")
        return encoder
    return folded


def _fold_children(module: nn.Module) -> bool:
    """Fold the batch norms among a module's children; return whether there were any."""
    changed = False
    previous: nn.Module | None = None
    for name, child in list(module.named_children()):
        if (
            isinstance(child, nn.BatchNorm2d)
            and isinstance(previous, nn.Conv2d)
            and previous.out_channels == child.num_features
        ):
            fused = nn.utils.fusion.fuse_conv_bn_weights(
                previous.weight,
                previous.bias,
                child.running_mean,
                child.running_var,
                child.eps,
                child.weight,
                child.bias,
            )
            previous.weight, previous.bias = fused
            # timm's batch norms hold the activation that follows them.
            rest = [getattr(child, part) for part in ("drop", "act") if hasattr(child, part)]
            setattr(module, name, nn.Sequential(*rest))
            changed = True
        previous = child
    return changed
