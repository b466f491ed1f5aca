"""The interactive page of a slide: its image, and over it whatever was computed of its places.

One file that needs no server and no network: BokehJS, the image and all values are in it, and its
content security policy forbids the browser to fetch anything. Values are kept as whole numbers of
16 bits between the ends of each layer (an error of at most 1 in 130,000 of their range) and become
colours in the browser, in resources/slide_page.js. What users named (slides, genes, spots) enters
the page as JSON only, and is shown as text.
"""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.embed import json_item
from bokeh.layouts import row
from bokeh.models import (
    BasicTicker,
    BoxZoomTool,
    ColorBar,
    ColumnDataSource,
    HoverTool,
    LinearColorMapper,
    PanTool,
    Range1d,
    ResetTool,
    SaveTool,
    WheelZoomTool,
)
from bokeh.palettes import Magma256, RdBu, interp_palette
from bokeh.plotting import figure
from bokeh.resources import Resources
from PIL import Image

from histogep.inputs.resources import FOLDER
from histogep.report.self_contained import as_json, write_filled
from histogep.report.slide_layers import Layer, SlideLayers

#: Longest side of the image in px.
IMAGE_PX = 2500
#: Of the JPEG: of the first quality that keeps the image small enough, else the last.
_QUALITIES = (80, 65, 50)
_IMAGE_BYTES = 3_000_000
#: Of 16 bits, the one that stands for no value.
_NONE = 65535
#: Screen px of the maps, one or two side by side: widest, highest.
_FRAME = {1: (1000, 760), 2: (620, 700)}
_QUANTILES = (0.01, 0.99)
_MM = 1000.0
_PALETTES = {
    "sequential": list(Magma256),
    "diverging": interp_palette(tuple(RdBu[11]), 256),
}


def write_slide_page(
    layers: SlideLayers, image: np.ndarray, path: str | Path, *, size_px: tuple[float, float]
) -> None:
    """Write the page of a slide; of the same slide the same bytes, from a process that did no other.

    Parameters
    ----------
    layers
        What its places are coloured by.
    image
        The slide, uint8 RGB.
    path
        Where to write it.
    size_px
        Width and height of the slide in level-0 px.
    """
    item = json_item(_maps(layers, image, size_px))
    content = {
        "slide": layers.slide,
        "places": list(map(str, layers.names)),
        "maps": list(layers.maps),
        "palettes": _PALETTES,
        "layers": [_encoded(layer) for layer in layers.layers],
    }
    scripts = Resources(mode="inline", components=["bokeh"], minified=True, log_level="warn").js_raw
    parts = {
        "TITLE": html.escape(f"Slide {layers.slide}"),
        "NOTES": "".join(f"<p>{html.escape(note)}</p>" for note in layers.notes),
        "WARNINGS": "".join(f"<p>{html.escape(text)}</p>" for text in layers.warnings),
        "ITEM": as_json(item),
        "CONTENT": as_json(content),
        "BOKEH": "\n".join(scripts),
        "SCRIPT": (FOLDER / "slide_page.js").read_text(encoding="utf-8"),
    }
    write_filled(FOLDER / "slide_page.html", path, parts)


def as_jpeg(image: np.ndarray, *, most_bytes: int = _IMAGE_BYTES) -> bytes:
    """Return an image as JPEG, of a lower quality where it would be larger than `most_bytes`."""
    for quality in _QUALITIES:
        packed = io.BytesIO()
        Image.fromarray(image).save(packed, format="JPEG", quality=quality, optimize=True)
        if packed.tell() <= most_bytes:
            break
    return packed.getvalue()


def _maps(layers: SlideLayers, image: np.ndarray, size_px: tuple[float, float]) -> Any:
    """Return the maps of a slide as Bokeh draws them, without values: those come by script."""
    mm = layers.mpp / _MM
    width, height = size_px[0] * mm, size_px[1] * mm
    widest, highest = _FRAME[len(layers.maps)]
    centres = layers.centres_px.astype(np.float32) * np.float32(mm)
    left, top, right, bottom = _view(centres, layers.size_px[0] * mm, (width, height))
    scale = min(widest / (right - left), highest / (bottom - top))
    across, down = Range1d(left, right), Range1d(bottom, top)
    uri = "data:image/jpeg;base64," + base64.b64encode(as_jpeg(image)).decode("ascii")
    picture = ColumnDataSource({"url": [uri]})
    figures = []
    for number, name in enumerate(layers.maps):
        zoom = WheelZoomTool()
        fig = figure(
            frame_width=round((right - left) * scale),
            frame_height=round((bottom - top) * scale),
            x_range=across,
            y_range=down,
            title=name,
            tools=[PanTool(), zoom, BoxZoomTool(match_aspect=True), ResetTool(), SaveTool()],
            active_scroll=zoom,
            x_axis_label="mm",
            y_axis_label="mm" if number == 0 else None,
            toolbar_location="above",
            name=f"map-{number}",
        )
        fig.toolbar.logo = None
        fig.grid.visible = False
        shown = fig.image_url(
            url="url", x=0, y=0, w=width, h=height, anchor="top_left", source=picture
        )
        shown.name = f"image-{number}"
        # One empty text each: a list of their own per place would double the file.
        places = ColumnDataSource({"x": centres[:, 0], "y": centres[:, 1]}, name=f"places-{number}")
        for column in ("colour", "place", "layer", "value", "interval", "about"):
            places.data[column] = np.zeros(len(centres), np.uint8)
        common = {
            "x": "x", "y": "y", "fill_color": "colour", "line_color": None, "fill_alpha": 0.7,
            "source": places, "name": f"drawn-{number}",
        }  # fmt: skip
        if layers.round:
            drawn = fig.circle(radius=layers.size_px[0] * mm / 2, **common)
        else:
            drawn = fig.rect(width=layers.size_px[0] * mm, height=layers.size_px[1] * mm, **common)
        drawn.nonselection_glyph = drawn.muted_glyph = None
        fig.add_tools(
            HoverTool(
                renderers=[drawn],
                point_policy="follow_mouse",
                tooltips=[
                    ("place", "@place"),
                    ("layer", "@layer"),
                    ("value", "@value"),
                    ("interval", "@interval"),
                    ("as a whole", "@about"),
                ],
            )
        )
        mapper = LinearColorMapper(palette=_PALETTES["sequential"], low=0, high=1, name=f"scale-{number}")  # fmt: skip
        bar = ColorBar(
            color_mapper=mapper, ticker=BasicTicker(desired_num_ticks=5), width=12,
            name=f"bar-{number}",
        )  # fmt: skip
        fig.add_layout(bar, "right")
        figures.append(fig)
    return row(figures, name="maps")


def _view(
    centres: np.ndarray, side: float, size: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of what is shown first: the places with a margin."""
    margin = 2 * side + 0.03 * float(np.ptp(centres, axis=0).max())
    low = np.maximum(centres.min(axis=0) - margin, 0)
    high = np.minimum(centres.max(axis=0) + margin, size)
    # Never narrower than a third of the longer side: the controls of a map need room.
    least = (high - low).max() / 3
    grown = np.maximum(least - (high - low), 0) / 2
    (left, top), (right, bottom) = low - grown, high + grown
    return float(left), float(top), float(right), float(bottom)


def _encoded(layer: Layer) -> dict[str, Any]:
    """Return a layer as the script reads it."""
    shared = {
        "name": layer.name,
        "group": layer.group,
        "unit": layer.unit,
        "about": [[name, text] for name, text in layer.about.items()],
    }
    if layer.colours is not None:
        names = list(layer.colours)
        place = {name: number for number, name in enumerate(names)}
        codes = [
            None if part is None else _packed([place.get(name, _NONE) for name in part])
            for part in layer.values
        ]
        return shared | {"names": names, "colours": list(layer.colours.values()), "codes": codes}
    parts: list[dict[str, Any] | None] = []
    limits = []
    for part in layer.values:
        if part is None or not np.isfinite(part).any():
            parts.append(None)
            continue
        low, high = float(np.nanmin(part)), float(np.nanmax(part))
        step = (high - low) / (_NONE - 1) or 1.0
        whole = np.where(np.isfinite(part), np.rint((part - low) / step), _NONE)
        parts.append({"low": low, "step": step, "data": _packed(whole)})
        limits.append(np.nanquantile(part, _QUANTILES))
    low, high = layer.limits or (
        min((float(a) for a, _ in limits), default=0.0),
        max((float(b) for _, b in limits), default=1.0),
    )
    if layer.diverging and layer.limits is None:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    if not high > low:
        high = low + 1.0
    return shared | {
        "palette": "diverging" if layer.diverging else "sequential",
        "limits": [low, high],
        "own": [None if part is None else [float(x) for x in _own(part, low, high)] for part in layer.values],
        "fixed": layer.limits is not None,
        "half": layer.half_width,
        "parts": parts,
    }  # fmt: skip


def _own(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Return the ends of the colours that one map alone would have."""
    if not np.isfinite(values).any():
        return low, high
    ends = np.nanquantile(values, _QUANTILES)
    return (float(ends[0]), float(ends[1])) if ends[1] > ends[0] else (low, high)


def _packed(whole: Any) -> str:
    """Return whole numbers below 65,536 as base64, two bytes each, the lower first."""
    return base64.b64encode(np.asarray(whole).astype("<u2").tobytes()).decode("ascii")
