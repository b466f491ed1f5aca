import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from histogep.jobs import InputError
from histogep.settings import complete_settings, describe_settings, refuse_repeated_keys

ROOT = Path(__file__).resolve().parents[1]
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
    assert settings["models"]["wide"]["panel"] == "wide"
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


def test_a_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("study: a\ngenes:\n  p: 0.1\n  p: 0.2\n")
    with pytest.raises(InputError, match="'p' on line 3 and line 4"):
        refuse_repeated_keys(path)


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
    from histogep import enrichment, response, subtypes, survival

    settings = complete_settings(MINIMAL, SCHEMA)
    assert settings["survival"] == survival.DEFAULTS
    assert settings["response"] == response.DEFAULTS
    assert enrichment.DEFAULTS.items() <= settings["enrichment"].items()
    assert subtypes.DEFAULTS.items() <= settings["cnv"].items()
