from __future__ import annotations

import pytest

from histogep.models.selection import deployed_expression


def _record(model, score, *, protocol="patient_cv", **more):
    record = {"model": model, "protocol": protocol, "panel": "main", "task": "expression"}
    return record | {"scores": {} if score is None else {"expression": score}} | more


RECORDS = [
    _record("net", 0.9),
    _record("net", 0.1),
    _record("ridge", 0.6),
    _record("ridge", 0.6),
    _record("both", 0.55, task="both"),
    _record("wide", 0.99, panel="extended"),
    _record("map", 0.99, task="tumour"),
    _record("leaky", 0.99, protocol="published"),
    _record("none", None),
    _record("lost", 0.99, absent="no labels"),
]


@pytest.mark.parametrize(
    ("wanted", "records", "found"),
    [
        ("auto", RECORDS, "ridge"),
        ("net", RECORDS, "net"),
        ("auto", RECORDS[-2:], "none"),
        ("auto", [], ""),
    ],
)
def test_the_deployed_model_has_the_best_mean_in_the_inner_folds(wanted, records, found):
    assert deployed_expression(wanted, records) == found
