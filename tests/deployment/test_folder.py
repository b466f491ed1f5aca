"""Model folders that somebody changed, and packed again: named, or they predict what they did."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from histogep.deployment import folder as model_folder
from histogep.deployment.arrays import check_predicted, model_shapes, read_model_arrays
from histogep.deployment.extended_panel import predict_extended
from histogep.deployment.model import load_model
from histogep.errors import InputError
from histogep.files import read_tsv, write_json, write_tsv
from histogep.models.predict import build_model, network_shapes
from tests.deployment.test_model import packed, study  # noqa: F401 (fixtures)
from tests.model_study import make_features

SETTINGS = "settings.json"
N_EDITS = 2 * int(os.environ.get("HISTOGEP_DAMAGE_DRAWS", "200"))
DELETE = object()


@pytest.fixture(scope="module")
def folder(packed):  # noqa: F811
    return packed[0]


@pytest.fixture(scope="module")
def slide():
    features, _ = make_features("NEW", np.random.default_rng(77))
    kept = np.flatnonzero((features.row < 6) & (features.col < 6))
    for name in ("values", "row", "col", "coords", "barcode"):
        setattr(features, name, getattr(features, name)[kept])
    return features


@pytest.fixture(scope="module")
def before(folder, slide):
    return predicted(folder, slide)


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def predicted(folder, slide):
    """Return all that a model folder says of a slide, but for its digest."""
    said = load_model(folder).predict(slide)
    extended, genes = predict_extended(slide, folder)
    uns = {key: value for key, value in said.uns.items() if key != "model_digest"}
    return (
        said.expression,
        said.genes,
        said.tumour,
        said.ood_score,
        said.out_of_distribution,
        extended,
        genes,
        uns,
    )


def same(one, other):
    return all(
        a.equals(b) if isinstance(a, pd.DataFrame)
        else np.array_equal(a, b, equal_nan=True) if isinstance(a, np.ndarray)
        else a == b
        for a, b in zip(one, other, strict=True)
    )  # fmt: skip


def pack_again(folder, settings=None):
    """Give a changed folder the digest of what it holds, as somebody who means harm would."""
    path = folder / SETTINGS
    settings = json.loads(path.read_text()) if settings is None else settings
    if isinstance(settings, dict) and isinstance(settings.get("digest"), str):
        settings["digest"] = model_folder.folder_digest(folder, settings)
    path.write_text(json.dumps(settings))


def refused(folder, slide, before, *, name=SETTINGS):
    """Return whether a folder is refused by the name of a file; else it says what it said."""
    try:
        after = predicted(folder, slide)
    except InputError as error:
        message = str(error)
    else:
        assert same(before, after), "another prediction without a word"
        return False
    assert name in message
    assert len(message) < 6000
    return True


def places(value, path=()):
    """Give the place of each value; of a list its first and its last."""
    if path:
        yield path
    keys = list(value) if isinstance(value, dict) else []
    if isinstance(value, list) and value:
        keys = sorted({0, len(value) - 1})
    for key in keys:
        yield from places(value[key], (*path, key))


def replacements(value):
    """Give what may stand in place of a value: deleted, of another type, absurd, empty."""
    yield from (DELETE, None, "x", 5, True, [], {}, [[]], "", "../x", 1e308, -1, float("nan"))
    yield from (float("inf"), 10**400, 0.5)
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield -value - 1
    if isinstance(value, str):
        yield value + "\0"
    if isinstance(value, list) and value:
        yield value[:-1]
        yield [*value, value[0]]
    if isinstance(value, dict):
        yield {**value, "extra": float("nan")}
        yield {**value, "../x": next(iter(value.values()), 0)}


def edited(settings, path, value):
    settings = copy.deepcopy(settings)
    part = settings
    for key in path[:-1]:
        part = part[key]
    if value is DELETE:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return settings


def refusal(folder):
    try:
        model_folder.read_settings(folder)
    except InputError as error:
        return str(error)
    return ""


def test_every_edit_of_the_settings_is_refused_or_changes_nothing(copied, slide, before):
    """A sample of all one-key edits; of those that are taken every fourth predicts."""
    settings = json.loads((copied / SETTINGS).read_text())
    edits = []
    for path in places(settings):
        here = settings
        for key in path:
            here = here[key]
        edits += [(path, value) for value in replacements(here)]
    assert len(edits) > 2000
    chosen = np.random.default_rng(0).permutation(len(edits))[: max(400, N_EDITS)]
    n_refused = n_taken = 0
    for number in chosen:
        path, value = edits[number]
        pack_again(copied, edited(settings, path, value))
        if said := refusal(copied):
            assert str(copied) in said
            n_refused += 1
        elif path[-1] in ("level_shrinkage", "study"):
            load_model(copied).predict(slide)  # another model, and a whole one
        else:
            n_taken += 1
            if n_taken % 4 == 0:
                refused(copied, slide, before)
    assert n_refused > 0.4 * len(chosen)
    assert n_taken > 0


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"5", b"null", b'"x"', b"{", b"\xff\xfe", b"[" * 100_000, b'{"format": NaN}']
    + [b'{"format": 1, "format": 1}', b'{"format": 1e999}', b'{"format": 1}'],
)
def test_settings_that_are_none_are_named(copied, content):
    (copied / SETTINGS).write_bytes(content)
    for read in (model_folder.declared_settings, model_folder.read_settings, load_model):
        with pytest.raises(InputError, match=r"settings\.json|of format"):
            read(copied)


@pytest.mark.parametrize("role", ["../x", "/etc/passwd", "x", "a/b", "", "expression2", "Wide"])
def test_a_role_is_one_of_three(copied, role):
    """The role names the file of the weights: another would be read from anywhere."""
    settings = json.loads((copied / SETTINGS).read_text())
    settings["models"] = {role: settings["models"]["extended"], **settings["models"]}
    pack_again(copied, settings)
    with pytest.raises(InputError, match=r"settings\.json .*\n.*settings\.models"):
        load_model(copied)


@pytest.mark.parametrize("name", ["expression.safetensors", "genes.tsv", "settings.json"])
@pytest.mark.parametrize("kind", ["link out", "link in", "folder", "pipe", "dangling", "loop"])
def test_a_file_that_lies_elsewhere_is_refused(copied, tmp_path, slide, before, name, kind):
    path = copied / name
    content = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link in":
        (copied / ".own").write_bytes(content)
        path.symlink_to(".own")
    elif kind == "loop":
        path.symlink_to(name)
    else:
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to("../elsewhere" if kind == "link out" else "../nowhere")
    if name != SETTINGS and kind not in ("link out", "dangling", "loop"):
        pack_again(copied)
    if kind == "link in":
        assert same(predicted(copied, slide), before)
        return
    with pytest.raises(
        InputError, match="settings.json|leads out|not those that were packed|is not a file"
    ):
        load_model(copied)
    if kind == "link out":
        with pytest.raises(InputError, match="leads out of the model folder"):
            load_model(copied)


def test_a_link_to_a_model_folder_is_a_model_folder(folder, tmp_path, slide, before):
    (tmp_path / "link").symlink_to(folder)
    assert same(predicted(tmp_path / "link", slide), before)


def changes_of_arrays(array):
    """Give what may stand in place of an array; of a scale also a negative one."""
    for bad in (np.nan, np.inf, -np.inf, 1e30):
        changed = array.astype(array.dtype, copy=True)
        if changed.dtype.kind == "f":
            changed.flat[changed.size // 2] = bad
            yield changed
    yield array[:-1]
    yield np.concatenate([array, array[-1:]])
    yield array[None]
    yield array.astype(np.int32)
    yield array.astype(np.float16)
    if array.ndim == 2 and array.shape[0] != array.shape[1]:
        yield np.ascontiguousarray(array.T)
    yield array.ravel()[:0]


FILES = [
    f"{name}.safetensors" for name in ("expression", "tumour", "extended", "training_features")
]


@pytest.mark.parametrize("name", [name for name in FILES if name != "extended.safetensors"])
def test_every_edit_of_the_arrays_is_refused_or_changes_nothing(copied, slide, before, name):
    path = copied / name
    arrays = load_file(path)
    chosen = list(arrays)[:: max(1, len(arrays) // 4)]
    n_refused = 0
    for key in chosen:
        others = {other: array for other, array in arrays.items() if other != key}
        for changed in (None, *changes_of_arrays(arrays[key])):
            if key.endswith("num_batches_tracked") and changed is not None and changed.size:
                continue
            save_file(others if changed is None else {**others, key: changed}, path)
            pack_again(copied)
            n_refused += refused(copied, slide, before, name=name)
    assert n_refused >= 5 * len(chosen)
    save_file({**arrays, "another": np.zeros(3)}, path)
    pack_again(copied)
    refused(copied, slide, before, name=name)
    for stem in ("deviation", "spread", "scale", "quantiles"):
        for key in [k for k in arrays if k.split(".")[-1] == stem and k.split(".")[0] != "ridge"][
            :1
        ]:
            save_file({**arrays, key: -np.abs(arrays[key]) - 1}, path)
            pack_again(copied)
            assert refused(copied, slide, before, name=name)


@pytest.mark.parametrize("name", FILES)
def test_weights_that_are_damaged_are_named(copied, name):
    path = copied / name
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    huge = (2**62).to_bytes(8, "little") + content[8:]
    cases = [b"", content[: len(content) // 2], content + b"x", content[8:], b"\0" * 64, huge]
    cases += [bytes(rng.integers(0, 256, 4000, dtype=np.uint8)), b"<html>" * 50]
    for case in cases:
        path.write_bytes(case)
        pack_again(copied)
        with pytest.raises(InputError, match=name):
            load_model(copied)


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: t.drop(columns="predictable"),
        lambda t: t.iloc[:-1],
        lambda t: t.iloc[:0],
        lambda t: pd.concat([t, t.head(1)]),
        lambda t: t.assign(score="high"),
        lambda t: t.assign(score="inf"),
        lambda t: t.assign(half_width=-1.0),
        lambda t: t.assign(predictable="maybe"),
        lambda t: t.assign(main=~t["main"]),
        lambda t: t.assign(gene=t["gene"].str.lower()),
        lambda t: t.rename(columns={"gene": "Gene"}),
    ],
)  # fmt: skip
def test_every_edit_of_the_genes_is_refused(copied, edit):
    path = copied / "genes.tsv"
    write_tsv(edit(read_tsv(path)), path)
    pack_again(copied)
    with pytest.raises(InputError, match=r"genes\.tsv"):
        load_model(copied)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\n", b"a\0\n", b"gene\tmain\n\t\t\t\n", b"\x1f\x8b\n"]
)
def test_a_table_of_genes_that_is_none_is_named(copied, content):
    (copied / "genes.tsv").write_bytes(content)
    pack_again(copied)
    with pytest.raises(InputError, match=r"genes\.tsv"):
        load_model(copied)


def test_order_of_keys_and_of_genes_in_the_table_change_nothing(copied, slide, before):
    settings = json.loads((copied / SETTINGS).read_text())
    pack_again(copied, dict(reversed(settings.items())))
    path = copied / "genes.tsv"
    write_tsv(read_tsv(path).iloc[::-1], path)
    pack_again(copied)
    assert same(predicted(copied, slide), before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e20, -500.0])
def test_predictions_that_are_no_numbers_are_never_written(folder, slide, tmp_path, value):
    """Whatever made them: weights that pass all checks can still add up to nothing."""
    from histogep.deployment.streaming import predict_into
    from histogep.encoders.feature_file import write_features

    model = load_model(folder)
    ridge = model.models["expression"]
    ridge.target_mean = np.array(ridge.target_mean, copy=True)
    ridge.target_mean[3] = value
    with pytest.raises(InputError, match=r"slide NEW: the model of study test predicts .* for G3"):
        model.predict(slide)
    write_features(slide, tmp_path / "new.h5")
    with (
        pytest.raises(InputError, match="predicts .* for G3"),
        predict_into(
            *(tmp_path / "new.h5ad", tmp_path / "new.h5", model),
            thumbnail=np.zeros((4, 4, 3), np.uint8),
        ),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["new.h5"]


def test_a_prediction_says_where_it_is_none():
    values = np.zeros((3, 2))
    told = {"slide": "S", "study": "s", "names": ["A", "B"], "rows": np.array([7, 8, 9])}
    check_predicted(values, **told)
    values[1, 1] = np.nan
    with pytest.raises(InputError, match=r"predicts nan for B in tile 8 \(1 such values among 6\)"):
        check_predicted(values, **told)


@pytest.mark.parametrize(
    "kind", ["neighbours", "tumour", "cmunet", "both", "lattice", "blend", "ensemble"]
)
def test_the_declared_shapes_are_those_of_every_kind_of_model(
    study,  # noqa: F811
    tmp_path,
    kind,
    monkeypatch,
):
    from histogep.models.ensemble import fit_ensemble
    from histogep.models.fit import fit_model
    from histogep.models.network import lattice_fit
    from histogep.models.sections import read_sections
    from tests.deployment.test_model import NARROW
    from tests.model_study import GENES

    quick = functools.partial(lattice_fit.train_committee, steps=2, snapshots=(1, 2))
    monkeypatch.setattr(lattice_fit, "train_committee", quick)
    task = {"tumour": "tumour", "both": "both"}.get(kind, "expression")
    name = {"tumour": "neighbours", "both": "cmunet", "ensemble": "ridge"}.get(kind, kind)
    files = [study.files[what] for what in ("features", "spots", "labels")]
    sections = read_sections(study.roles(), *files, task=task, genes=GENES[:5])
    choices = {"kind": name, "task": task, "panel": "main", **NARROW, "epochs": 1}
    if name != "cmunet":
        choices = {key: choices[key] for key in ("kind", "task", "panel")}
    fitted = fit_model(
        {"train": sections}, name=kind, settings=choices, protocol="all", fold="all",
        genes=GENES[:5], seed=1, published_grid=(32, 32), test={},
    )  # fmt: skip
    arrays, record = fitted.arrays, fitted.settings
    if kind == "ensemble":
        records = [{**record, "model": name} for name in ("a", "b")]
        arrays, record, _ = fit_ensemble("e", records, [arrays, arrays])
    save_file(arrays, tmp_path / "weights.safetensors")
    write_json(record, tmp_path / "settings.json")
    record = json.loads((tmp_path / "settings.json").read_text())
    read = functools.partial(read_model_arrays, network_shapes=network_shapes)
    back = read(tmp_path, "weights.safetensors", record)
    assert back.keys() == arrays.keys() <= model_shapes(record, network_shapes).keys()
    build_model(back, record)
    for key in itertools.islice((k for k in arrays if arrays[k].size > 1), 0, None, 7):
        save_file({**arrays, key: arrays[key][:-1]}, tmp_path / "weights.safetensors")
        with pytest.raises(InputError, match=r"weights\.safetensors: "):
            read(tmp_path, "weights.safetensors", record)
