"""Encode the tiles of a slide: read ahead in the background, encode in batches, write as it goes.

Memory depends on the batch, not on the slide.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from histogep.descriptors import describe_tiles
from histogep.encoders import Encoder, LoadedEncoder
from histogep.features import FeatureWriter, tile_attributes
from histogep.given_features import GivenFeatures, match_given
from histogep.jobs import BadSlide, InputError, progress
from histogep.lattice import Lattice
from histogep.slides import Slide

log = logging.getLogger(__name__)

#: Side in px at which tiles are read.
TILE_PX = 224
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
        Gives the side of a tile in um.
    encoders
        Their features lie side by side, in this order; those of a `GivenBlock` are copied.
    threads
        CPU threads.
    cuda
        Whether to use the GPU.
    batch_size
        Tiles at once; 32 on the CPU and 256 on the GPU by default.

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
    torch.set_num_threads(threads)
    device = torch.device("cuda" if cuda else "cpu")
    torch.backends.cudnn.deterministic = True
    batch_size = batch_size or (256 if cuda else 32)
    encoders = [
        encoder if isinstance(encoder, GivenBlock) else place_encoder(encoder, device)
        for encoder in encoders
    ]
    computed = [encoder for encoder in encoders if not isinstance(encoder, GivenBlock)]
    side_px = lattice.tile_um / slide.mpp
    x_px, y_px = (tiles[name].to_numpy(np.float64) for name in ("x_px", "y_px"))
    corners = np.column_stack([x_px, y_px]) - side_px / 2
    batches = [
        (start, corners[start : start + batch_size]) for start in range(0, len(tiles), batch_size)
    ]
    started = time.perf_counter()
    with FeatureWriter(
        path,
        slide=slide.slide,
        row=tiles["row"].to_numpy(),
        col=tiles["col"].to_numpy(),
        coords=np.round(corners).astype(np.int64),
        barcode=tiles["barcode"].astype(str).tolist(),
        blocks=[(encoder.name, encoder.dim) for encoder in encoders],
        lattice=lattice.to_settings(),
        encoders=[
            {
                "name": encoder.name,
                "sha256": encoder.sha256,
                "dim": encoder.dim,
                "mpp": lattice.tile_um / encoder.input_px,
                "precision": encoder.precision,
            }
            for encoder in encoders
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
        means = {e.name: e.values.mean(0) for e in encoders if isinstance(e, GivenBlock)}
        own = (
            encode_batch(white, computed, device=device)
            if computed
            else np.zeros((1, 0), np.float32)
        )
        writer.set_white(_side_by_side(own, encoders, lambda block: means[block.name][None])[0])
        pixels: Any = (None for _ in batches)
        if computed:
            pixels = _read_ahead(slide, batches, side_px, readers=threads if cuda else 1)
        shown = progress(pixels, total=len(batches), unit="batch", what="encode")
        for (start, part), batch in zip(batches, shown, strict=True):
            rows = slice(start, start + len(part))
            own = (
                np.zeros((len(part), 0), np.float32)
                if batch is None
                else encode_batch(batch, computed, device=device)
            )
            # Bound now: the function is called before the next turn.
            writer.append(_side_by_side(own, encoders, lambda block, r=rows: block.values[r]))
    speed = len(tiles) / (time.perf_counter() - started)
    log.info(
        "%d tiles of %g um, %.1f tiles/s on %s (%s)",
        len(tiles),
        lattice.tile_um,
        speed,
        device.type,
        ", ".join(f"{encoder.name} {encoder.precision}" for encoder in encoders),
    )
    return speed


def _side_by_side(
    computed: np.ndarray,
    encoders: Sequence[LoadedEncoder | GivenBlock],
    given: Callable[[GivenBlock], np.ndarray],
) -> np.ndarray:
    """Return the columns of all encoders in order: computed ones, and those that are given."""
    columns, start = [], 0
    for encoder in encoders:
        if isinstance(encoder, GivenBlock):
            columns.append(given(encoder))
        else:
            columns.append(computed[:, start : start + encoder.dim])
            start += encoder.dim
    return np.concatenate(columns, axis=1)


def encode_batch(
    tiles: np.ndarray, encoders: Sequence[LoadedEncoder], *, device: torch.device
) -> np.ndarray:
    """Return the features (n, sum of dims) float32 of uint8 RGB tiles (n, height, width, 3)."""
    columns = []
    on_device: torch.Tensor | None = None
    with torch.inference_mode():
        for encoder in encoders:
            if encoder.network is None:
                continue
            if on_device is None:
                on_device = torch.from_numpy(tiles)
                if device.type == "cuda":
                    on_device = on_device.pin_memory().to(device, non_blocking=True)
            columns.append(encoder.network(on_device).float())
        # The GPU works while the CPU describes.
        described = describe_tiles(tiles) if any(e.network is None for e in encoders) else None
        encoded = iter([values.cpu().numpy() for values in columns])
    return np.concatenate(
        [described if encoder.network is None else next(encoded) for encoder in encoders], axis=1
    )


def place_encoder(encoder: LoadedEncoder, device: torch.device) -> LoadedEncoder:
    """Return an encoder on a device: batch norms folded, channels last, bf16 where that is native.

    The precision that is in use is recorded in the result.
    """
    if encoder.network is None:
        return encoder
    network = fold_batch_norms(encoder.network)
    precision = encoder.precision
    if precision == "auto":
        precision = "bfloat16" if has_native_bf16(device) else "float32"
    network = network.to(device, memory_format=torch.channels_last)
    if precision == "bfloat16":
        network = network.to(torch.bfloat16)
    return dataclasses.replace(encoder, network=network, precision=precision)


def has_native_bf16(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16 (CPU: AVX512_BF16 or AMX)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def fold_batch_norms(encoder: Encoder) -> Encoder:
    """Fold each batch norm into the convolution registered before it, then check the result.

    If the features of noise change by more than rounding, the encoder is returned as it was.
    """
    from copy import deepcopy

    folded = deepcopy(encoder)
    changed = [_fold_children(module) for module in list(folded.network.modules())]
    if not any(changed):
        return encoder
    generator = torch.Generator().manual_seed(0)
    side = encoder.input_px
    noise = torch.randint(0, 256, (2, side, side, 3), generator=generator, dtype=torch.uint8)
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


def _read_ahead(
    slide: Slide, batches: Sequence[tuple[int, np.ndarray]], side_px: float, *, readers: int
) -> Iterator[np.ndarray]:
    """Give batches of pixels in order, read by threads at most `readers` + 1 batches ahead."""
    slide.handle  # noqa: B018 - opened once, before the threads
    with ThreadPoolExecutor(readers) as pool:
        queue: deque[Any] = deque()
        waiting = iter(batches)
        try:
            while True:
                while len(queue) <= readers and (batch := next(waiting, None)) is not None:
                    queue.append(pool.submit(_read_batch, slide, batch[1], side_px))
                if not queue:
                    return
                yield queue.popleft().result()
        finally:
            for future in queue:
                future.cancel()


def _read_batch(slide: Slide, corners: np.ndarray, side_px: float) -> np.ndarray:
    """Return tiles with their top left corners (level-0 px), uint8 (n, 224, 224, 3)."""
    pixels = np.empty((len(corners), TILE_PX, TILE_PX, 3), np.uint8)
    for place, (x0, y0) in enumerate(corners):
        pixels[place] = slide.read(x0, y0, side_px, side_px, size=(TILE_PX, TILE_PX))
    return pixels
