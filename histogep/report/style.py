"""House style of every figure: sizes, colours, and files that are reproducible byte for byte."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from PIL import Image

from histogep.files import complete

#: Colours of the tumour labels (a colour-blind safe set after Okabe and Ito, 2008).
LABEL_COLOURS = {
    "malignant": "#D55E00",
    "boundary": "#E69F00",
    "non-malignant": "#0072B2",
    "undetermined": "#BBBBBB",
}
#: Colours of categories without a meaning of their own (clones, subtypes, models).
CATEGORY_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8C6D31",
    "#7F7F7F",
)
NULL_COLOUR = "#8A8A8A"
CEILING_COLOUR = "#222222"
EXPRESSION_MAP = "magma"
DIVERGING_MAP = "RdBu_r"

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "svg.hashsalt": "histogep",
    "svg.fonttype": "path",
    # Names may hold `$`; what lies between two of them would be read as a formula.
    "text.parse_math": False,
}
_MM_PER_INCH = 25.4


def figure(*, width_mm: float = 180, height_mm: float = 100, placed: bool = False) -> Figure:
    """Return an empty figure of a size in mm, drawn in the house style.

    Its axes are fitted to their labels, unless they are `placed` by hand: fitting takes longer than
    drawing, which matters for figures of every slide.
    """
    mpl.rcParams.update(STYLE)
    size = (width_mm / _MM_PER_INCH, height_mm / _MM_PER_INCH)
    return Figure(figsize=size, layout=None if placed else "constrained")


def as_drawn(text: object, *, most: int = 60) -> str:
    """Return a name or message from elsewhere in a form that can be drawn.

    It is one line. Letters without a glyph (control characters, halves of surrogates) become U+FFFD;
    the middle of a text of more than `most` letters is replaced by an ellipsis (hundreds of
    thousands would take minutes to draw).
    """
    text = " ".join(str(text).split())
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    if len(text) <= most:
        return text
    return f"{text[: most - most // 3 - 1]}…{text[len(text) - most // 3 :]}"


def draw_discs(
    ax: Axes,
    x_um: np.ndarray,
    y_um: np.ndarray,
    *,
    size_um: float,
    values: np.ndarray | None = None,
    colours: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
) -> EllipseCollection:
    """Draw positions of a lattice as discs in place, rows downwards, without distortion.

    Parameters
    ----------
    ax
        Its ticks and frame are taken away.
    x_um, y_um
        Centres, (n,).
    size_um
        Diameter: the pitch of the lattice.
    values, colours
        What to colour by: one of the two, (n,).
    limits
        Of the colours of `values`; their range unless given.
    """
    sizes = np.full(len(x_um), size_um)
    discs = EllipseCollection(
        sizes,
        sizes,
        np.zeros(len(x_um)),
        units="xy",
        offsets=np.column_stack([x_um, y_um]),
        transOffset=ax.transData,
        linewidths=0,
        facecolors=colours,
        cmap=EXPRESSION_MAP,
    )
    if values is not None:
        discs.set_array(values)
        discs.set_clim(*(limits or (float(np.min(values)), float(np.max(values)))))
    ax.add_collection(discs)
    ax.set_xlim(x_um.min() - size_um, x_um.max() + size_um)
    ax.set_ylim(y_um.max() + size_um, y_um.min() - size_um)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)
    return discs


def save(fig: Figure, path: str | Path) -> None:
    """Write a figure so that the same figure gives the same bytes.

    A PNG has a palette of 256 colours, a third of the bytes of one without: reports hold hundreds.
    """
    path = Path(path)
    if path.suffix != ".png":
        with mpl.rc_context(STYLE), complete(path) as temporary:
            fig.savefig(temporary, metadata={"Date": None})
        return
    drawn = io.BytesIO()
    with mpl.rc_context(STYLE):
        fig.savefig(drawn, format="rgba")
    width, height = fig.canvas.get_width_height()
    with complete(path) as temporary:
        picture = Image.frombuffer("RGBA", (width, height), drawn.getvalue()).convert("RGB")
        dots = int(str(STYLE["savefig.dpi"]))
        picture.quantize(256, dither=Image.Dither.NONE).save(
            temporary, format="PNG", optimize=True, dpi=(dots, dots)
        )
