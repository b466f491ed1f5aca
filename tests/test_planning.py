"""What is left out of planning changes neither a plan nor what comes of it."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import snakemake

from histogep.planning import (
    SEEN_IN,
    check_scripts_once,
    describe_no_hidden_jobs,
    look_at_functions_once,
    spare_planning,
)

REPOSITORY = Path(__file__).resolve().parents[1]


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


@pytest.mark.parametrize(("script", "looks"), [("../one.py", 1), ("../{wildcards.slide}.py", 3)])
def test_a_script_is_looked_for_once_for_all_jobs_of_a_rule(dag, monkeypatch, script, looks):
    monkeypatch.setattr(
        dag.script, "get_source", lambda path, *rest: (path, "", "python", True, "")
    )
    opened = []
    check_scripts_once(dag)
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
    job = jobs.Job()
    job.message = job.shellcmd = None
    settings = SimpleNamespace(quiet=quiet)
    job.dag = SimpleNamespace(workflow=SimpleNamespace(dryrun=dryrun, output_settings=settings))
    job.rule = Rule(is_checkpoint=checkpoint, is_handover=False)
    job.log_info(indent=True)
    assert described == ([True] if told else [])


def test_the_parameters_of_a_function_are_looked_at_once():
    import inspect

    looked = []

    def signature(function):
        looked.append(function)
        return inspect.signature(function)

    class Unhashable:
        __hash__ = None

        def __call__(self, input): ...

        def evaluate(self, wildcards): ...

    class Resource:
        def evaluate(self, attempt): ...

    def function(wildcards): ...

    common = SimpleNamespace(inspect=SimpleNamespace(signature=signature, stack=inspect.stack))
    look_at_functions_once(common)
    some = (function, Resource().evaluate, Resource.evaluate, Unhashable(), Unhashable().evaluate)
    for _ in range(2):
        for each in some:
            assert common.inspect.signature(each) == inspect.signature(each)
    # A method of another instance is the same method; what has no hash is looked at each time.
    assert common.inspect.signature(Resource().evaluate) == inspect.signature(Resource().evaluate)
    assert len(looked) == 6
    assert common.inspect.stack is inspect.stack


def test_the_snakemake_that_is_used_is_the_one_that_was_looked_into():
    """With another one, see whether the tests of this file pass with its version in `SEEN_IN`."""
    assert snakemake.__version__.startswith(SEEN_IN)


def test_another_snakemake_is_left_as_it_is(capsys):
    other = ModuleType("snakemake")
    other.__version__ = "9.99.0"
    spare_planning({"snakemake": other})
    assert f"with Snakemake {SEEN_IN}x; this is 9.99.0" in capsys.readouterr().err


#: Times, and the number that Snakemake gives a run.
_CHANGING = re.compile(
    r"\[\w{3} \w{3} .*?\]|\d{4}-\d\d-\d\d[T ][\d:.]+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|host: .*|Elapsed time: .*"
)


def test_a_part_that_is_not_there_is_planned_without(capsys):
    modules = {f"snakemake.{name}": ModuleType(name) for name in ("dag", "jobs", "common", "io")}
    modules |= {"snakemake": snakemake, "snakemake.iocontainers": ModuleType("iocontainers")}
    spare_planning(modules)
    said = capsys.readouterr().err
    assert said.count("Planning goes on without") == 7
    assert "without check_scripts_once (module 'dag' has no attribute 'ScriptProcessor')" in said
    spare_planning(modules)
    assert not capsys.readouterr().err


def call(folder, snakefile, *arguments, mended=True):
    """Run Snakemake, mended or as it is; return its exit status and what it said, without times."""
    spared = "" if mended else "from histogep import planning; planning._MENDS = ()\n"
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{spared}"
        "from snakemake.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "--snakefile", snakefile, "--directory", folder]
    done = subprocess.run(
        [*map(str, command), "--cores", "1", "--nocolor", *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    said = _CHANGING.sub("", done.stdout + done.stderr)
    # Jobs of a dry run, and the files of their reasons, stand in the order of sets.
    lines = said.replace(str(folder), "FOLDER").splitlines()
    return done.returncode, sorted(sorted(re.split(r"[,;]? ", line)) for line in lines)


#: Flags of every kind, functions of every kind, names that lists guard, a checkpoint.
WORKFLOW = """
import sys
sys.path.insert(0, {repository!r})
from histogep.planning import spare_planning
spare_planning(sys.modules)

def parts(wildcards):
    found = checkpoints.split.get().output.folder
    return expand("parts/{{part}}.out", part=glob_wildcards(found + "/{{part}}.txt").part)

def memory(wildcards, attempt, input):
    return 100 * attempt + len(input)

rule all:
    input: "gathered.txt", "touched", protected_copy="kept.txt"

rule plain:
    output: temp("plain.{{n}}.txt")
    params: n=lambda wildcards: int(wildcards.n)
    resources: mem_mb=memory
    shell: "echo {{params.n}} > {{output}}"

rule keep:
    input: index="plain.1.txt", other=ancient(["plain.2.txt", "plain.3.txt"])
    output: report(protected("kept.txt"), category="one")
    params: sort="-r", size=subpath(input.index, basename=True)
    shell: "sort {{params.sort}} {{input.index}} {{input.other}} > {{output}}; echo {{params.size}} >> {{output}}"

checkpoint split:
    input: "kept.txt"
    output: folder=directory("split")
    shell: "mkdir {{output.folder}}; for i in a b; do cp {{input}} {{output.folder}}/$i.txt; done"

rule part:
    input: "split/{{part}}.txt"
    output: ensure("parts/{{part}}.out", non_empty=True), multiext("many/{{part}}", ".x", ".y")
    log: "logs/{{part}}.log"
    benchmark: "bench/{{part}}.tsv"
    run:
        try:
            input.index("x")
            raise SystemExit("a guarded name can be called")
        except AttributeError as error:
            text = str(error)
        for path in output:
            open(path, "w").write(text + repr(dict(wildcards)) + repr(list(output.keys())))
        open(log[0], "w").write(repr(log))

rule gather:
    input: parts
    output: "gathered.txt"
    shell: "cat {{input}} > {{output}}"

rule touch:
    input: "gathered.txt"
    output: touch("touched")
{more}
"""


@pytest.mark.workflow
def test_flags_functions_and_folders_work_as_without(tmp_path):
    results = {}
    for mended in (True, False):
        folder = tmp_path / f"run{mended}"
        folder.mkdir()
        snakefile = folder / "Snakefile"
        snakefile.write_text(WORKFLOW.format(repository=str(REPOSITORY), more=""))
        said = [call(folder, snakefile, *more, mended=mended) for more in (["-n"], [], ["-n"])]
        assert [status for status, _ in said] == [0, 0, 0], said
        files = {
            path.relative_to(folder).as_posix(): (
                path.read_text(),
                oct(path.stat().st_mode),
            )
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not {".snakemake", "bench"} & set(path.relative_to(folder).parts)
        }
        results[mended] = said, files
    assert results[True][0] == results[False][0]
    assert results[True][1] == results[False][1]
    files = results[True][1]
    assert "plain.1.txt" not in files
    assert files["kept.txt"][1].endswith("444")
    assert "invalid" not in files["parts/a.out"][0]


@pytest.mark.workflow
def test_an_output_in_the_folder_of_another_rule_is_still_refused(tmp_path):
    nested = """
rule nested:
    input: "kept.txt"
    output: "split/inside/deep.txt"
    shell: "touch {output}"
"""
    said = {}
    for mended in (True, False):
        snakefile = tmp_path / "Snakefile"
        text = WORKFLOW.format(repository=str(REPOSITORY), more=nested)
        snakefile.write_text(
            text.replace('"gathered.txt", ', '"gathered.txt", "split/inside/deep.txt", ')
        )
        said[mended] = call(tmp_path, snakefile, "-n", mended=mended)
    assert said[True] == said[False]
    assert said[True][0] == 1
    assert ["ChildIOException:"] in said[True][1]


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("more", "told"),
    [
        ('rule wrong:\n    output: "{n}.more"\n    shell: "echo {wildcards.m}"\n', "wildcards"),
        (
            'rule wrong:\n    output: "{n}.more"\n    message: "{wildcards.m}"\n    shell: ""\n',
            "wildcards",
        ),
        ('rule wrong:\n    output: "split/../{n}.more"\n    shell: ""\n', "ChildIOException"),
    ],
)
def test_what_is_wrong_is_told_by_a_quiet_dry_run_too(tmp_path, more, told):
    snakefile = tmp_path / "Snakefile"
    target = "split/../x.more" if "split" in more else "x.more"
    text = WORKFLOW.format(repository=str(REPOSITORY), more=more)
    snakefile.write_text(text.replace('"gathered.txt", ', f'"gathered.txt", "{target}", '))
    said = {
        way: call(tmp_path, snakefile, "-n", "--quiet", "rules", mended=way)
        for way in (True, False)
    }
    assert said[True] == said[False]
    assert said[True][0] == 1
    assert told in str(said[True][1])


@pytest.mark.workflow
def test_the_default_study_is_planned_as_without(tmp_path):
    snakefile = REPOSITORY / "Snakefile"
    mended, plain = (call(tmp_path, snakefile, "-n", mended=way) for way in (True, False))
    assert mended == plain
    assert mended[0] == 0
    assert sum("Reason:" in words for words in mended[1]) > 150
