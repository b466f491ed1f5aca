"""Encoders in OpenVINO's format: exported once from their weights, run by every job on a CPU.

An exported encoder is derived: three files (network, weights, and a description with the
digests of all) that can be made again from the weights, whose SHA-256 it carries. Tiles are encoded
in batches of one size, each on one thread, so that features depend on neither their neighbours nor
the number of threads.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from histogep.encoders.tile_pixels import TILE_PX
from histogep.errors import InputError
from histogep.files import file_sha256, read_json, readable, write_json

#: Tiles encoded at once: what a core's cache holds.
CPU_BATCH = 4
#: Largest difference of features from torch's, as a share of their spread over the pixels of noise.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ExportedEncoder:
    """An encoder that runs on the CPU in float32; each thread has its own request to it."""

    name: str
    dim: int
    sha256: str
    input_px: int
    network: Any
    precision: str = "float32"
    _of_thread: threading.local = field(default_factory=threading.local, repr=False)

    def prepare(self, tiles: np.ndarray) -> np.ndarray:
        """Return uint8 tiles (n, side, side, 3), contiguous."""
        return np.ascontiguousarray(tiles)

    def start(self, tiles: np.ndarray) -> Callable[[], np.ndarray]:
        """Encode tiles; what is returned gives their features (n, dim) float32."""
        request = getattr(self._of_thread, "request", None)
        if request is None:
            request = self._of_thread.request = self.network.create_infer_request()
        values = np.empty((len(tiles), self.dim), np.float32)
        for start in range(0, len(tiles), CPU_BATCH):
            batch = tiles[start : start + CPU_BATCH]
            n = len(batch)
            if n < CPU_BATCH:  # the last one: the network takes full batches only
                batch = np.concatenate([batch, np.repeat(batch[:1], CPU_BATCH - n, axis=0)])
            values[start : start + n] = request.infer([batch])[0][:n]
        return lambda: values


def export_encoder(settings: Mapping[str, Any], description: str | Path) -> None:
    """Write an encoder in OpenVINO's format, after a comparison of both networks.

    Parameters
    ----------
    settings
        Of the encoder, as `histogep.encoders.load.load_encoder` takes them.
    description
        Path of the JSON; network (.xml) and numbers (.bin) lie beside it under the same name.

    Raises
    ------
    InputError
        Its weights do not fit, its features are not finite, or OpenVINO does not reproduce them.
    """
    import tempfile
    import warnings

    import timm
    import torch

    from histogep.encoders.load import load_encoder

    openvino = _openvino()
    torch.set_num_threads(1)
    encoder = load_encoder(settings)
    generator = torch.Generator().manual_seed(0)
    shape = (CPU_BATCH, TILE_PX, TILE_PX, 3)
    noise = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        wanted = encoder.network(noise).numpy()
    if wanted.shape != (CPU_BATCH, encoder.dim) or not np.isfinite(wanted).all():
        raise InputError(
            f"encoder {encoder.name}: {CPU_BATCH} tiles of noise give features of shape "
            f"{wanted.shape}, {np.isfinite(wanted).mean():.0%} of them finite; needed are "
            f"{encoder.dim} finite features a tile: its weights or its config.json are wrong"
        )
    path = Path(description)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export") as folder:
        file = Path(folder) / "network.xml"
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the tracer, on what never varies here
                converted = openvino.convert_model(
                    encoder.network, example_input=noise, input=[openvino.PartialShape(shape)]
                )
            openvino.save_model(converted, file, compress_to_fp16=False)
            found = _compile(file, threads=1).create_infer_request().infer([noise.numpy()])[0]
        except MemoryError:
            raise
        except Exception as error:  # its conversion, too, fails with exceptions of many kinds
            said = " ".join(str(error).split())
            raise InputError(
                f"encoder {encoder.name}: OpenVINO cannot run this network on a CPU "
                f"({said[:500]}); encode it with `precision: bfloat16`, which torch runs"
            ) from error
        away = float(np.abs(found - wanted).max() / max(wanted.std(), 1e-12))
        if not away <= _TOLERANCE:
            raise InputError(
                f"encoder {encoder.name}: OpenVINO's features are {away:.2g} of their spread away "
                "from torch's; encode it with `precision: bfloat16`, which torch runs"
            )
        content = {
            "name": encoder.name,
            "dim": encoder.dim,
            "input_px": encoder.input_px,
            "sha256": encoder.sha256,
            "settings": dict(settings),
            "largest_difference": away,
            "versions": {
                "openvino": openvino.get_version(),
                "timm": timm.__version__,
                "torch": torch.__version__,
            },
        }
        for suffix in (".xml", ".bin"):
            made = file.with_suffix(suffix)
            content[f"sha256_{suffix[1:]}"] = file_sha256(made)
            made.replace(path.with_suffix(suffix))
        write_json(content, path)


def read_exported(description: str | Path, *, threads: int) -> ExportedEncoder:
    """Return an encoder of `export_encoder`, for as many threads as will call it at once.

    Raises
    ------
    InputError
        One of its files is damaged or of another run.
    """
    path = Path(description)
    content = read_json(path)
    with readable(path):
        for suffix in (".xml", ".bin"):
            if content[f"sha256_{suffix[1:]}"] != file_sha256(path.with_suffix(suffix)):
                raise ValueError(
                    f"{path.with_suffix(suffix).name} is not the one that it describes"
                )
        return ExportedEncoder(
            content["name"],
            content["dim"],
            content["sha256"],
            content["input_px"],
            _compile(path.with_suffix(".xml"), threads=threads),
        )


def _compile(network: Path, *, threads: int) -> Any:
    """Return a network for the CPU: each stream has one thread, whatever their number."""
    openvino = _openvino()
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return openvino.Core().compile_model(str(network), "CPU", options)


def _openvino() -> Any:
    """Return OpenVINO without its telemetry.

    It reports each import and conversion to its makers through a separate package, and works
    without it where that cannot be imported. Slides are confidential and nothing here uses a
    network, so for this process that package is hidden.
    """
    modules: dict[str, Any] = sys.modules
    modules["openvino_telemetry"] = None
    import openvino

    return openvino
