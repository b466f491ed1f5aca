from pathlib import Path

import pytest

from histogep.workflow import code

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.name for path in ROOT.glob("workflow_scripts/*.py"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of one script, two modules and a resource, in place of the real one."""
    (tmp_path / "workflow_scripts").mkdir()
    (tmp_path / "histogep/room").mkdir(parents=True)
    (tmp_path / "histogep/resources").mkdir()
    (tmp_path / "workflow_scripts/job.py").write_text("from histogep.room.near import f\n")
    (tmp_path / "histogep/room/near.py").write_text(
        "def f():\n    from histogep.room import far\n    return 'arms.tsv'\n"
    )
    (tmp_path / "histogep/room/far.py").write_text("")
    (tmp_path / "histogep/__init__.py").write_text("")
    (tmp_path / "histogep/room/__init__.py").write_text("")
    (tmp_path / "histogep/room/other.py").write_text("")
    (tmp_path / "histogep/resources/arms.tsv").write_text("")
    monkeypatch.setattr(code, "ROOT", tmp_path)

    def digest():
        code.code_digest.cache_clear()
        code._neighbours.cache_clear()
        return code.code_digest("job.py")

    yield tmp_path, digest
    code.code_digest.cache_clear()
    code._neighbours.cache_clear()


@pytest.mark.parametrize(
    "file",
    [
        "workflow_scripts/job.py",
        "histogep/__init__.py",
        "histogep/room/__init__.py",
        "histogep/room/near.py",
        "histogep/room/far.py",
    ],
)
def test_digest_follows_every_module_that_is_reached(project, file):
    folder, digest = project
    before = digest()
    (folder / file).write_text((folder / file).read_text() + "# changed\n")
    assert digest() != before


def test_digest_follows_resources_but_not_what_is_not_reached(project):
    folder, digest = project
    before = digest()
    (folder / "histogep/room/other.py").write_text("# changed")
    assert digest() == before
    (folder / "histogep/room/far.py").touch()
    assert digest() == before
    (folder / "histogep/resources/arms.tsv").write_text("changed")
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
    assert len(code.reached_files(path)) > 1
