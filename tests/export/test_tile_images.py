import io
import tarfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histogep.encoders.tile_pixels import read_tiles
from histogep.export.tile_images import write_tile_images
from tests.export_slide import COL, LATTICE, MPP, ROW, X_PX, Y_PX, write_slide


@pytest.fixture
def written(tmp_path):
    tiles = pd.DataFrame({"row": ROW, "col": COL, "x_px": X_PX, "y_px": Y_PX, "barcode": ""})
    tiles[["tissue", "pen", "blur", "tissue_fold"]] = [0.9, 0.0, 50.0, 0.0]
    with write_slide(tmp_path) as slide:
        index = write_tile_images(slide, tiles, tmp_path / "S.tar", lattice=LATTICE)
        write_tile_images(slide, tiles, tmp_path / "again.tar", lattice=LATTICE)
        corners = np.c_[X_PX, Y_PX] - 112 / MPP / 2
        pixels = read_tiles(slide, corners, 112 / MPP, size=224)
    return tmp_path, index, pixels


def test_every_tile_is_a_png_of_what_the_encoders_see(written):
    folder, index, pixels = written
    with tarfile.open(folder / "S.tar") as tar:
        assert tar.getnames() == index["file"].tolist()
        for name, tile in zip(index["file"], pixels, strict=True):
            image = Image.open(io.BytesIO(tar.extractfile(name).read()))
            assert image.format == "PNG"
            assert (np.asarray(image) == tile).all()
    assert index.loc[13, ["file", "row", "col"]].tolist() == ["S/1x1.png", 1, 1]
    assert (index["side_px"] == 224).all()
    assert (folder / "S.tar").read_bytes() == (folder / "again.tar").read_bytes()


def test_torchvision_reads_what_is_unpacked_and_streams_have_one_sample_a_tile(written):
    from torchvision.datasets import ImageFolder

    folder, index, _ = written
    with tarfile.open(folder / "S.tar") as tar:
        tar.extractall(folder / "images", filter="data")
        # WebDataset: what stands before the first dot of the name is the key of a sample.
        keys = [
            name.rpartition("/")[0] + "/" + name.rpartition("/")[2].split(".")[0]
            for name in tar.getnames()
        ]
    assert len(set(keys)) == len(index)
    images = ImageFolder(folder / "images")
    assert images.classes == ["S"]
    assert len(images) == len(index)
    assert images[0][0].size == (224, 224)
