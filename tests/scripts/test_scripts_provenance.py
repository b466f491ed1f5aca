import pandas as pd
import yaml


def test_every_required_package_has_its_version(run_script, tmp_path):
    out = {"versions": tmp_path / "software.html", "table": tmp_path / "software.tsv"}
    run_script("record_software.py", input={}, output=out)
    versions = pd.read_csv(out["table"], sep="\t", index_col="package")["version"]
    assert versions["snakemake"].startswith("9.")
    assert versions["lifelines"] != "not installed"
    assert "lifelines" in out["versions"].read_text()


def test_the_configuration_comes_back_and_left_out_stages_say_why(run_script, tmp_path):
    out = {name: tmp_path / name for name in ("configuration.yaml", "stages.tsv", "page.html")}
    stages = [
        {"stage": "model", "cohort": "", "state": "ran", "reason": "8 sections"},
        {"stage": "survival", "cohort": "c", "state": "left out", "reason": "no patients sheet"},
    ]
    run_script(
        "record_configuration.py",
        input={},
        output={
            "configuration": out["configuration.yaml"],
            "stages": out["stages.tsv"],
            "page": out["page.html"],
        },
        params={"configuration": {"study": "s", "seed": 3}, "stages": stages},
    )
    assert yaml.safe_load(out["configuration.yaml"].read_text()) == {"study": "s", "seed": 3}
    assert "no patients sheet" in out["page.html"].read_text()
    assert list(pd.read_csv(out["stages.tsv"], sep="\t")["state"]) == ["ran", "left out"]
