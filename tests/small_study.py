"""A simulated study of three slides, and calls of Snakemake on it in the background."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
#: Seconds; nothing takes longer on a busy machine with two cores. On one that is overloaded, more.
LONGEST = float(os.environ.get("HISTOGEP_LONGEST", "1500"))
#: Where `make slurm` puts the executor plugins: in .venv every start of Snakemake would load them.
PLUGINS = REPOSITORY / ".venv/cluster"


def has_plugin(name: str) -> bool:
    """Return whether an executor plugin of Snakemake is installed."""
    return (PLUGINS / f"snakemake_executor_plugin_{name}").is_dir()


class Study:
    """A simulated study of three slides, the folder of its results, and calls of Snakemake on it."""

    def __init__(self, folder: Path, *, profile: str | None = None, grouped: bool = False):
        self.folder = folder
        self.profile = profile
        self.grouped = grouped
        self.calls = 0
        self.started: list[Call] = []
        command = [sys.executable, "-m", "histogep.simulate.cli", "--study", folder]
        sizes = ["--patients-with-spots", 2, "--sections", 2, "--patients-without-spots", 1]
        sizes += ["--section-rows", 16, "--section-cols", 16]
        subprocess.run([*map(str, [*command, *sizes])], cwd=REPOSITORY, check=True)
        path = folder / "config.yaml"
        config = yaml.safe_load(path.read_text())
        config["encoders"] = [{"name": "descriptors"}]
        config["folds"] |= {"patient_cv": 2, "published": 2}
        config["evaluation"] = {"permutations": 20, "bootstraps": 100, "thinnings": 1}
        # Nothing is learned from so little: what is trained here need not be the best.
        del config["models"]["blend"]
        for model in ("cmunet", "tumour"):
            config["models"][model] |= {"epochs": 4, "min_steps": 0}
        # Copy number needs more tissue than there is, and outcomes more patients.
        config["references"] = {}
        path.write_text(yaml.safe_dump(config))
        self.name = config["study"]

    def start(
        self,
        *arguments: str | Path,
        profile: str | None = "",
        wrapper: Sequence[str] = (),
    ) -> Call:
        """Start Snakemake; `profile` is that of the study unless another, or none, is given."""
        self.calls += 1
        profile = self.profile if profile == "" else profile
        command = [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile"]
        command += ["--directory", self.folder, "--configfile", self.folder / "config.yaml"]
        command += (
            ["--profile", REPOSITORY / profile, "--jobs", "8"] if profile else ["--cores", "2"]
        )
        if profile and not self.grouped:
            # In place of the profile's own groups, so that each job can be told from the others.
            command += ["--groups", "record_software=alone"]
        log = self.folder / f"call-{self.calls}.log"
        with open(log, "w") as said:
            process = subprocess.Popen(
                [*wrapper, *map(str, [*command, *arguments])],
                stdout=said,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env=os.environ
                | {"OMP_NUM_THREADS": "1"}
                | ({"PYTHONPATH": str(PLUGINS)} if profile else {}),
            )
        self.started.append(Call(process, log))
        return self.started[-1]

    def settle(self) -> None:
        """Let calls that a failed test has left come to their end; jobs that run are finished."""
        for call in self.started:
            if call.process.poll() is None:
                call.process.terminate()
                call.wait()

    def finish(self, *arguments: str | Path, **options: str | None) -> Call:
        """Run to the end, which must be a good one."""
        call = self.start(*arguments, **options)
        assert call.wait() == 0, call.said[-6000:]
        return call

    def results(self) -> dict[str, int]:
        """Return when each result was written, in ns."""
        return {
            str(path.relative_to(self.folder)): path.stat().st_mtime_ns
            for path in sorted(self.folder.glob("results/**/*"))
            if path.is_file() and not path.name.startswith(".")
        }

    def slurm_log(self, job: str) -> str:
        return next(self.folder.glob(f"logs/slurm/**/{job}.log")).read_text()


class Call:
    """One call of Snakemake in the background."""

    def __init__(self, process: subprocess.Popen, log: Path):
        self.process = process
        self.began = time.time()
        self._log = log

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait(self, seconds: float = LONGEST) -> int:
        # A watchdog: an executor that loses its jobs would wait for ever.
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def jobs(self, rule: str = "", *, group: str = "") -> list[str]:
        """Return the SLURM ids of the jobs of a rule or group, in the order of their submission."""
        kind = f"group_{group}" if group else f"rule_{rule}" if rule else ""
        return re.findall(rf"SLURM jobid (\d+) \(log: \S*/slurm/{kind}", self.said)

    def submitted(self) -> dict[str, str]:
        """Return rule/wildcards of each job given to SLURM, by the number that Snakemake gives it."""
        told = r"Job (\S+) has been submitted with SLURM jobid \d+ \(log: \S*?/slurm/(?:rule|group)_(\S+)/\d+\.log"
        found = re.findall(told, self.said)
        names = [name for _, name in found]
        assert len(names) == len(set(names)), "a job was submitted twice"
        return dict(found)

    def unfinished(self) -> set[str]:
        """Return rule/wildcards of the jobs whose end was not told."""
        ended = set(re.findall(r"Finished jobid: (\d+) ", self.said))
        return {name for job, name in self.submitted().items() if job not in ended}

    @property
    def run_id(self) -> str:
        return re.search(r"SLURM run ID: (\S+)", self.said)[1]
