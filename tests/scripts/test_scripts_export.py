"""The exports as rules run them, each opened by the program that it is made for."""

import json
import tarfile

import h5py
import numpy as np
import pandas as pd
import spatialdata as sd
import torch

from histogep.encoders.feature_file import write_features
from histogep.files import read_tsv, write_json
from tests import export_slide as one
from tests.model_study import make_features


def _slide(folder):
    one.write_slide(folder).close()
    content = {
        **{"slide": "S", "image": str(folder / "S.tiff"), "mpp": one.MPP},
        **{"width": one.WIDTH_PX, "height": one.HEIGHT_PX},
    }
    write_json(content, folder / "S.json")
    return folder / "S.json"


def test_a_predicted_slide_with_clones_and_a_section_without(run_script, tmp_path):
    slide = _slide(tmp_path)
    predicted = one.write_predicted(tmp_path)
    names = [f"{r}x{c}" for r, c in zip(one.ROW, one.COL, strict=True)]
    cases = {
        "tiles": ({"expression": predicted, "cnv": one.write_cnv(tmp_path, names)}, 0.5),
        "spots": (one.write_section(tmp_path), None),
    }
    for kind, (files, threshold) in cases.items():
        files = files | {"markers": one.MARKERS}
        shared = {"wildcards": {"slide": "S"}}
        store = tmp_path / f"{kind}.zarr"
        log = run_script(
            "export_spatialdata.py",
            input=files | {"slide": slide},
            output={"store": store},
            params={"image_um": 2.0, "tumour_threshold": threshold},
            **shared,
        )
        assert "120 places, 8 genes" in log
        data = sd.read_zarr(store)
        assert list(data.shapes) == [f"S_{kind}"]
        assert ("copy_number" in data.tables) == (kind == "tiles")
        folder = tmp_path / f"{kind}.qupath"
        run_script(
            "export_qupath.py",
            input=files,
            output={"layers": folder},
            params={"genes": ["EPCAM"], "tumour_threshold": threshold},
            **shared,
        )
        features = json.loads((folder / "tumour.geojson").read_text())["features"]
        assert len(features) == 120
        assert "EPCAM" in features[0]["properties"]["measurements"]


def test_tiles_and_features(run_script, tmp_path):
    slide = _slide(tmp_path)
    tiles = pd.DataFrame(
        {"row": one.ROW, "col": one.COL, "x_px": one.X_PX, "y_px": one.Y_PX, "barcode": ""}
    ).assign(tissue=1.0, pen=0.0, blur=1.0, tissue_fold=0.0)
    tiles.to_parquet(tmp_path / "S.parquet")
    output = {"images": tmp_path / "out/S.tar", "index": tmp_path / "out/S.tsv"}
    run_script(
        "export_tiles.py",
        input={"slide": slide, "tiles": tmp_path / "S.parquet"},
        output=output,
        params={"lattice": one.LATTICE.to_settings()},
        wildcards={"slide": "S"},
    )
    with tarfile.open(output["images"]) as tar:
        assert tar.getnames() == read_tsv(output["index"])["file"].tolist()
    features, _ = make_features("S", np.random.default_rng(0))
    write_features(features, tmp_path / "h5_files/S.h5")
    path = tmp_path / "pt_files/S.pt"
    run_script(
        "export_clam.py",
        input={"features": tmp_path / "h5_files/S.h5"},
        output={"features": path},
        wildcards={"slide": "S"},
    )
    # As CLAM's Generic_MIL_Dataset opens the one, or the other after load_from_h5(True).
    bag = torch.load(path)
    with h5py.File(tmp_path / "h5_files/S.h5", "r") as file:
        other = torch.from_numpy(file["features"][:])
        assert len(file["coords"][:]) == len(other)
    assert bag.dtype == torch.float32
    assert torch.equal(bag, other)
