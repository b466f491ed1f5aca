"""How often maps that have nothing to do with each other make a gene predictable.

Every gene of every section gets a predicted and a measured map drawn independently of each other,
of one kind. A study has as many patients as told, one section each; its genes are judged as
`evaluate_model` judges them (`histogep.evaluation.section_scores.gene_table`). Printed are the shares of genes with
p < .05 and p < .001 and of studies with a predictable gene, and what one may expect at most.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from histogep.evaluation.section_scores import SectionScore, gene_table
from histogep.lattice import Lattice
from histogep.stats.nulls import map_motions, moved_null, spatial_basis, spectral_null
from histogep.stats.scores import false_discovery_rate, pearson

KINDS = ("white", "smooth", "broad", "half", "patch", "gradient")
#: Rows and columns of the lattice: about square in um, and strips.
SHAPES = {"square": 1.0, "long": 4.0, "strip": 16.0, "disc": 1.0, "ragged": 1.0}
GENES = 20


def cells(shape: str, spots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column of about `spots` cells of a hexagonal lattice."""
    ratio = SHAPES[shape]
    if shape == "disc":
        spots = int(spots * 4 / np.pi)
    n_rows = round(np.sqrt(spots / ratio / (np.sqrt(3) / 2)))
    row, col = np.divmod(np.arange(n_rows * round(spots / n_rows)), round(spots / n_rows))
    x, y = Lattice().centres_um(row, col)
    if shape == "disc":
        keep = np.hypot(x - x.mean(), y - y.mean()) <= np.ptp(y) / 2
    elif shape == "ragged":  # a corner and a gap are missing, and cells here and there
        keep = (x - x.min()) / np.ptp(x) + (y - y.min()) / np.ptp(y) > 0.5
        keep &= np.abs(x - x.mean() - 0.15 * np.ptp(x)) > 0.04 * np.ptp(x)
        keep &= np.random.default_rng(seed).random(len(x)) > 0.05
    else:
        keep = np.ones(len(x), bool)
    return row[keep], col[keep]


def draw_maps(
    kind: str, x: np.ndarray, y: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Return maps of one kind, cells by `count`; positions in um."""
    centres = np.column_stack([x - x.mean(), y - y.mean()])
    radius = np.sqrt((centres**2).sum(1).mean())
    if kind == "white":
        return rng.standard_normal((len(x), count))
    if kind in ("smooth", "broad"):
        reach = 200.0 if kind == "smooth" else 0.7 * radius
        out = np.empty((len(x), count))
        for gene in range(count):  # a Gaussian field of Gaussian covariance, from plane waves
            waves = rng.standard_normal((2, 40)) / reach
            out[:, gene] = np.cos(centres @ waves + rng.uniform(0, 2 * np.pi, 40)).sum(1)
        return out
    if kind == "patch":
        middle = centres[rng.integers(0, len(x), count)]
        reach = radius * rng.uniform(0.25, 0.6, count)
        return np.stack(
            [
                (((centres - m) ** 2).sum(1) < r**2).astype(float)
                for m, r in zip(middle, reach, strict=True)
            ],
            axis=1,
        )
    if kind == "rings":  # from the middle outwards, or inwards
        return np.hypot(*centres.T)[:, None] * rng.choice([-1.0, 1.0], count)
    angle = rng.uniform(0, 2 * np.pi, count)
    if kind == "layers":  # all run the same way
        phase = rng.uniform(0, 2 * np.pi, count)
        return np.cos(centres[:, :1] * 2 * np.pi / np.ptp(x) + phase)
    along = centres @ np.stack([np.cos(angle), np.sin(angle)])
    if kind == "gradient":
        return along
    if kind == "half":
        cut = [
            np.quantile(a, q) for a, q in zip(along.T, rng.uniform(0.3, 0.7, count), strict=True)
        ]
        return (along > cut).astype(float)
    raise ValueError(f"there are no maps of kind {kind!r}")


def null_p(
    predicted: Callable[[], np.ndarray],
    measured: Callable[[], np.ndarray],
    row: np.ndarray,
    col: np.ndarray,
    *,
    patients: int,
    draws: int,
    seed: int,
) -> np.ndarray:
    """Return the p of every gene of a study with one section of each patient."""
    lattice = Lattice()
    centres = lattice.centres_um(row, col)
    motions = map_motions(*centres)
    basis = spatial_basis(*centres, lattice.neighbours(row, col))
    scores = []
    for patient in range(patients):
        ours, theirs = predicted(), measured()
        n_genes = ours.shape[1]
        blank, levels = np.zeros(n_genes), np.zeros((1, 2, n_genes))
        options = {"draws": draws, "seed": seed + 1000 * patient}
        scores.append(
            SectionScore(
                **{"protocol": "patient_cv", "fold": "patient_cv-1", "model": "unrelated"},
                slide=f"S{patient}",
                patient=f"P{patient}",
                genes=tuple(f"G{gene}" for gene in range(n_genes)),
                n_positions=len(row),
                pearson=pearson(ours, theirs),
                **dict.fromkeys(
                    ("spearman", "rmse", "tissue_mask", "ceiling", "ceiling_spatial", "excess"),
                    blank,
                ),
                excess_error=blank,
                permutation=np.zeros((1, n_genes), np.float32),
                rank_permutation=None,
                turned=moved_null(ours, theirs, motions[0], **options),
                shifted=moved_null(ours, theirs, motions[1], **options),
                spectral=spectral_null(ours, theirs, basis, **options),
                **dict.fromkeys(("predicted_level", "measured_level"), blank),
                level_halves=levels,
            )
        )
    return gene_table(scores)["null_p"].to_numpy()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--genes", type=int, default=2000, help="pairs of maps per row")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), help="also rings, layers")
    parser.add_argument("--patients", nargs="+", type=int, default=[3, 6, 12])
    parser.add_argument("--spots", nargs="+", type=int, default=[400, 4000])
    parser.add_argument("--shapes", nargs="+", default=["square"], choices=list(SHAPES))
    parser.add_argument("--noise", type=float, default=0.0, help="white noise, in deviations")
    parser.add_argument("--draws", type=int, default=2000)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.genes} genes a row, studies of {GENES} genes")
    print("shape   spots kind      patients  p < .05  p < .001  studies with a predictable gene")
    print("                         at most     .06      .003      .05")
    for shape in arguments.shapes:
        for spots in arguments.spots:
            row, col = cells(shape, spots, arguments.seed)
            x, y = Lattice().centres_um(row, col)
            for kind in arguments.kinds:
                for patients in arguments.patients:
                    rng = np.random.default_rng(
                        [arguments.seed, spots, patients, *kind.encode(), *shape.encode()]
                    )

                    def maps(kind=kind, rng=rng, x=x, y=y) -> np.ndarray:
                        drawn = draw_maps(kind, x, y, arguments.genes, rng)
                        drawn = drawn / np.maximum(drawn.std(0), 1e-12)
                        return drawn + arguments.noise * rng.standard_normal(drawn.shape)

                    p = null_p(
                        *(maps, maps, row, col),
                        patients=patients,
                        draws=arguments.draws,
                        seed=arguments.seed,
                    )
                    studies = p[: len(p) // GENES * GENES].reshape(-1, GENES)
                    found = [(false_discovery_rate(study) < 0.05).any() for study in studies]
                    print(
                        f"{shape:7s} {len(row):5d} {kind:9s} {patients:8d} "
                        f"{(p < 0.05).mean():8.3f} {(p < 0.001).mean():9.4f} {np.mean(found):8.3f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
