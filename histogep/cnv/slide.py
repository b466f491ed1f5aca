"""Copy number of one slide, from its measured spots or its predicted expression, to its file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd

from histogep.cnv.clones import (
    REFERENCE,
    UNASSIGNED,
    Clones,
    call_arms,
    call_clones,
    join_clones,
    measure_distances,
)
from histogep.cnv.controls import COLUMNS as CONTROL_COLUMNS
from histogep.cnv.controls import (
    COPY_NUMBER,
    EXPRESSION_SUBTYPE,
    check_held_out,
    name_result,
    run_controls,
)
from histogep.cnv.heterogeneity import measure_heterogeneity
from histogep.cnv.marker_genes import COLUMNS as MARKER_MEASURES
from histogep.cnv.marker_genes import rank_markers
from histogep.cnv.profiles import CnvProfiles, infer_profiles
from histogep.cnv.reference import (
    CONFIDENCE,
    RANKED,
    check_reference,
    choose_spots,
    join_labels,
    tile_labels,
)
from histogep.encoders.feature_file import Features
from histogep.errors import InputError
from histogep.files import complete, read_labels, read_tsv
from histogep.lattice import Lattice
from histogep.slides.thumbnail import smaller_entry
from histogep.spots.matrices import expression_of, read_h5ad
from histogep.warned import decides

log = logging.getLogger(__name__)

ARM_COLUMNS = [
    *("slide", "clone", "arm", "value", "n_genes", "n_spots", "call", "z", "z_order"),
    *("reference", "confidence", "name"),
]

MARKER_COLUMNS = ["slide", "clone", "gene", "arm", *MARKER_MEASURES[1:], "name"]

#: Settings of `histogep.cnv.profiles.compare_genes` that the configuration names.
GENE_SETTINGS = (
    *("bin_genes", "exclude_genes", "exclude_chromosomes"),
    *("min_detected", "min_reference", "min_genes", "min_chromosome_genes", "genome"),
)
_PROFILE_SETTINGS = (*GENE_SETTINGS, "window", "step", "dynamic_threshold")
_CLONE_SETTINGS = ("smoothing", "max_clones", "min_clone_spots", "min_stability")


def profile_slide(
    expression: Any,
    positions: pd.DataFrame,
    *,
    slide: str,
    labels: np.ndarray,
    obs: pd.DataFrame,
    lattice: Lattice,
    settings: Mapping[str, Any],
    measured: bool,
    ranked: np.ndarray | None = None,
    spatial: np.ndarray | None = None,
    picture: Mapping[str, Any] | None = None,
    genes: list[str],
    gene_ids: list[str] | None = None,
    agreement: pd.DataFrame | None = None,
    seed: int = 0,
) -> tuple[anndata.AnnData, pd.DataFrame, pd.DataFrame]:
    """Return the copy number of a slide, its arms and its clones' markers, or why there is none.

    Parameters
    ----------
    expression
        log1p CP10k, a matrix of spots by genes, sparse or not.
    positions
        Table of `histogep.inputs.genome.read_gene_positions`.
    slide
        Id of the slide.
    labels
        malignant, boundary, non-malignant or undetermined, for each spot; non-malignant spots are
        the reference.
    obs
        row and col of each spot on the lattice; the index names the spots.
    lattice
        The lattice, for neighbours.
    settings
        Section `cnv` of the configuration.
    measured
        Whether the expression was measured; a prediction is named by its controls.
    ranked
        "low", "high" or "" for each spot, as `choose_spots` takes it.
    spatial
        Level-0 pixels (x, y) of the spots.
    picture
        `uns["spatial"]` of the slide's spots or tiles: its image, of which a smaller one is kept.
    genes, gene_ids
        Symbols of the columns, and their Ensembl ids if they are known.
    agreement
        How predicted and measured arms agree in the study's held-out patients (the table of
        compare_cnv), for a predicted slide; None where there are no sections.
    seed
        Seed of all that is random.

    Returns
    -------
    tuple
        AnnData without X: obs row, col, label, reference, malignant, cnv_score, clone,
        clone_probability (posterior of the spot's clone);
        obsm X_cnv (and X_arms, spatial); uns cnv.chr_pos, arms, measured, name, refused (why
        there is no profile, or ""), reference ("labels", "ranked" or "prediction": what chose the
        reference), n_reference, n_tumour, genes_per_chromosome, controls, clone_numbers, clone_genes
        (arm of each gene, its mean log1p CP10k in the reference and its mean log ratio in each
        clone), spatial (`histogep.slides.thumbnail.spatial_entry`), clone_distances, clone_tree (Newick), heterogeneity
        (`histogep.cnv.heterogeneity.measure_heterogeneity`), lattice. The table of arms (columns
        `ARM_COLUMNS`). And the genes that are higher in a clone than in the slide's other clones
        (columns `MARKER_COLUMNS`; empty with one clone). Of an expression subtype both tables have
        "group" in place of "clone", and "higher" and "lower" in place of "gain" and "loss".
    """
    labels = np.asarray(labels, dtype=object)
    reference, malignant, rule = choose_spots(labels, ranked, measured=measured)
    if rule == RANKED:
        log.warning(
            "slide %s: its labels name no malignant or no non-malignant spot; the ends of the "
            "marker score stand in for them, so confidence is low and the result is not called CNV",
            slide,
            **decides("copy number"),
        )
    obs = obs[["row", "col"]].copy()
    obs.index = obs.index.astype(str)
    obs["label"] = labels.astype(str)
    obs["reference"], obs["malignant"] = reference, malignant
    try:
        check_reference(labels, reference, measured=measured)
        profiles = infer_profiles(
            expression,
            positions,
            reference,
            genes=genes,
            gene_ids=gene_ids,
            **_chosen(settings, _PROFILE_SETTINGS),
        )
    except InputError as error:
        log.warning("slide %s: no copy number: %s", slide, error, **decides("copy number"))
        refused = _refused(obs, str(error), slide, measured, rule)
        _place(refused, spatial, lattice, picture)
        tables = (pd.DataFrame(columns=columns) for columns in (ARM_COLUMNS, MARKER_COLUMNS))
        return refused, *(_name_table(table, refused.uns["name"]) for table in tables)
    neighbours = lattice.neighbours(obs["row"].to_numpy(), obs["col"].to_numpy())
    clones = call_clones(
        profiles,
        malignant,
        neighbours=neighbours,
        seed=seed,
        **_chosen(settings, _CLONE_SETTINGS),
    )
    arms = call_arms(
        profiles,
        clones.labels,
        neighbours=neighbours,
        seed=seed,
        **_chosen(settings, ("min_z", "min_arm_genes")),
    )
    arms.insert(0, "slide", slide)
    arms["reference"], arms["confidence"] = rule, CONFIDENCE[rule]
    controls = run_controls(
        profiles,
        clones.labels,
        malignant=malignant,
        seed=seed,
        **_chosen(settings, ("guard_genes", "guard_chromosome_genes", "permutations")),
    )
    if not measured:
        controls = pd.concat([controls, check_held_out(agreement)], ignore_index=True)
    obs["cnv_score"] = profiles.score.astype(np.float32)
    obs["clone"] = clones.labels.astype(str)
    obs["clone_probability"] = clones.probability.astype(np.float32)
    name = name_result(controls, measured=measured, ranked=rule == RANKED)
    log.info("slide %s: %d clones, called %s", slide, len(clones.names), name)
    for row in controls.itertuples():
        log.info("control %s: %.4g, p %.3g: %s", row.control, row.value, row.p, row.verdict)
    markers = _clone_markers(expression, genes, profiles, clones).assign(slide=slide)
    distances = measure_distances(profiles, clones.labels)
    result = anndata.AnnData(obs=obs)
    result.obsm["X_cnv"] = profiles.values
    result.obsm["X_arms"] = profiles.arms.astype(np.float32)
    result.uns |= _record(slide, measured, name, rule, refused="", controls=controls)
    result.uns |= {
        "cnv": {"chr_pos": profiles.chr_pos},
        "arms": profiles.arm_table,
        "n_reference": int(reference.sum()),
        "n_tumour": int(malignant.sum()),
        "genes_per_chromosome": profiles.genes_per_chromosome,
        "clone_numbers": clones.table,
        "clone_genes": _clone_genes(profiles, clones),
        "clone_distances": distances,
        "clone_tree": join_clones(distances),
        "heterogeneity": measure_heterogeneity(expression, profiles.values, malignant, seed=seed),
    }
    _place(result, spatial, lattice, picture)
    return (
        result,
        _name_table(arms[ARM_COLUMNS[:-1]], name),
        _name_table(markers[MARKER_COLUMNS[:-1]], name),
    )


def measured_slide(
    spots: str | Path,
    labels: str | Path,
    *,
    slide: str,
    positions: pd.DataFrame,
    settings: Mapping[str, Any],
    seed: int = 0,
) -> tuple[anndata.AnnData, pd.DataFrame, pd.DataFrame]:
    """Return `profile_slide` of a section, from its counts and labels.

    Parameters
    ----------
    spots, labels
        results/spots/{slide}.h5ad and results/labels/{slide}.tsv.
    slide, positions, settings, seed
        As `profile_slide` takes them.
    """
    section = read_h5ad(spots)
    table = read_labels(labels, section.obs_names)
    ids = section.var["gene_id"].astype(str).tolist() if "gene_id" in section.var else None
    return profile_slide(
        expression_of(section),
        positions,
        slide=slide,
        labels=join_labels(section.obs_names, table, str(labels)),
        ranked=join_labels(section.obs_names, table, str(labels), column="ranked", missing=""),
        obs=section.obs,
        lattice=Lattice.from_settings(plain_lattice(section.uns["lattice"])),
        settings=settings,
        measured=True,
        spatial=section.obsm["spatial"],
        picture=section.uns["spatial"],
        genes=section.var_names.tolist(),
        gene_ids=ids,
        seed=seed,
    )


def predicted_slide(
    values: np.ndarray,
    features: Features,
    expression: str | Path,
    *,
    genes: Sequence[str],
    slide: str,
    positions: pd.DataFrame,
    settings: Mapping[str, Any],
    agreement: str | Path | None = None,
    seed: int = 0,
) -> tuple[anndata.AnnData, pd.DataFrame, pd.DataFrame]:
    """Return `profile_slide` of a slide without spots, from its predicted extended panel.

    Tiles with a tumour probability below `tumour_threshold` are the reference.

    Parameters
    ----------
    values
        Predicted log1p CP10k, tiles x genes (`histogep.deployment.extended_panel.predict_extended`).
    features
        The features from which they were predicted.
    expression
        results/expression/{slide}.h5ad, the main panel and the tumour map of the same tiles.
    genes
        The genes of `values`.
    slide, positions, settings, seed
        As `profile_slide` takes them.
    agreement
        results/cnv/{study}/agreement.tsv, where the model's study has sections.
    """
    tiles = read_h5ad(expression)
    row, col = (tiles.obs[name].to_numpy() for name in ("row", "col"))
    if not (np.array_equal(row, features.row) and np.array_equal(col, features.col)):
        raise InputError(
            f"{expression} and the features of {slide} do not list the same tiles in the same "
            "order; delete the former and run the workflow again"
        )
    labels = tile_labels(
        tiles.obs["tumour"].to_numpy(), threshold=settings.get("tumour_threshold", 0.5)
    )
    return profile_slide(
        values,
        positions,
        slide=slide,
        labels=labels,
        obs=tiles.obs,
        lattice=Lattice.from_settings(plain_lattice(tiles.uns["lattice"])),
        settings=settings,
        measured=False,
        spatial=tiles.obsm["spatial"],
        picture=tiles.uns["spatial"],
        genes=list(genes),
        agreement=None if agreement is None else read_tsv(agreement),
        seed=seed,
    )


def write_profile(result: anndata.AnnData, path: str | Path) -> None:
    """Write the copy number of a slide."""
    with complete(path) as temporary:
        result.write_h5ad(temporary, compression="gzip")


def chromosome_starts(result: anndata.AnnData) -> dict[str, int]:
    """Return the first window of each chromosome, in the order of the windows."""
    chr_pos = result.uns["cnv"]["chr_pos"]
    return {name: int(chr_pos[name]) for name in sorted(chr_pos, key=lambda c: int(chr_pos[c]))}


def plain_lattice(lattice: Any) -> dict[str, Any]:
    """Return a lattice as it was written to an h5ad file, by JSON or as a group."""
    if isinstance(lattice, str):
        return json.loads(lattice)
    return {
        name: value.tolist() if hasattr(value, "tolist") else value
        for name, value in lattice.items()
    }


def _name_table(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return a table of clones in the words of what the result may be called."""
    table = table.assign(name=name)
    if name == COPY_NUMBER:
        return table
    if "call" in table:
        table["call"] = table["call"].replace({"gain": "higher", "loss": "lower"})
    return table.rename(columns={"clone": "group"})


def _clone_markers(
    expression: Any, genes: list[str], profiles: CnvProfiles, clones: Clones
) -> pd.DataFrame:
    """Return the genes, in copy-number profiles or not, that are higher in one clone than in others."""
    spots = np.isin(clones.labels, clones.names)
    markers = rank_markers(expression[spots], clones.labels[spots], genes)
    markers = markers.rename(columns={"group": "clone"})
    arm = profiles.genes.set_index("gene")["arm"].astype(str)
    markers["arm"] = markers["gene"].map(arm)
    return markers


def _clone_genes(profiles: CnvProfiles, clones: Clones) -> pd.DataFrame:
    """Return arm and mean log ratio in each clone (against the reference) of the genes used."""
    normal = profiles.gene_means(profiles.reference)
    table = pd.DataFrame(
        {
            name: (profiles.gene_means(clones.labels == name) - normal).astype(np.float32)
            for name in clones.names
        },
        index=profiles.genes["gene"].to_numpy(object),
    )
    table.insert(0, "arm", pd.Categorical(profiles.genes["arm"]))
    table.insert(1, REFERENCE, profiles.genes["reference_level"].to_numpy(np.float32))
    return table


def _chosen(settings: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: settings[name] for name in names if name in settings}


def _refused(
    obs: pd.DataFrame,
    reason: str,
    slide: str,
    measured: bool,
    rule: str,
) -> anndata.AnnData:
    """Return the file of a slide that allows no profile."""
    obs = obs.assign(cnv_score=np.float32(np.nan), clone=UNASSIGNED)
    obs["clone_probability"] = np.float32(np.nan)
    result = anndata.AnnData(obs=obs)
    result.obsm["X_cnv"] = np.zeros((len(obs), 0), np.float32)
    name = COPY_NUMBER if measured and rule != RANKED else EXPRESSION_SUBTYPE
    controls = pd.DataFrame(columns=CONTROL_COLUMNS)
    controls.loc[0] = ["profile made", 0.0, np.nan, np.nan, np.nan, "fail"]
    result.uns |= _record(slide, measured, name, rule, refused=reason, controls=controls)
    result.uns |= {
        "n_reference": int(obs["reference"].sum()),
        "n_tumour": int(obs["malignant"].sum()),
    }
    return result


def _record(
    slide: str, measured: bool, name: str, rule: str, *, refused: str, controls: pd.DataFrame
) -> dict[str, Any]:
    controls = controls.reset_index(drop=True)
    controls.index = controls.index.astype(str)
    return {
        "slide": slide,
        "measured": bool(measured),
        "name": name,
        "refused": refused,
        "reference": rule,
        "controls": controls,
    }


def _place(
    result: anndata.AnnData,
    spatial: np.ndarray | None,
    lattice: Lattice,
    picture: Mapping[str, Any] | None,
) -> None:
    result.uns["lattice"] = lattice.to_settings()
    if spatial is not None:
        result.obsm["spatial"] = np.asarray(spatial, np.float64)
    if picture is not None:
        result.uns["spatial"] = smaller_entry(picture)
    for name, value in list(result.uns.items()):
        if isinstance(value, pd.DataFrame):
            result.uns[name] = value.set_axis(value.index.astype(str))
