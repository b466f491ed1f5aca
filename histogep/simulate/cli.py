"""Sheets and whole studies of the simulation: `python -m histogep.simulate.cli --help`.

Sheets only: `python -m histogep.simulate.cli --out config` writes slides.tsv and patients.tsv, which
for the default arguments are those of the repository. A whole study of another size, for load
tests: `python -m histogep.simulate.cli --study DIR --sections 100 --section-rows 78 ...`, which
`snakemake --directory DIR --configfile DIR/config.yaml` then runs. The data themselves are made
by the rules of `rules/simulate.smk`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from histogep.errors import InputError
from histogep.files import complete, write_tsv
from histogep.simulate.cohort import simulate_sheets

ROOT = Path(__file__).resolve().parents[2]
#: The default study, whose choices a study of another size keeps.
DEFAULT_CONFIG = ROOT / "config" / "config.yaml"
_SIZES = ("section_rows", "section_cols", "slide_rows", "slide_cols", "depth")
#: The network halves its grid this many times, so that the grid is a multiple of 2 to that power.
_HALVINGS = 4

log = logging.getLogger(__name__)


def write_sheets(
    folder: str | Path,
    *,
    seed: int = 1,
    n_with_spots: int = 6,
    n_sections: int = 7,
    n_without_spots: int = 24,
) -> None:
    """Write slides.tsv and patients.tsv of a simulated study.

    Parameters
    ----------
    folder
        Where to write.
    seed
        Seed of the study; `seed` of its configuration must be the same.
    n_with_spots, n_sections, n_without_spots
        Numbers of patients with spots, of their sections, and of patients with slides only.
    """
    slides, patients = simulate_sheets(
        seed=seed,
        n_with_spots=n_with_spots,
        n_sections=n_sections,
        n_without_spots=n_without_spots,
    )
    write_tsv(slides, Path(folder) / "slides.tsv")
    write_tsv(patients, Path(folder) / "patients.tsv")
    log.info("%d slides of %d patients in %s", len(slides), len(patients), folder)


def write_study(
    folder: str | Path,
    *,
    seed: int = 1,
    sizes: Mapping[str, int] | None = None,
    **numbers: int,
) -> dict[str, Any]:
    """Write config.yaml and the sheets of a simulated study of any size.

    Parameters
    ----------
    folder
        The study's folder; `snakemake --directory` must name the same one.
    seed
        Seed of the study.
    sizes
        section_rows, section_cols, slide_rows, slide_cols (cells of the lattice), depth (counts
        per spot); those that are left out are the default study's.
    **numbers
        As for `write_sheets`.

    Returns
    -------
    dict
        The configuration that was written.
    """
    folder = Path(folder)
    config = yaml.safe_load(DEFAULT_CONFIG.read_text(encoding="utf-8"))
    simulation = config["simulation"] | dict(sizes or {})
    if unknown := sorted(set(simulation) - set(_SIZES)):
        raise InputError(f"simulation has unknown settings: {', '.join(unknown)}")
    step = 2**_HALVINGS
    grid = [-(-simulation[key] // step) * step for key in ("section_rows", "section_cols")]
    config |= {
        "study": folder.resolve().name,
        "seed": seed,
        "slides": "slides.tsv",
        "patients": "patients.tsv",
        "simulation": simulation,
        "folds": config.get("folds", {}) | {"published_grid": grid},
    }
    write_sheets(folder, seed=seed, **numbers)
    with complete(folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return config


def main(arguments: Sequence[str] | None = None) -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(prog="histogep.simulate.cli", description=__doc__)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, help="folder for slides.tsv and patients.tsv")
    target.add_argument("--study", type=Path, help="folder for a whole study: sheets and config")
    parser.add_argument("--patients-with-spots", type=int, default=6)
    parser.add_argument("--sections", type=int, default=7)
    parser.add_argument("--patients-without-spots", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    for size in _SIZES:
        parser.add_argument(f"--{size.replace('_', '-')}", type=int, help="with --study")
    given = parser.parse_args(arguments)
    sizes = {size: getattr(given, size) for size in _SIZES if getattr(given, size) is not None}
    if sizes and given.study is None:
        parser.error(f"{', '.join(sizes)} belong to a config: use --study in place of --out")
    numbers = {
        "n_with_spots": given.patients_with_spots,
        "n_sections": given.sections,
        "n_without_spots": given.patients_without_spots,
    }
    try:
        if given.study is not None:
            write_study(given.study, seed=given.seed, sizes=sizes, **numbers)
        else:
            write_sheets(given.out, seed=given.seed, **numbers)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
