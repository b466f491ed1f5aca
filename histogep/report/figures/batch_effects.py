"""Figure of the principal components of features and expression, coloured by what they may go with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from histogep.evaluation.batch_effects import LEVELS, LINES, Components
from histogep.report.style import CATEGORY_COLOURS, figure


def plot_batches(
    components: Sequence[Components], slides: pd.DataFrame, shares: pd.DataFrame
) -> Figure:
    """Return the first two components of each kind of data, a panel per factor.

    Parameters
    ----------
    components
        Of features, and of expression where any was measured.
    slides
        results/slides.tsv.
    shares
        From `histogep.evaluation.batch_effects.explain`, of all of them.
    """
    factors = {**LEVELS, **LINES}
    fig = figure(width_mm=230, height_mm=48 * len(components) + 6)
    panels = fig.subplots(len(components), len(factors), squeeze=False)
    table = slides.set_index("slide", drop=False)
    for line, part in zip(panels, components, strict=True):
        mine = shares[shares["data"] == part.data].set_index("factor")
        x = part.scores[:, 0]
        y = part.scores[:, 1] if part.scores.shape[1] > 1 else np.zeros_like(x)
        for axes, (factor, column) in zip(line, factors.items(), strict=True):
            values = table.loc[part.slide, column]
            if factor in LEVELS:
                codes = pd.factorize(values.astype(str))[0] % len(CATEGORY_COLOURS)
                colours = np.array(CATEGORY_COLOURS)[codes]
                axes.scatter(x, y, c=colours, s=1.5, linewidths=0, rasterized=True)
            else:
                axes.scatter(
                    x, y, c=values.to_numpy(float), s=1.5, linewidths=0, cmap="viridis", rasterized=True
                )  # fmt: skip
            share, upper = mine.loc[factor, "share"], mine.loc[factor, "null_upper"]
            text = f"{share:.0%} (chance {upper:.0%})" if np.isfinite(share) else "one level"
            axes.set_title(f"{factor}\n{text}", fontsize=7)
            axes.set(xticks=[], yticks=[], xlabel=f"PC1, {part.explained[0]:.0%}")
        second = part.explained[1] if len(part.explained) > 1 else 0.0
        line[0].set_ylabel(f"{part.data}\nPC2, {second:.0%}")
    return fig
