"""What the setting `encoders` may say, with and without a model that is applied."""

from __future__ import annotations

import pytest

from histogep.encoders.registry import ENCODERS
from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.study.encoder_choices import applied_encoders, check_encoders, weights_files


def test_the_encoders_of_an_applied_model_are_known_before_a_slide_is_encoded():
    model = applied(["descriptors", "mine"])
    given = [encoder("descriptors"), encoder("local-dir:/weights/mine")]
    assert applied_encoders(model, given) == given
    for names in (["descriptors"], ["mine", "descriptors"], []):
        with pytest.raises(InputError, match=r"reads descriptors \+ mine: set `encoders`"):
            applied_encoders(model, [encoder(name) for name in names])


def test_wider_squares_of_an_applied_model_are_no_encoders_of_their_own():
    model = applied(["lite0", "lite0@224um"], context_um=[112, 224])
    given = [encoder("lite0")]
    assert applied_encoders(model, given) == given
    both = applied(["uni", "lite0", "lite0@224um"], context_um=[112, 224])
    given = [encoder("uni") | {"precomputed": True}, encoder("lite0")]
    assert applied_encoders(both, given) == given
    with pytest.raises(InputError, match="lite0@224um given, but"):
        applied_encoders(applied(["lite0"], context_um=[112, 224]), [encoder("lite0")])


def test_an_applied_model_brings_the_precision_of_its_features():
    model = applied(["lite0"], precision="bfloat16")
    (auto,) = applied_encoders(model, [encoder("lite0", precision="auto")])
    assert auto["precision"] == "bfloat16"
    with pytest.raises(InputError, match="lite0 has precision float32.* features in bfloat16"):
        applied_encoders(model, [encoder("lite0")])
    given = [encoder("lite0", precision="auto") | {"precomputed": True}]
    assert applied_encoders(applied(["lite0"], precision="as given"), given) == given


def applied(names, *, precision="float32", context_um=()):
    return {
        "encoders": [{"name": name, "sha256": "", "precision": precision} for name in names],
        "lattice": Lattice("square", 112, 112, context_um=tuple(context_um)).to_settings(),
    }


def encoder(name, *, precision="float32"):
    return {"name": name, "weights": None, "precision": precision, "precomputed": False}


def test_encoders_that_cannot_be_loaded_are_told_before_a_slide_is_prepared(tmp_path):
    weights = tmp_path / "weights.bin"
    weights.touch()
    given = {"weights": str(weights)}
    sound = [encoder(name) | given for name in (*ENCODERS, "descriptors")]
    check_encoders([*sound, encoder("lite0"), encoder(f"local-dir:{tmp_path}")])
    check_encoders([encoder("mine") | {"precomputed": True}])
    unknown = [encoder("UNI"), encoder("uni"), encoder(f"local-dir:{tmp_path}/no")]
    with pytest.raises(InputError) as error:
        check_encoders([*unknown, encoder("phikon") | {"weights": "/no/file"}])
    told = str(error.value).splitlines()[1:]
    assert "'UNI' is unknown, did you mean 'uni'?" in told[0]
    assert "uni needs its file of weights" in told[1]
    assert "there is no such folder" in told[2]
    assert "the file of weights /no/file does not exist" in told[3]


def test_weights_are_files_that_features_rest_on(tmp_path):
    (tmp_path / "config.json").touch()
    (tmp_path / "model.safetensors").touch()
    given = [
        encoder("lite0"),
        encoder("uni") | {"weights": "/w/uni.bin"},
        encoder(f"local-dir:{tmp_path}"),
        encoder("mine") | {"precomputed": True},
    ]
    folder = [f"{tmp_path}/config.json", f"{tmp_path}/model.safetensors"]
    assert weights_files(given) == ["/w/uni.bin", *folder]


def test_descriptors_have_no_precision_to_bring():
    model = applied(["descriptors"])
    given = [encoder("descriptors", precision="bfloat16")]
    assert applied_encoders(model, given) == given
