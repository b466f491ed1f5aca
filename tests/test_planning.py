"""What is left out of planning is what changes no plan."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest

from histogep.planning import check_scripts_once, describe_no_hidden_jobs, spare_planning


def loaded(name):
    """Return a module of Snakemake, loaded as a run loads it: by itself it finds a circle."""
    importlib.import_module("snakemake.api")
    return sys.modules[f"snakemake.{name}"]


@pytest.fixture
def dag():
    """Snakemake's module, with its own way of looking for scripts put back afterwards."""
    module = loaded("dag")
    look = module.ScriptProcessor.process_job
    yield module
    module.ScriptProcessor.process_job = look


def jobs_of(rule, opened, n=3):
    """Return jobs of a rule; each notes when its parameters are worked out."""

    class Job:
        is_script, wildcards = True, {}

        @property
        def params(self):
            opened.append(self)
            return {}

        def __init__(self):
            self.rule = rule

    return [Job() for _ in range(n)]


class Rule(SimpleNamespace):
    __hash__ = object.__hash__


def processor(dag, *, exists=True):
    cache = SimpleNamespace(exists=lambda source: exists)
    workflow = SimpleNamespace(sourcecache=cache)
    return dag.ScriptProcessor(SimpleNamespace(workflow=workflow))


def test_a_version_without_these_parts_plans_as_it_would_alone():
    """Where Snakemake names a part otherwise, the mended calls go to its own."""
    called = []
    dag = SimpleNamespace(
        ScriptProcessor=type("P", (), {"process_job": lambda self, job: called.append("look")})
    )
    check_scripts_once(dag)
    for _ in range(2):
        dag.ScriptProcessor().process_job(SimpleNamespace())
    jobs = SimpleNamespace(Job=type("J", (), {"log_info": lambda self: called.append("told")}))
    describe_no_hidden_jobs(jobs)
    jobs.Job().log_info()
    assert called == ["look", "look", "told"]


@pytest.mark.parametrize(("script", "looks"), [("../one.py", 1), ("../{wildcards.slide}.py", 3)])
def test_a_script_is_looked_for_once_for_all_jobs_of_a_rule(dag, monkeypatch, script, looks):
    monkeypatch.setattr(
        dag.script, "get_source", lambda path, *rest: (path, "", "python", True, "")
    )
    opened = []
    check_scripts_once(dag)
    check_scripts_once(dag)  # as when a Snakefile is read twice
    at_work = processor(dag)
    for job in jobs_of(Rule(script=script, basedir=None), opened):
        at_work.process_job(job)
    assert len(opened) == looks
    # Another rule with the same script is another matter.
    for job in jobs_of(Rule(script=script, basedir=None), opened):
        at_work.process_job(job)
    assert len(opened) == 2 * looks


def test_a_script_that_is_missing_is_still_told(dag, monkeypatch):
    monkeypatch.setattr(
        dag.script, "get_source", lambda path, *rest: (path, "", "python", True, "")
    )
    check_scripts_once(dag)
    at_work = processor(dag, exists=False)
    for job in jobs_of(Rule(script="../gone.py", basedir=None), []):
        with pytest.raises(dag.WorkflowError, match="not accessible"):
            at_work.process_job(job)


@pytest.mark.parametrize(
    ("quiet", "dryrun", "checkpoint", "told"),
    [
        ({"RULES"}, True, False, False),
        ({"RULES"}, True, True, True),
        ({"RULES"}, False, False, True),
        ({"PROGRESS"}, True, False, True),
        (None, True, False, True),
    ],
)
def test_only_a_job_that_nobody_sees_is_not_described(quiet, dryrun, checkpoint, told):
    enums = loaded("settings.enums")
    quiet = quiet and {enums.Quietness[name] for name in quiet}
    described = []
    jobs = ModuleType("snakemake.jobs")
    jobs.Job = type("Job", (), {"log_info": lambda self, indent=False: described.append(indent)})
    describe_no_hidden_jobs(jobs)
    describe_no_hidden_jobs(jobs)
    job = jobs.Job()
    settings = SimpleNamespace(quiet=quiet)
    job.dag = SimpleNamespace(workflow=SimpleNamespace(dryrun=dryrun, output_settings=settings))
    job.rule = SimpleNamespace(is_checkpoint=checkpoint, is_handover=False)
    job.log_info(indent=True)
    assert described == ([True] if told else [])


def test_snakemake_has_what_is_mended():
    """Else a new version would silently plan as slowly as before."""
    assert callable(loaded("dag").ScriptProcessor.process_job)
    assert callable(loaded("jobs").Job.log_info)


def test_another_snakemake_plans_without_it(capsys):
    spare_planning({"snakemake.dag": ModuleType("snakemake.dag")})
    said = capsys.readouterr().err
    assert "goes on without check_scripts_once (AttributeError" in said
    assert "goes on without describe_no_hidden_jobs (KeyError" in said
