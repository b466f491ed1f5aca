from pathlib import Path

import pytest

from histogep import provenance

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.name for path in ROOT.glob("workflow_scripts/*.py"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of one script, two modules and a resource, in place of the real one."""
    (tmp_path / "workflow_scripts").mkdir()
    (tmp_path / "histogep").mkdir()
    (tmp_path / "resources").mkdir()
    (tmp_path / "workflow_scripts/job.py").write_text("from histogep.near import f\n")
    (tmp_path / "histogep/near.py").write_text(
        "def f():\n    from histogep import far\n    return 'arms.tsv'\n"
    )
    (tmp_path / "histogep/far.py").write_text("")
    (tmp_path / "histogep/other.py").write_text("")
    (tmp_path / "resources/arms.tsv").write_text("")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)

    def digest():
        provenance.code_digest.cache_clear()
        provenance._neighbours.cache_clear()
        return provenance.code_digest("job.py")

    yield tmp_path, digest
    provenance.code_digest.cache_clear()
    provenance._neighbours.cache_clear()


@pytest.mark.parametrize("file", ["workflow_scripts/job.py", "histogep/near.py", "histogep/far.py"])
def test_digest_follows_every_module_that_is_reached(project, file):
    folder, digest = project
    before = digest()
    (folder / file).write_text((folder / file).read_text() + "# changed\n")
    assert digest() != before


def test_digest_follows_resources_but_not_what_is_not_reached(project):
    folder, digest = project
    before = digest()
    (folder / "histogep/other.py").write_text("# changed")
    assert digest() == before
    (folder / "histogep/far.py").touch()
    assert digest() == before
    (folder / "resources/arms.tsv").write_text("changed")
    assert digest() != before


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_is_one_job_log_around_library_calls(script):
    path = ROOT / "workflow_scripts" / script
    text = path.read_text()
    assert "with job_log(snakemake.log[0], snakemake)" in text
    assert "from __future__" not in text
    # What is read there is compared with no earlier run: one setting that must rerun nothing.
    assert "snakemake.config" not in text.replace('snakemake.config.get("on_bad_slide")', "")
    assert len(text.splitlines()) <= 60
    assert len(provenance.reached_files(path)) > 1
