import logging
import os
import subprocess
import sys

import pytest

from histogep.jobs import InputError, job_log, progress


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
