import json
import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from histogep.errors import InputError
from histogep.study.settings import complete_settings, describe_settings, refuse_repeated_keys

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = yaml.safe_load((ROOT / "config/schemas/config.schema.yaml").read_text())
MINIMAL = {"study": "s", "slides": "slides.tsv"}


def _objects(schema, path=""):
    if isinstance(schema, dict):
        if "properties" in schema:
            yield path, schema
        for key, part in schema.items():
            yield from _objects(part, f"{path}/{key}")


def test_schema_is_a_valid_schema():
    Draft202012Validator.check_schema(SCHEMA)


def test_every_object_is_closed_and_every_key_explained():
    for path, schema in _objects(SCHEMA):
        if "$ref" in schema or path.endswith("/properties"):
            continue
        assert "additionalProperties" in schema, path
        if "/$defs/" in path:
            continue
        for key, part in schema["properties"].items():
            assert "description" in part or "$ref" in part, f"{path}: {key}"


def test_defaults_are_complete_and_valid_themselves():
    settings = complete_settings(MINIMAL, SCHEMA)
    assert settings["tissue"]["min_tissue"] == 0.4
    assert settings["models"]["tumour"]["task"] == "tumour"
    assert settings["models"]["extended"]["panel"] == "extended"
    assert settings["models"]["cmunet"]["kind"] == "cmunet"
    assert json.loads(json.dumps(settings)) == settings
    assert complete_settings(settings, SCHEMA) == settings


def test_given_values_stay_and_the_input_is_not_changed():
    given = {**MINIMAL, "genes": {"max_genes": 7}}
    settings = complete_settings(given, SCHEMA)
    assert settings["genes"]["max_genes"] == 7
    assert settings["genes"]["neighbours"] == 15
    assert given["genes"] == {"max_genes": 7}


def test_all_mistakes_stand_in_one_message():
    wrong = {**MINIMAL, "tisue": {}, "genes": {"max_gene": 3, "p": "1e-3"}}
    with pytest.raises(InputError) as caught:
        complete_settings(wrong, SCHEMA)
    message = str(caught.value)
    assert "'tisue', did you mean 'tissue'" in message
    assert "'max_gene', did you mean 'max_genes'" in message
    assert "config.genes.p" in message
    assert "0.001" in message


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("encoders", "lite0", "a list: write [...]"),
        ("references", {"gene_sets": "h.gmt"}, "write {name: value}"),
        ("seed", "1e3", "YAML reads 1e-3 as text"),
        ("study", "my study", "write letters, digits, '_' and '-'"),
    ],
)
def test_a_value_of_another_type_says_what_to_write(key, value, remedy):
    with pytest.raises(InputError) as caught:
        complete_settings(MINIMAL | {key: value}, SCHEMA)
    assert remedy in str(caught.value)
    assert ("YAML reads" in str(caught.value)) == ("YAML" in remedy)


@pytest.mark.parametrize(
    "config",
    [p for p in sorted(ROOT.glob("config/**/*.yaml")) if "schemas" not in p.parts],
    ids=lambda p: p.stem,
)
def test_every_shipped_configuration_is_valid(config):
    refuse_repeated_keys(config)
    complete_settings(yaml.safe_load(config.read_text()), SCHEMA)


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("engine", "weights", "'engine' is gone: infercnvpy makes all profiles"),
        ("clone_method", "mixture", "'clone_method' is gone: Leiden divides the clones"),
    ],
)
def test_a_setting_of_an_earlier_version_is_refused_with_what_to_do(key, value, remedy):
    with pytest.raises(InputError, match=remedy) as caught:
        complete_settings({"study": "s", "cnv": {key: value}}, SCHEMA)
    assert "take the line out" in str(caught.value)
    # Elsewhere the same word is as unknown as any other.
    with pytest.raises(InputError, match=f"unknown key '{key}'"):
        complete_settings({"study": "s", "summary": {key: value}}, SCHEMA)


def test_a_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("study: a\ngenes:\n  p: 0.1\n  p: 0.2\n")
    with pytest.raises(InputError, match="'p' on line 3 and line 4"):
        refuse_repeated_keys(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [("seed: 010", "'010' as 8"), ("genes: {max_genes: 0200}", "'0200' as 128"),
     ("seed: 12:30", "'12:30' as 750"), ("seed: 0x1F", "'0x1F' as 31"), ("t: 1:30.5", "as 90.5")],
)  # fmt: skip
def test_numbers_that_yaml_reads_as_others_are_refused(tmp_path, text, value):
    path = tmp_path / "c.yaml"
    path.write_text(f"study: x\n{text}\n")
    with pytest.raises(InputError, match=f"line 2: YAML reads .*{value}: write the number plainly"):
        refuse_repeated_keys(path)
    path.write_text("study: '010'\nseed: 1_000\nlow: -0.5\nnone: 0\n")
    refuse_repeated_keys(path)


@pytest.mark.parametrize(
    ("study", "remedy"), [(False, "yes, no, on and off"), (8, "put it in quotes")]
)
def test_text_that_yaml_reads_as_something_else_is_told_to_be_quoted(study, remedy):
    with pytest.raises(InputError, match=f"study: .*{remedy}"):
        complete_settings({"study": study}, SCHEMA)


# ------------------------------------------------------------------- numbers, patterns, bombs


def numbers(schema=SCHEMA, path=()):
    """Give place and schema of each number that a configuration may hold."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].split("/")[-1]]
    kinds = schema.get("type", "")
    if {"number", "integer"} & {*([kinds] if isinstance(kinds, str) else kinds)}:
        yield path, schema
    for key, part in schema.get("properties", {}).items():
        yield from numbers(part, (*path, key))
    if isinstance(schema.get("additionalProperties"), dict):
        yield from numbers(schema["additionalProperties"], (*path, "own"))
    for part in schema.get("oneOf", []):
        yield from numbers(part, path)
    for part in schema.get("prefixItems", []):
        yield from numbers(part, (*path, 0))
    if isinstance(schema.get("items"), dict):
        yield from numbers(schema["items"], (*path, 0))


NUMBERS = {path: schema for path, schema in numbers() if path[:2] != ("measured", "own")}


def with_value(path, value):
    """Return a configuration with one number in it."""
    config = MINIMAL | {"simulation": {}, "models": {"own": {"kind": "ridge"}}}
    config = complete_settings(config, SCHEMA)
    part = config
    for key in path[:-1]:
        part = part[key]
    if path[-1] == 0 and len(part) < 1:
        part.append(value)
    part[path[-1]] = value
    return config


def test_all_numbers_of_the_configuration_are_found():
    assert len(NUMBERS) > 100
    assert {path[-1] for path in NUMBERS} >= {"seed", "depth", "lr", 0, "patient_cv", "pitch_um"}


@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: ".".join(map(str, path)))
def test_a_number_that_is_none_or_beyond_all_sense_is_refused(path):
    schema = NUMBERS[path]
    name = "config" + "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in path)
    values = [float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 10**400, True, "1", [1]]
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    if low is None or low >= 0:
        values.append(-1)
    if "integer" in schema["type"]:
        values += [float(schema.get("default") or low + 1), 4.5]
    for value in values:
        with pytest.raises(InputError) as caught:
            complete_settings(with_value(path, value), SCHEMA)
        assert name.removesuffix("[0]") in str(caught.value), value
        assert len(str(caught.value)) < 2500
    # What stands there by default is taken, and so are both ends.
    for bound in {"minimum", "maximum"} & schema.keys():
        assert complete_settings(with_value(path, schema[bound]), SCHEMA)


def test_only_what_may_be_negative_is_taken_when_it_is():
    taken = set()
    for path in NUMBERS:
        try:
            complete_settings(with_value(path, -1), SCHEMA)
        except InputError:
            continue
        taken.add(path)
    assert taken == {("genes", "min_moran"), ("cnv", "min_silhouette")}


def test_a_whole_number_with_a_point_says_what_to_write():
    with pytest.raises(InputError, match=r"config\.genes\.max_genes: .*\(write 250\)"):
        complete_settings(MINIMAL | {"genes": {"max_genes": 250.0}}, SCHEMA)


@pytest.mark.parametrize("where", [("genes", "exclude"), ("cnv", "exclude_genes")])
@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("[", "unterminated character set"),
        ("(", "missing \\)"),
        ("*", "nothing to repeat"),
        ("(?<=a+)b", "look-behind requires fixed-width"),
        ("(a+)+$", "repeated group"),
        ("((a|b)c){2,}$", "repeated group"),
        ("(?:a|aa)*b", "repeated group"),
        (".*.*.*.*.*.*x", "more than 5 repeats"),
        ("a{99999999999999999999}", "repetition number"),
        ("a" * 600, "more than 500 letters"),
        ("(" * 400 + ")" * 400, "letters|regular"),
    ],
)
def test_a_pattern_of_genes_that_is_none_or_never_ends_is_refused(where, pattern, why):
    section, key = where
    with pytest.raises(InputError, match=rf"(?s)config\.{section}\.{key}\[1\].*{why}"):
        complete_settings(MINIMAL | {section: {key: ["^A", pattern]}}, SCHEMA)


def test_patterns_of_genes_that_people_write_are_taken():
    patterns = [
        "^RP[SL][0-9]+",
        r"\.[0-9]+$",
        "^(MT|HB)-?",
        "^IG[HKL][VDJ].*",
        "[+*{)]+",
        r"\)+",
        "",
    ]
    assert complete_settings(MINIMAL | {"genes": {"exclude": patterns}}, SCHEMA)


def bomb(kind, levels=10, width=10):
    value = "x" * 10
    for _ in range(levels):
        value = [value] * width if kind == "list" else dict.fromkeys("abcdefghij"[:width], value)
    return value


@pytest.mark.parametrize("kind", ["list", "dict"])
@pytest.mark.parametrize("key", ["labels", "study", "other"])
def test_aliases_that_unfold_without_end_are_refused_at_once(kind, key):
    for levels in (10, 6):
        with pytest.raises(InputError, match=f"{key}.*more than 200,000 values") as caught:
            complete_settings(MINIMAL | {key: bomb(kind, levels)}, SCHEMA)
        assert len(str(caught.value)) < 300
    with pytest.raises(InputError) as caught:
        complete_settings(MINIMAL | {key: bomb(kind, 5)}, SCHEMA)
    assert len(str(caught.value)) < 1500


def test_a_value_that_holds_itself_is_refused():
    itself = []
    itself.append(itself)
    for value in (itself, bomb("list", levels=300, width=1)):
        with pytest.raises(InputError, match="levels deep"):
            complete_settings(MINIMAL | {"labels": value}, SCHEMA)


def test_a_message_has_twenty_problems_and_no_long_lines():
    wrong = {f"k{i}": 0 for i in range(500)}
    for config in (
        wrong,
        {"x" * 10_000_000: 1},
        {"study": "x" * 10_000_000},
        {"labels": {"malignant": [1] * 5000}},
        {"models": {f"m{i}": {"lr": -1} for i in range(500)}},
    ):
        with pytest.raises(InputError) as caught:
            complete_settings(MINIMAL | config, SCHEMA)
        lines = str(caught.value).splitlines()
        assert len(lines) <= 22
        assert max(map(len, lines)) < 450
    assert "more" in lines[-1]


@pytest.mark.parametrize("key", [1, None, True, 1.5])
@pytest.mark.parametrize("where", ["", "models", "genes"])
def test_a_key_that_is_no_text_is_named(key, where):
    config = {where: {key: {}}} if where else {key: 1}
    with pytest.raises(InputError, match=f"(?s)write the key {key} in quotes"):
        complete_settings(MINIMAL | config, SCHEMA)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"study: \xff\xfe\n", "codec"),
        (b"study: s\n\tgenes: {}\n", "YAML.*line 2"),
        (b"study: [s\n", "YAML.*line 2"),
        (b"study: !!python/object/apply:os.getcwd []\n", "YAML.*constructor"),
        (b"study: a\0b\n", "special characters"),
        (b"a: &a [*a]\nb: *c\n", "undefined alias"),
        (b"study: s\nstudy: t\n", "'study' on line 1 and line 2"),
        (b"[" * 5000, "recursion"),
    ],
)
def test_a_configuration_that_is_no_yaml_is_named_in_one_line(tmp_path, content, why):
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=why) as caught:
        refuse_repeated_keys(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_keys_inside_a_list_are_described():
    assert "| `encoders[].precomputed` | boolean |" in describe_settings(SCHEMA)


def test_config_readme_holds_the_schema_as_it_is():
    assert describe_settings(SCHEMA) in (ROOT / "config/README.md").read_text()


def test_the_order_of_the_keys_does_not_matter():
    one = {**MINIMAL, "genes": {"p": 0.1, "method": "moran"}, "models": {"b": {}, "a": {}}}
    other = {"models": {"a": {}, "b": {}}, "genes": {"method": "moran", "p": 0.1}, **MINIMAL}
    assert json.dumps(complete_settings(one, SCHEMA)) == json.dumps(
        complete_settings(other, SCHEMA)
    )


def test_defaults_of_the_library_are_those_of_the_schema():
    from histogep.cnv import subtypes
    from histogep.enrichment import gsea
    from histogep.outcome import response, survival

    settings = complete_settings(MINIMAL, SCHEMA)
    assert settings["survival"] == survival.DEFAULTS
    assert settings["response"] == response.DEFAULTS
    assert gsea.DEFAULTS.items() <= settings["enrichment"].items()
    assert subtypes.DEFAULTS.items() <= settings["cnv"].items()


def _problem(**given):
    with pytest.raises(InputError) as caught:
        complete_settings(MINIMAL | given, SCHEMA)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"model": {"ridge": {"alphas": [1]}}}, "config.model: .* did you mean 'models'?"),
        ({"models": "results/model/demo"}, "config.models: .* did you mean 'model'?"),
        ({"min_moran": 0.1}, "unknown key 'min_moran', did you mean 'genes.min_moran'?"),
        ({"genes": {"pitch_um": 3}}, "unknown key 'pitch_um', did you mean 'lattice.pitch_um'?"),
        (
            {"models": {"cmunet": {"chanels": [8]}}},
            "unknown key 'chanels', did you mean 'channels'?",
        ),
        ({"measured": {"a": {"expresion": "x"}}}, "'expresion', did you mean 'expression'?"),
        ({"encoders": [{"nam": "x"}]}, "unknown key 'nam', did you mean 'name'?"),
        (
            {"columns": {"sexe": "sex"}},
            "'sexe', did you mean 'sex'?: write {name here: name in your",
        ),
        ({"models": {"cmnet": None}}, "null leaves a default model out, .* did you mean 'cmunet'?"),
        ({"survival": {"zzz": 1}}, "unknown key 'zzz' \\(known: folds, "),
    ],
)
def test_a_key_of_nearly_the_right_name_gets_a_hint_at_any_depth(given, hint):
    pattern = hint.replace("?", "\\?").replace("{", "\\{")
    assert re.search(pattern, _problem(**given)), _problem(**given)


def test_null_leaves_a_default_model_out_and_no_other():
    by_default = list(complete_settings(MINIMAL, SCHEMA)["models"])
    assert set(by_default) == {"cmunet", "tumour", "ridge", "extended"}
    for name in by_default:
        kept = list(complete_settings(MINIMAL | {"models": {name: None}}, SCHEMA)["models"])
        assert kept == [other for other in by_default if other != name]
    assert "null leaves a default model out" in _problem(models={"mine": None})
    deploy = complete_settings(MINIMAL | {"models": {"extended": None}}, SCHEMA)["deploy"]
    assert deploy["extended"] == ""
