import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from histogep.errors import InputError
from histogep.progress import progress
from histogep.workflow.job import job_log

REPOSITORY = Path(__file__).resolve().parents[2]


def test_all_output_goes_to_the_log_also_of_children(tmp_path):
    path = tmp_path / "job.log"
    with job_log(path) as log:
        log.info("from python")
        os.write(1, b"printed\n")
        os.write(2, b"from a C library\n")
        subprocess.run([sys.executable, "-c", "print('child')"], check=True)
    text = path.read_text()
    for expected in ("from python", "printed", "from a C library", "child"):
        assert expected in text


def test_a_failure_is_logged_with_its_trace_and_goes_on(tmp_path):
    with pytest.raises(KeyError), job_log(tmp_path / "job.log"):
        raise KeyError("lost")
    assert "Traceback" in (tmp_path / "job.log").read_text()


def test_an_input_error_is_logged_as_its_message_only(tmp_path):
    with pytest.raises(InputError), job_log(tmp_path / "job.log"):
        raise InputError("slides.tsv: line 3: mend it")
    text = (tmp_path / "job.log").read_text()
    assert "line 3: mend it" in text
    assert "Traceback" not in text


def test_the_progress_bar_is_silent_without_a_terminal(capfd):
    assert list(progress(range(3), unit="tile", what="Encode")) == [0, 1, 2]
    assert capfd.readouterr().err == ""
    logging.captureWarnings(False)


def test_the_log_tells_peak_memory_and_cpu_time(tmp_path):
    code = (
        "from histogep.workflow.job import job_log\n"
        f"with job_log({str(tmp_path / 'job.log')!r}):\n"
        "    held = bytearray(200 * 2**20)\n"
        "    held[::4096] = bytes(len(held[::4096]))\n"
        "    del held\n"
    )
    # What started the job held more.
    held = bytearray(600 * 2**20)
    held[::4096] = bytes(len(held[::4096]))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
    del held
    peak, cpu = re.search(
        r"peak memory (\d+) MB, ([\d.]+) s CPU", (tmp_path / "job.log").read_text()
    ).groups()
    assert 200 <= int(peak) < 500
    assert 0 < float(cpu) < 30


def test_a_mistake_of_the_user_is_said_without_a_traceback(tmp_path):
    code = (
        "from histogep.workflow.job import InputError, job_log\n"
        f"with job_log({str(tmp_path / 'job.log')!r}):\n    raise {{}}\n"
    )
    said = {}
    for error in ("InputError('line 3: mend it')", "ValueError('a fault of the code')"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(error)],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
        )
        assert done.returncode == 1
        said[error[:5]] = done.stderr
    assert said["Input"] == "InputError: line 3: mend it\n"
    assert "Traceback" in said["Value"]
