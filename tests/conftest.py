from __future__ import annotations

import logging
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


class Items(SimpleNamespace):
    """Named items that also answer to their position, as Snakemake's own do."""

    def __getitem__(self, index):
        return list(vars(self).values())[index]

    def get(self, name, default=None):
        return vars(self).get(name, default)

    def items(self):
        return vars(self).items()

    def keys(self):
        return vars(self).keys()


def pytest_collection_modifyitems(items):
    """Put first what needs no finished study: it keeps all workers busy before one makes it."""
    items.sort(key=lambda item: "demo" in item.fixturenames)


@pytest.fixture(autouse=True)
def plain_logging():
    """Undo what a job, a library or a test before has set for the log of this process."""
    logging.disable(logging.NOTSET)
    logging.getLogger().setLevel(logging.WARNING)
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.split(".")[0] == "histogep" and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)


@pytest.fixture
def run_script(tmp_path):
    """Run a job script on a stand-in for the object that Snakemake gives it; return its log."""

    def run(name, *, input, output, params=None, wildcards=None, threads=1, **more):
        log = tmp_path / "job.log"

        def as_text(value):
            if isinstance(value, list | tuple):
                return [str(item) for item in value]
            return str(value)

        snakemake = SimpleNamespace(
            rule=Path(name).stem,
            input=Items(**{key: as_text(value) for key, value in input.items()}),
            output=Items(**{key: as_text(value) for key, value in output.items()}),
            params=Items(**(params or {})),
            wildcards=Items(**(wildcards or {})),
            resources=more.get("resources", {}),
            config=more.get("config", {}),
            threads=threads,
            log=Items(job=str(log), epochs=str(tmp_path / "epochs.tsv")),
        )
        for value in vars(snakemake.output).values():
            Path(value).parent.mkdir(parents=True, exist_ok=True)
        runpy.run_path(
            str(REPOSITORY / "workflow_scripts" / name), {"snakemake": snakemake}, "__main__"
        )
        return log.read_text()

    return run


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real sections, slides and tables; tests that need it are skipped without it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder
