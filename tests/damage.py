"""Every kind of input: how a small one is made, how it is read, and what its format can notice.

A reader here is a public function of the library, called as the workflow calls it. It returns
`(size, digest)`: how much was read (rows, shapes, pixels), and a digest of all of it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import yaml
from scipy import io, sparse

ROOT = Path(__file__).resolve().parents[1]
N_SPOTS, N_GENES = 12, 8
LATTICE = {"kind": "visium", "pitch_um": 100.0, "tile_um": 112.0}


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes
    ----------
    make
        Writes it into a folder; returns the file to be damaged.
    read
        Reads it from its folder.
    notices
        What the format, or what the project holds beside it, can notice of a change of bytes:
        "all" (checksums or a digest); "size" (numbers of another value are taken, but as many);
        "lines" (text: whatever its lines say now, with none of them lost on the way).
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    notices: str


def digest(*parts: Any) -> str:
    """Return a digest of tables, arrays and plain values."""
    total = hashlib.sha256()
    for part in parts:
        if sparse.issparse(part):
            part = part.toarray()
        if isinstance(part, pd.Series):
            part = part.to_frame()
        if isinstance(part, pd.DataFrame):
            total.update(part.to_csv().encode("utf-8", "surrogatepass"))
        elif isinstance(part, np.ndarray) and part.dtype != object:
            total.update(
                f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(part).tobytes()
            )
        else:
            total.update(repr(part).encode("utf-8", "surrogatepass"))
    return total.hexdigest()


# ------------------------------------------------------------------------------- sheets, tables


def make_slide_sheet(folder: Path) -> Path:
    for name in "abc":
        (folder / f"{name}.svs").touch()
    rows = [f"S{i}\tP{i}\tc\t{name}.svs\t0.{i}5" for i, name in enumerate("abc", start=1)]
    return _text(folder / "slides.tsv", ["slide\tpatient\tcohort\timage\tmpp", *rows])


def read_slide_sheet(path: Path) -> Any:
    from histogep.study.sheets import read_slides

    table = read_slides(path)
    return len(table), digest(table.drop(columns="image"), [Path(p).name for p in table["image"]])


def make_patient_sheet(folder: Path) -> Path:
    rows = [f"P{i}\t{10 + i}.5\t{i % 2}\t{50 + i}\tF\tII" for i in range(8)]
    return _text(folder / "patients.tsv", ["patient\ttime\tevent\tage\tsex\tstage", *rows])


def make_patient_book(folder: Path) -> Path:
    table = pd.DataFrame({"bcr_patient_barcode": [f"TCGA-AA-000{i}" for i in range(8)]})
    table = table.assign(OS=[0, 1] * 4, age_at_initial_pathologic_diagnosis=range(50, 58))
    table.assign(**{"OS.time": range(300, 1100, 100)}).to_excel(folder / "cdr.xlsx", index=False)
    return folder / "cdr.xlsx"


def make_patient_csv(folder: Path) -> Path:
    rows = [f"P{i},{10 + i}.5,{i % 2},{50 + i}" for i in range(8)]
    return _text(folder / "patients.csv", ["patient,time,event,age", *rows])


def read_patient_table(path: Path) -> Any:
    from histogep.study.clinical import read_clinical

    table = read_clinical(path)
    return len(table), digest(table)


def make_bulk(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    names = [f"P{i}" for i in range(6)]
    rows = [f"G{i}\t" + "\t".join(f"{v:.3f}" for v in rng.normal(5, 1, 6)) for i in range(10)]
    lines = ["gene\t" + "\t".join(names), *rows]
    path = folder / "bulk.tsv.gz"
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))
    return path


def read_bulk(path: Path) -> Any:
    from histogep.study.bulk import read_expression

    table = read_expression(path, scale="log2")
    return table.shape, digest(table)


def make_gmt(folder: Path) -> Path:
    sets = [f"SET_{i}\tabout\t" + "\t".join(f"GENE{j}" for j in range(i, i + 6)) for i in range(6)]
    return _text(folder / "sets.gmt", sets)


def read_gene_sets(path: Path) -> Any:
    from histogep.inputs.gene_sets import read_gmt

    sets = read_gmt(path)
    return len(sets), digest(sets)


def make_signatures(folder: Path) -> Path:
    path = folder / "signatures.yaml"
    path.write_bytes((ROOT / "histogep/resources/signatures.yaml").read_bytes())
    return path


def read_signature_file(path: Path) -> Any:
    from histogep.outcome.signatures import read_signatures

    found = read_signatures(path)
    return None, digest(found)


def make_gene_positions(folder: Path) -> Path:
    rows = [f"GENE{i}\tchr{1 + i % 5}\t{1000 * i}\t{1000 * i + 500}" for i in range(40)]
    return _text(folder / "positions.tsv", ["gene\tchromosome\tstart\tend", *rows])


def read_positions_of_genes(path: Path) -> Any:
    from histogep.inputs.genome import read_gene_positions

    table = read_gene_positions(path)
    return None, digest(table)


def make_configuration(folder: Path) -> Path:
    path = folder / "config.yaml"
    path.write_bytes((ROOT / "config/config.yaml").read_bytes())
    return path


def read_configuration(path: Path) -> Any:
    from histogep.study import settings

    schema = yaml.safe_load((ROOT / "config/schemas/config.schema.yaml").read_text())
    settings.refuse_repeated_keys(path)
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        return None, digest(settings.complete_settings(given or {}, schema, name=path.name))
    except settings.InputError as error:
        # Keys are named as `config.yaml.seed` here.
        raise settings.InputError(f"{path.name}: {error}") from error


# --------------------------------------------------------------------------- counts and places


def _counts() -> tuple[sparse.csr_matrix, list[str], list[str]]:
    counts = np.random.default_rng(1).poisson(2.0, (N_SPOTS, N_GENES))
    names = [f"ACGTACGT{i:02d}-1" for i in range(N_SPOTS)]
    return sparse.csr_matrix(counts.astype(np.int32)), names, [f"GENE{i}" for i in range(N_GENES)]


def _places() -> pd.DataFrame:
    row, col = (part.ravel() for part in np.mgrid[:4, :3])
    table = pd.DataFrame({"barcode": _counts()[1], "in_tissue": 1, "array_row": row})
    table["array_col"] = 2 * col + row % 2
    table["pxl_row_in_fullres"] = 100.0 + 87 * row
    return table.assign(pxl_col_in_fullres=100.0 + 50 * table["array_col"])


def _spatial(folder: Path) -> Path:
    (folder / "spatial").mkdir()
    path = folder / "spatial/tissue_positions.csv"
    _places().to_csv(path, index=False)
    scale = {"spot_diameter_fullres": 27.5}
    (folder / "spatial/scalefactors_json.json").write_text(json.dumps(scale))
    return path


def make_10x_h5(folder: Path) -> Path:
    import h5py

    counts, names, genes = _counts()
    _spatial(folder)
    path = folder / "filtered_feature_bc_matrix.h5"
    options = {"compression": "gzip", "shuffle": True}
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group.create_dataset("barcodes", data=np.array(names, "S"), **options)
        for part in ("data", "indices", "indptr"):
            group.create_dataset(part, data=getattr(counts, part), **options)
        group["shape"] = [N_GENES, N_SPOTS]
        part = group.create_group("features")
        for key, values in {
            "id": [f"ENSG{i:011d}" for i in range(N_GENES)],
            "name": genes,
            "feature_type": ["Gene Expression"] * N_GENES,
            "genome": ["GRCh38"] * N_GENES,
        }.items():
            part.create_dataset(key, data=np.array(values, "S"), **options)
    return path


def make_10x_mtx(folder: Path, name: str = "matrix.mtx.gz") -> Path:
    counts, names, genes = _counts()
    _spatial(folder)
    inside = folder / "filtered_feature_bc_matrix"
    inside.mkdir()
    with gzip.open(inside / "matrix.mtx.gz", "wb") as handle:
        io.mmwrite(handle, sparse.coo_matrix(counts.T))
    features = "".join(f"ENSG{i:011d}\t{g}\tGene Expression\n" for i, g in enumerate(genes))
    (inside / "features.tsv.gz").write_bytes(gzip.compress(features.encode(), mtime=0))
    (inside / "barcodes.tsv.gz").write_bytes(
        gzip.compress("\n".join([*names, ""]).encode(), mtime=0)
    )
    return inside / name


def make_positions(folder: Path) -> Path:
    return make_10x_h5(folder).parent / "spatial/tissue_positions.csv"


def make_h5ad(folder: Path) -> Path:
    counts, names, genes = _counts()
    places = _places().set_index("barcode")
    table = anndata.AnnData(counts, obs=places.iloc[:, :3], var=pd.DataFrame(index=genes))
    table.obs_names = names
    table.obsm["spatial"] = places.iloc[:, [4, 3]].to_numpy(float)
    table.write_h5ad(folder / "spots.h5ad", compression="gzip")
    return folder / "spots.h5ad"


def make_st_table(folder: Path) -> Path:
    counts, _, genes = _counts()
    places = [f"{10 + i // 4}x{10 + i % 4}" for i in range(N_SPOTS)]
    rows = [
        f"{p}\t" + "\t".join(map(str, c)) for p, c in zip(places, counts.toarray(), strict=True)
    ]
    at = [
        f"{10 + i // 4}\t{10 + i % 4}\t{300 * (i % 4)}.5\t{300 * (i // 4)}.5"
        for i in range(N_SPOTS)
    ]
    _text(folder / "spots.tsv", ["x\ty\tpixel_x\tpixel_y", *at])
    return _text(folder / "counts.tsv", ["\t" + "\t".join(genes), *rows])


def read_counts(path: Path) -> Any:
    from histogep.spots.readers import read_section

    positions = path.parent / "spots.tsv" if path.name == "counts.tsv" else None
    if path.parent.name in ("spatial", "filtered_feature_bc_matrix"):
        path = path.parent.parent
    section = read_section(path, positions=positions)
    told = (section.genes, section.gene_ids, section.table, section.counts)
    return section.counts.shape, digest(*map(_plain, told))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, np.ndarray) and value.dtype == object else value


def make_labels(folder: Path) -> Path:
    words = ["malignant", "stroma", "immune"]
    rows = [f"{name},{words[i % 3]}" for i, name in enumerate(_counts()[1])]
    return _text(folder / "labels.csv", ["barcode,label", *rows])


def read_label_table(path: Path) -> Any:
    from histogep.labels.annotated import read_annotation

    labels = read_annotation(path)
    return len(labels), digest(labels)


def make_geojson(folder: Path) -> Path:
    def feature(left: int, name: str) -> dict[str, Any]:
        ring = [[left, 0], [left + 90, 0], [left + 90, 80], [left, 80], [left, 0]]
        kind = {"objectType": "annotation", "classification": {"name": name}}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        return {"type": "Feature", "geometry": geometry, "properties": kind}

    features = [feature(100 * i, name) for i, name in enumerate(("include", "exclude", "include"))]
    content = {"type": "FeatureCollection", "features": features}
    return _text(folder / "regions.geojson", [json.dumps(content, indent=1)])


def read_geojson(path: Path) -> Any:
    from histogep.slides.regions import read_regions

    regions = read_regions(path)
    return None, digest([area.wkt for area in (*regions.include, *regions.exclude)])


# --------------------------------------------------------------------------------------- images


def _picture(width: int = 500, height: int = 400) -> Any:
    import pyvips

    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 40, (height, width, 3))
    pixels = (noise + np.stack([x // 3, y // 3, (x + y) // 5], axis=-1)).clip(0, 255)
    return pyvips.Image.new_from_array(pixels.astype(np.uint8)).copy(interpretation="srgb")


def make_image(name: str, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        _picture().write_to_file(str(folder / name), **options)
        return folder / name

    return make


def make_svs(folder: Path) -> Path:
    """Write what OpenSlide takes for Aperio: a tiled JPEG TIFF with its description."""
    import pyvips

    picture = _picture().copy()
    text = "Aperio Image Library v10\r\n500x400 (240x240) JPEG/RGB Q=80|AppMag = 20|MPP = 0.5"
    picture.set_type(pyvips.GValue.gstr_type, "image-description", text)
    path = folder / "slide.svs"
    tiles = {"tile": True, "tile_width": 240, "tile_height": 240}
    picture.tiffsave(str(path), compression="jpeg", Q=80, **tiles)
    return path


def read_image(path: Path) -> Any:
    from histogep.slides.prepare import describe_slide
    from histogep.slides.reader import Slide

    made = path.parent / "made"
    told = describe_slide(slide="S1", source=path, folder=made, mpp=0.5)
    (path.parent / "S1.json").write_text(json.dumps(told))
    with Slide.from_json(path.parent / "S1.json") as slide:
        pixels = slide.read(0, 0, slide.width_px, slide.height_px)
    return pixels.shape, digest(pixels)


# ------------------------------------------------------------------------- features and models


def make_features(folder: Path) -> Path:
    from histogep.encoders.feature_file import write_features
    from tests.model_study import make_features

    write_features(make_features("S1", np.random.default_rng(0))[0], folder / "features.h5")
    return folder / "features.h5"


def read_feature_file(path: Path) -> Any:
    from histogep.encoders.feature_file import read_features

    found = read_features(path)
    told = (found.values, found.row, found.col, found.coords, list(found.barcode), found.blocks)
    return found.values.shape, digest(*told, found.lattice, found.encoders)


def make_given_features(folder: Path) -> Path:
    import h5py

    x, y = np.meshgrid(np.arange(96, 7500, 448), np.arange(32, 5500, 448))
    corners = np.column_stack([x.ravel(), y.ravel()])
    options = {"compression": "gzip", "shuffle": True, "fletcher32": True}
    with h5py.File(folder / "given.h5", "w") as file:
        file.create_dataset("features", data=corners.astype(np.float32), **options)
        coords = file.create_dataset("coords", data=corners, **options)
        coords.attrs.update(
            {"patch_size": 224, "patch_size_level0": 448, "level0_width": 8000}
            | {"level0_height": 6000, "name": "S1"}
        )
    return folder / "given.h5"


def read_given_features(path: Path) -> Any:
    from histogep.encoders.given_features import read_given
    from histogep.lattice import Lattice
    from histogep.slides.reader import Slide

    slide = Slide(slide="S1", image=path, mpp=0.25, width_px=8000, height_px=6000)
    given = read_given(path, slide=slide, lattice=Lattice("visium", 100, 112))
    parts = [value for _, value in sorted(vars(given).items())]
    return None, digest(*parts)


def pack_model(folder: Path) -> Path:
    """Write a model folder that holds a ridge."""
    from safetensors.numpy import save_file

    from histogep.deployment.pack import package_model
    from histogep.files import write_json, write_tsv
    from histogep.models.fit import fit_model
    from histogep.models.sections import read_sections
    from tests.model_study import GENES, make_study, random_keypoints

    study = make_study(folder, patients=("P", "Q", "R"))
    files = [study.files[kind] for kind in ("features", "spots", "labels")]
    genes = GENES[:8]
    sections = read_sections(study.roles(), *files, task="expression", genes=genes)
    fitted = fit_model(
        {"train": sections}, name="ridge", protocol="all", fold="all", genes=genes, seed=1, test={},
        settings={"kind": "ridge", "task": "expression", "panel": "main"}, published_grid=(32, 32),
    )  # fmt: skip
    save_file(fitted.arrays, folder / "ridge.safetensors")
    write_json(fitted.settings, folder / "ridge.json")
    calibration = pd.DataFrame({"model": "ridge", "gene": genes, "predictable": True, "score": 0.3})
    write_tsv(calibration.assign(null=0.01, half_width=0.7), folder / "calibration.tsv")
    card = {"protocol": "patient_cv", "task": "expression", "model": "ridge", "metric": "pearson"}
    write_tsv(pd.DataFrame([card | {"value": 0.3, "null": 0.0}]), folder / "scorecards.tsv")
    package_model(
        folder / "model",
        study="test",
        weights=[folder / "ridge.safetensors"],
        settings=[folder / "ridge.json"],
        fold_settings=[],
        features=study.files["features"],
        images={slide: f"image of {slide}" for slide in study.slides},
        patients=dict(zip(study.slides, study.patients, strict=True)),
        keypoints={slide: random_keypoints(i) for i, slide in enumerate(study.slides)},
        calibration=folder / "calibration.tsv",
        scorecards=folder / "scorecards.tsv",
        deploy={"expression": "ridge"},
        lattice=LATTICE,
    )
    return folder / "model"


def make_model(name: str) -> Callable[[Path], Path]:
    """Return how a file of a model folder is made where `pack_model` was copied to."""
    return lambda folder: folder / name


def read_model_folder(path: Path) -> Any:
    from histogep.deployment.model import load_model

    model = load_model(path.parent)
    parts = [model.settings, model.genes, *vars(model.distances).values()]
    return None, digest(*parts)


def _text(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


MODEL_FILES = (
    *("settings.json", "genes.tsv", "expression.safetensors"),
    *("training_features.safetensors", "training_images.parquet"),
)
KINDS: dict[str, Kind] = {
    "slide sheet": Kind(make_slide_sheet, read_slide_sheet, "lines"),
    "patient sheet": Kind(make_patient_sheet, read_patient_table, "lines"),
    "clinical csv": Kind(make_patient_csv, read_patient_table, "lines"),
    # Members of a zip have a CRC each.
    "clinical xlsx": Kind(make_patient_book, read_patient_table, "all"),
    "bulk tsv.gz": Kind(make_bulk, read_bulk, "all"),
    "gene sets": Kind(make_gmt, read_gene_sets, "lines"),
    "signatures": Kind(make_signatures, read_signature_file, "text"),
    "gene positions": Kind(make_gene_positions, read_positions_of_genes, "text"),
    "configuration": Kind(make_configuration, read_configuration, "text"),
    # Chunks that are compressed end in a checksum, headers and sizes have none.
    "10x h5": Kind(make_10x_h5, read_counts, "size"),
    "10x mtx": Kind(make_10x_mtx, read_counts, "all"),
    "10x features": Kind(lambda f: make_10x_mtx(f, "features.tsv.gz"), read_counts, "all"),
    "h5ad": Kind(make_h5ad, read_counts, "size"),
    "st table": Kind(make_st_table, read_counts, "lines"),
    "spot positions": Kind(make_positions, read_counts, "text"),
    "labels": Kind(make_labels, read_label_table, "lines"),
    "regions": Kind(make_geojson, read_geojson, "text"),
    "svs": Kind(make_svs, read_image, "size"),
    "tiff": Kind(make_image("slide.tiff"), read_image, "size"),
    "tiled tiff": Kind(
        make_image("slide.tiff", tile=True, pyramid=True, compression="deflate"), read_image, "size"
    ),
    "jpeg": Kind(make_image("slide.jpg"), read_image, "size"),
    "png": Kind(make_image("slide.png"), read_image, "all"),
    "features": Kind(make_features, read_feature_file, "all"),
    "given features": Kind(make_given_features, read_given_features, "size"),
    **{f"model {name}": Kind(make_model(name), read_model_folder, "all") for name in MODEL_FILES},
}


def damage(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Return what was done to some bytes, and the bytes: flipped, cut, swapped, zeroed, ..."""
    data = bytearray(content)
    n = len(data)
    at, length = int(rng.integers(n)), int(rng.integers(1, max(2, min(n, 64))))
    how = ["bit", "bits", "cut", "head", "swap", "zero", "double", "noise", "insert"][
        rng.integers(9)
    ]
    if how == "bit":
        data[at] ^= 1 << int(rng.integers(8))
    elif how == "bits":
        for place in rng.integers(n, size=1 + n // 500):
            data[place] ^= 1 << int(rng.integers(8))
    elif how == "cut":
        del data[at:]
    elif how == "head":
        del data[:length]
    elif how == "swap":
        other = int(rng.integers(n))
        data[at : at + length], data[other : other + length] = (
            data[other : other + length],
            data[at : at + length],
        )
    elif how == "zero":
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif how == "double":
        data[at:at] = data[at : at + length]
    elif how == "noise":
        data[at : at + length] = rng.bytes(len(data[at : at + length]))
    else:
        data[at:at] = rng.bytes(length)
    return f"{how} at {at} of {n}", bytes(data)


def lines_of(content: bytes) -> int:
    """Return the different lines of a text, comments and blank ones aside.

    A line that stands twice is one row of a clinical table, and is refused in all others.
    """
    lines = re.split(rb"\r\n|\r|\n", content)
    return len({line.strip() for line in lines if line.strip() and not line.startswith(b"#")})


def attempt(kind: str, path: str) -> tuple[str, Any]:
    """Read a file; return ("read", (size, digest)), ("refused", message) or ("other", what)."""
    from histogep.errors import InputError

    try:
        return "read", KINDS[kind].read(Path(path))
    except InputError as error:
        return "refused", str(error)
    except BaseException as error:
        return "other", f"{type(error).__name__}: {str(error)[:300]}"
