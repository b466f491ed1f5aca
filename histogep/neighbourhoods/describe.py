"""What lies beside what on a slide: classes of tissue and clones, each number beside its own null.

squidpy counts and compares: `nhood_enrichment`, `interaction_matrix`, `co_occurrence`,
`centrality_scores`. Its permutations deal the classes to the places at random, which keeps nothing of
the tissue: any two maps of tissue are far from that, so that everything is significant. The null
here keeps the maps and takes away what one has to do with the other: of a pair of classes one stays,
and the map of the other is turned, mirrored and shifted over the tissue as a rigid whole
(`moved_maps`; for point patterns: Lotwick and Silverman, J R Stat Soc B 1982). A
place holds one class only, so what of the moved map falls on the class that stays, or where its
class cannot be (tumour classes outside the tumour, others inside), does not count, and what is left
is counted up to as many places as the class has. A class beside itself has nothing to be moved against:
its null deals it to the places at random, as squidpy's does.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse import csgraph

from histogep.neighbourhoods.measures import COLUMNS, MEASURES
from histogep.neighbourhoods.tissue_classes import (
    BOUNDARY,
    CLASSES,
    IMMUNE,
    MALIGNANT,
    STROMA,
    Places,
)
from histogep.stats.nulls import map_motions

log = logging.getLogger(__name__)

#: Neighbours lie within so many pitches: 6 on the hexagonal lattice, 8 on a square one.
REACH = 1.5
#: A slide with fewer places that have a neighbour is not described.
MIN_PLACES = 20
#: Places of class beside itself are dealt out so many times.
_SHUFFLES = 99
#: Moved maps whose closeness, which is a search over the graph, is computed; of large slides fewer.
_CLOSENESS_WORK = 400_000
#: Fewest places of a class, of both of a pair, for a null.
_MIN_CLASS = 3
_ORDER = {name: number for number, name in enumerate(CLASSES)}
_BY_DEFINITION = "by definition: malignant places that touch others are boundary"


@dataclass(frozen=True)
class Neighbourhoods:
    """What lies beside what on one slide.

    Attributes
    ----------
    table
        One row per number, `COLUMNS`.
    places
        The places that were compared, as in `histogep.neighbourhoods.tissue_classes.Places.table`, with boundary
        among the classes and `clones`: the clone of tumour places, the class of others.
    lattice
        On which they lie.
    slide
        Id of the slide.
    note
        Why nothing could be compared, "" where something was.
    """

    table: pd.DataFrame
    places: pd.DataFrame
    lattice: Any
    slide: str
    note: str


def describe_neighbourhoods(
    places: Places, *, permutations: int, most_places: int, rings: int, seed: int
) -> Neighbourhoods:
    """Return what lies beside what on a slide.

    Two partitions of the places are described: `tissue` (malignant, boundary, immune, stroma, other)
    and `clones` (the clones of the tumour, or malignant where there are none, and immune, stroma,
    other). A slide with too few places, or one class only, is reported and not described.

    Parameters
    ----------
    places
        From `histogep.neighbourhoods.tissue_classes`.
    permutations
        Of `squidpy.gr.nhood_enrichment`.
    most_places
        Co-occurrence, whose cost grows with the square of the places, is counted among no more
        than so many, drawn at random.
    rings
        Co-occurrence is counted within 1.5, 2.5, ... pitches, so many distances.
    seed
        Of permutations, shuffles and the draw of places.
    """
    pitch = places.lattice.pitch_um
    graph = neighbour_graph(places.table, pitch_um=pitch)
    connected = np.diff(graph.indptr) > 0
    table, graph = places.table[connected].copy(), graph[connected][:, connected]
    rows = [
        _plain("places", len(places.table)),
        _plain("isolated", int((~connected).sum()), note="without a neighbour; left out"),
        _plain("undetermined", places.undetermined, note="; ".join(places.notes)),
    ]
    tumour = table["tumour"].to_numpy(bool)
    touches_other = np.asarray(graph @ (~tumour).astype(float)).ravel() > 0
    border = tumour & (touches_other | table["uncertain"].to_numpy(bool))
    table["class"] = np.where(border, BOUNDARY, table["class"]).astype(object)
    named = "clone " + table["clone"]
    table["clones"] = np.where(
        tumour, np.where(table["clone"] != "", named, MALIGNANT), table["class"]
    ).astype(object)
    rows += [
        _plain("places", int((table["class"] == name).sum()), partition="tissue", of=name)
        for name in CLASSES
    ]
    note = ""
    if len(table) < MIN_PLACES:
        note = f"{len(table)} places have a neighbour, {MIN_PLACES} are needed"
    elif tumour.all() or not tumour.any():
        kind = "is" if tumour.all() else "is not"
        note = f"every place {kind} malignant: there is no border of the tumour"
    if len(table) >= MIN_PLACES:
        moved = moved_maps(table["x_um"].to_numpy(), table["y_um"].to_numpy())
        rows += list(_measures(table, graph, moved))
        for partition, column in (("tissue", "class"), ("clones", "clones")):
            data = _annotated(table, table[column], graph)
            if len(data.obs["class"].cat.categories) < 2:
                note = (
                    note
                    or f"every place is {data.obs['class'].iloc[0]}: there is nothing to compare"
                )
                continue
            described = _Partition(partition, data, tumour, graph, moved, pitch, seed)
            rows += list(described.pairs(permutations))
            rows += list(described.co_occurrence(most_places, rings))
            rows += list(described.centrality())
    if note:
        log.warning("slide %s: %s", places.slide, note)
        rows.append(_plain("not described", np.nan, note=note))
    result = pd.DataFrame(rows, columns=COLUMNS[1:])
    result.insert(0, "slide", places.slide)
    log.info(
        "slide %s: %d places, %s; %d isolated, %d undetermined",
        *(places.slide, len(places.table), table["class"].value_counts().to_dict()),
        *(int((~connected).sum()), places.undetermined),
    )
    return Neighbourhoods(result, table, places.lattice, places.slide, note)


def neighbour_graph(table: pd.DataFrame, *, pitch_um: float) -> sparse.csr_matrix:
    """Return which places touch, n by n with ones, from squidpy.

    By distance on the ideal lattice: `spatial_neighbors_grid` guesses the distance from the places,
    and on a strip one place wide takes the next but one for neighbours.

    Parameters
    ----------
    table
        Columns x_um and y_um, centres of the lattice.
    pitch_um
        Distance between neighbours.
    """
    n = len(table)
    if n < 2:
        return sparse.csr_matrix((n, n))
    data = _annotated(table, pd.Series("", index=table.index))
    with _squidpy() as squidpy:
        squidpy.gr.spatial_neighbors_radius(data, radius=REACH * pitch_um)
    graph = sparse.csr_matrix(data.obsp["spatial_connectivities"], dtype=np.float64)
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph


def moved_maps(x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
    """Return where each place of a slide comes from when its map is moved, (maps, places).

    The first half are turned and mirrored, the others shifted (`histogep.stats.nulls.map_motions`), without
    the quarter of each that moves the places least: nearly where it was, a map still has to do with
    the one that stays.

    Parameters
    ----------
    x_um, y_um
        Centres of the places.
    """
    kept = []
    for motions in map_motions(x_um, y_um):
        away = np.hypot(x_um[motions] - x_um, y_um[motions] - y_um).mean(axis=1)
        furthest = np.argsort(-away, kind="stable")[: len(motions) * 3 // 4]
        kept.append(motions[np.sort(furthest)])
    return np.concatenate(kept)


class _Partition:
    """One division of the places of a slide into classes."""

    def __init__(
        self,
        name: str,
        data: anndata.AnnData,
        tumour: np.ndarray,
        graph: sparse.csr_matrix,
        moved: np.ndarray,
        pitch: float,
        seed: int,
    ) -> None:
        self.name, self.data, self.tumour, self.graph = name, data, tumour, graph
        self.moved, self.pitch, self.seed = moved, pitch, seed
        self.classes = list(data.obs["class"].cat.categories)
        label = data.obs["class"].to_numpy()
        self.member = {name: label == name for name in self.classes}
        self.size = {name: int(member.sum()) for name, member in self.member.items()}
        self.rng = np.random.default_rng([seed, len(data), len(self.classes)])

    def pairs(self, permutations: int) -> Iterator[dict[str, Any]]:
        """Give links (the interaction matrix) and enrichment of each pair of classes."""
        with _squidpy() as squidpy:
            links = squidpy.gr.interaction_matrix(self.data, "class", copy=True)
            enriched = squidpy.gr.nhood_enrichment(
                self.data,
                "class",
                n_perms=permutations,
                seed=self.seed,
                n_jobs=1,
                show_progress_bar=False,
                copy=True,
            )
        degree = np.diff(self.graph.indptr).astype(float)
        for i, j, of, beside in self._unordered():
            near = np.asarray(self.graph @ self.member[of].astype(float)).ravel()
            kind, null = self._null(of, beside, near, degree, self.graph)
            expected, spread = link_moments(degree, self.size[of], self.size[beside], same=i == j)
            # As many links as if what is left of the moved map had as many places as the class.
            counts = (
                null
                if i == j
                else null * near.sum() * degree[self.member[beside]].sum() / degree.sum()
            )
            note = self._by_definition(of, beside)
            sizes = {
                "of": of,
                "beside": beside,
                "n_of": self.size[of],
                "n_beside": self.size[beside],
            }
            shared = {"partition": self.name, "null": kind, "note": note, **sizes}
            yield _row("links", links[i, j], counts, **shared)
            z = enriched.zscore[i, j]
            if not np.isfinite(z):  # every permutation has the same count
                yield _row("enrichment", np.nan, counts[:0], **shared)
                continue
            yield _row("enrichment", z, (counts - expected) / max(spread, 1e-12), **shared)

    def co_occurrence(self, most_places: int, rings: int) -> Iterator[dict[str, Any]]:
        """Give how often pairs of classes lie within a distance, over what their sizes give."""
        n, pitch = self.data.n_obs, self.pitch
        kept = np.arange(n)
        if n > most_places:
            kept = np.sort(self.rng.choice(n, most_places, replace=False))
        data = self.data[kept].copy()
        data.obs["class"] = data.obs["class"].cat.remove_unused_categories()
        there = list(data.obs["class"].cat.categories)
        reaches = pitch * (np.arange(rings) + REACH)
        with _squidpy() as squidpy:
            values, _ = squidpy.gr.co_occurrence(
                data, "class", interval=np.array([0.0, *reaches]), copy=True
            )
        note = "" if n == len(kept) else f"{len(kept)} of {n} places, drawn at random"
        centres = data.obsm["spatial"]
        square = (centres**2).sum(1)
        apart = square[:, None] + square[None] - 2 * centres @ centres.T
        np.fill_diagonal(apart, np.inf)
        for number, reach in enumerate(reaches):
            within = (apart <= reach**2).astype(np.float32)
            degree = within.sum(1, dtype=float)
            for _, _, of, beside in self._unordered():
                if of not in there or beside not in there:
                    continue
                near = within @ self.member[of][kept].astype(np.float32)
                kind, null = self._null(of, beside, near.astype(float), degree, within, kept)
                if of == beside:
                    null = null * degree.sum() / near.sum(dtype=float) ** 2
                said = "; ".join(filter(None, (self._by_definition(of, beside), note)))
                yield _row(
                    "co_occurrence",
                    float(values[there.index(beside), there.index(of), number]),
                    null,
                    partition=self.name,
                    of=of,
                    beside=beside,
                    distance_um=float(reach),
                    null=kind,
                    n_of=self.size[of],
                    n_beside=self.size[beside],
                    note=said,
                )

    def centrality(self) -> Iterator[dict[str, Any]]:
        """Give how each class lies in the graph, beside its own map moved over the tissue."""
        with _squidpy() as squidpy:
            scores = squidpy.gr.centrality_scores(self.data, "class", copy=True, n_jobs=1)
        local = local_clustering(self.graph)
        every = max(1, len(self.moved) * self.data.n_obs // _CLOSENESS_WORK)
        for of in self.classes:
            maps = self.member[of][self.moved]
            near = (self.graph @ maps.T.astype(float)).T > 0
            outside = (~maps).sum(1)
            with np.errstate(all="ignore"):
                degree = (near & ~maps).sum(1) / outside
                clustering = (maps * local).sum(1) / maps.sum(1)
            closeness = [group_closeness(self.graph, one) for one in maps[::every]]
            for statistic, null in (
                ("degree_centrality", degree),
                ("average_clustering", clustering),
                ("closeness_centrality", np.array(closeness)),
            ):
                yield _row(
                    statistic,
                    float(scores.loc[of, statistic]),
                    null,
                    partition=self.name,
                    of=of,
                    null="moved",
                    n_of=self.size[of],
                )

    def _unordered(self) -> Iterator[tuple[int, int, str, str]]:
        for i, of in enumerate(self.classes):
            for j in range(i, len(self.classes)):
                yield i, j, of, self.classes[j]

    def _by_definition(self, of: str, beside: str) -> str:
        inner = self.name == "tissue" and MALIGNANT in (of, beside) and of != beside
        return _BY_DEFINITION if inner else ""

    def _null(
        self,
        of: str,
        beside: str,
        near: np.ndarray,
        degree: np.ndarray,
        graph: sparse.csr_matrix | np.ndarray,
        kept: np.ndarray | None = None,
    ) -> tuple[str, np.ndarray]:
        """Return the kind of null, and what is counted under it.

        `near` are the neighbours of each place that are `of`, `degree` all of them. Of two classes it
        is the ratio of links observed over expected, squidpy's co-occurrence: the share of `beside`
        among what is near `of`, over its share among what is near any place. Of a class beside
        itself it is the number of links.
        """
        own, other = self.member[of], self.member[beside]
        if self._by_definition(of, beside) or min(self.size[of], self.size[beside]) < _MIN_CLASS:
            return "", np.empty(0)
        chosen = slice(None) if kept is None else kept
        if of == beside:
            drawn = np.stack([self.rng.permutation(other[chosen]) for _ in range(_SHUFFLES)])
            drawn = drawn.astype(np.float32)
            return "shuffled", np.einsum("dn,dn->d", np.asarray((graph @ drawn.T).T), drawn)
        may_be = self.tumour if self.tumour[other].all() else ~self.tumour
        maps = other[self.moved][:, chosen] & (may_be & ~own)[chosen]
        share = maps @ degree / degree.sum()
        with np.errstate(all="ignore"):
            return "moved", (maps @ near) / near.sum() / share


def link_moments(
    degree: np.ndarray, n_of: int, n_beside: int, *, same: bool
) -> tuple[float, float]:
    """Return mean and standard deviation of the links of two classes dealt to the places at random.

    The law that the permutations of `squidpy.gr.nhood_enrichment` draw from: join counts without
    replacement (Cliff and Ord, Spatial Processes, 1981, section 2.3).

    Parameters
    ----------
    degree
        Neighbours of each place; the graph is symmetric.
    n_of, n_beside
        Places of each class.
    same
        Whether it is one class beside itself, whose links count in both directions.
    """
    n, all_links = len(degree), degree.sum()
    sharing = (degree * (degree - 1)).sum()
    falling = np.cumprod([1.0, *(n - np.arange(4.0))])

    def dealt(k: int, size: int) -> float:
        return float(np.prod(size - np.arange(float(k))))

    if same:
        two, three, four = (dealt(k, n_of) / falling[k] for k in (2, 3, 4))
        square = 2 * all_links * two + 4 * sharing * three
    else:
        two = n_of * n_beside / falling[2]
        three = (dealt(2, n_of) * n_beside + n_of * dealt(2, n_beside)) / falling[3]
        four = dealt(2, n_of) * dealt(2, n_beside) / falling[4]
        square = all_links * two + sharing * three
    square += (all_links**2 - 2 * all_links - 4 * sharing) * four
    mean = all_links * two
    return float(mean), float(np.sqrt(max(square - mean**2, 0.0)))


def local_clustering(graph: sparse.csr_matrix) -> np.ndarray:
    """Return the share of the pairs of neighbours of each place that touch each other (networkx)."""
    degree = np.diff(graph.indptr).astype(float)
    triangles = np.asarray((graph @ graph).multiply(graph).sum(axis=1)).ravel()
    return triangles / np.maximum(degree * (degree - 1), 1)


def group_closeness(graph: sparse.csr_matrix, member: np.ndarray) -> float:
    """Return the places outside a group over the sum of their steps to it (networkx, as squidpy)."""
    outside = ~member
    if not member.any() or not outside.any():
        return np.nan
    steps = csgraph.dijkstra(graph, unweighted=True, indices=np.flatnonzero(member), min_only=True)[
        outside
    ]
    total = steps[np.isfinite(steps)].sum()
    return float(outside.sum() / total) if total else 0.0


def _measures(
    table: pd.DataFrame, graph: sparse.csr_matrix, moved: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Give what the slide says of its patient (`MEASURES`), each beside its moved maps."""
    tumour = table["tumour"].to_numpy(bool)
    near = np.asarray(graph @ tumour.astype(float)).ravel()
    border = near[~tumour].sum()
    known = table[IMMUNE].notna().all(), table[STROMA].notna().all()
    shared = {"partition": "patient", "null": "moved", "n_of": int(tumour.sum())}
    immune, stroma = (table["class"].to_numpy() == name for name in (IMMUNE, STROMA))

    def row(
        name: str, value: float, null: np.ndarray, beside: str, n: int, note: str = ""
    ) -> dict[str, Any]:
        return _row(name, value, null, of="tumour", beside=beside, n_beside=n, note=note, **shared)

    none = np.empty(0)
    if not border:
        note = "no place of the tumour touches another"
        for name in MEASURES:
            yield row(name, np.nan, none, STROMA if name == "stroma_border" else IMMUNE, 0, note)
        return
    unread = "too few genes of the programme vary"
    score = table[IMMUNE].to_numpy(float)

    def infiltration(values: np.ndarray) -> np.ndarray:
        return values[..., tumour].mean(-1) - values[..., ~tumour].mean(-1)

    if known[0] and score.std() > 0:
        score = (score - score.mean()) / score.std()
        yield row(
            MEASURES[0],
            float(infiltration(score)),
            infiltration(score[moved]),
            IMMUNE,
            int(immune.sum()),
        )
    else:
        yield row(MEASURES[0], np.nan, none, IMMUNE, 0, unread)
    # An immune map keeps its own links wherever it lies; each pair of places once.
    within = float(immune @ (graph @ immune.astype(float))) / 2
    with_tumour = near[immune].sum()
    note = "" if within + with_tumour else "no immune place touches the tumour or another one"
    if known[0] and not note:
        links = _moved_links(immune, near, tumour, moved)
        with np.errstate(all="ignore"):
            null = links / (links + within)
        mixed = with_tumour / (with_tumour + within)
        yield row(MEASURES[1], mixed, null, IMMUNE, int(immune.sum()))
    else:
        yield row(
            MEASURES[1], np.nan, none, IMMUNE, int(immune.sum()), note if known[0] else unread
        )
    for name, member, beside, read in (
        (MEASURES[2], immune, IMMUNE, known[0]),
        (MEASURES[3], stroma, STROMA, known[1]),
    ):
        if not read:
            yield row(name, np.nan, none, beside, 0, unread)
            continue
        null = np.minimum(_moved_links(member, near, tumour, moved) / border, 1)
        yield row(name, near[member].sum() / border, null, beside, int(member.sum()))


def _moved_links(
    member: np.ndarray, near: np.ndarray, tumour: np.ndarray, moved: np.ndarray
) -> np.ndarray:
    """Return the links to the tumour of a class moved over the slide, for as many places as it has."""
    maps = member[moved] & ~tumour
    with np.errstate(all="ignore"):
        return (maps @ near) * member.sum() / maps.sum(axis=1)


def _row(statistic: str, value: float, draws: np.ndarray, **more: Any) -> dict[str, Any]:
    """Return one row of the table: a number beside mean, 95 % range and two-sided p of its null.

    Of moved maps, of which the first half is turned and the other shifted, p is the larger of both
    (each holds where the other fails: `histogep.stats.nulls`).
    """
    row = {"statistic": statistic, "value": float(value), **more}
    kinds = np.array_split(draws, 2) if row["null"] == "moved" else [draws]
    kinds = [kind[np.isfinite(kind)] for kind in kinds]
    draws = np.concatenate(kinds)
    if not len(draws) or not np.isfinite(value):
        return row | {"null": ""}
    away = abs(value - draws.mean()) - 1e-9
    reached = [
        (1 + (np.abs(kind - draws.mean()) >= away).sum()) / (1 + len(kind)) for kind in kinds
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    return row | {
        "null_mean": float(draws.mean()),
        "null_low": float(low),
        "null_high": float(high),
        "p": float(max(reached)),
    }


def _plain(statistic: str, value: float, **more: Any) -> dict[str, Any]:
    return {"statistic": statistic, "value": value, **more}


def _annotated(
    table: pd.DataFrame, label: pd.Series, graph: sparse.csr_matrix | None = None
) -> anndata.AnnData:
    """Return places as squidpy reads them: `class` in obs, `spatial` in obsm, links in obsp."""
    names = sorted(set(label), key=lambda name: (_ORDER.get(name, -1), name))
    obs = pd.DataFrame({"class": pd.Categorical(label, categories=names)}, index=table.index)
    data = anndata.AnnData(obs=obs, obsm={"spatial": table[["x_um", "y_um"]].to_numpy(float)})
    if graph is not None:
        data.obsp["spatial_connectivities"] = graph
    return data


@contextlib.contextmanager
def _squidpy() -> Iterator[Any]:
    """Give squidpy, whose import warns of its own dependencies and whose calls log each step."""
    disabled = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            import squidpy

            yield squidpy
    finally:
        logging.disable(disabled)
