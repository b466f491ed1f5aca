"""What every job shares: its log, its record, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histogep.errors import InputError
from histogep.warned import heard

if TYPE_CHECKING:
    from histogep.workflow.records import Job


@contextlib.contextmanager
def job_log(path: str | Path, job: Job | None = None) -> Iterator[logging.Logger]:
    """Send all that one job prints, its C libraries included, to its log file.

    An exception is written to the log before it goes on; of an `InputError` only the message,
    because its traceback tells a user nothing. SIGTERM (a cancelled, preempted or late job) ends
    the job as an exception does, so that no half-written file stays. A job that ends well leaves
    its peak memory and CPU time, the versions of the packages that it loaded, and in its record what the
    library warned of.

    Parameters
    ----------
    path
        The log file.
    job
        What the job is. If it ends well its record (`histogep.workflow.records`) is written beside the
        log, with the suffix .json.
    """
    from histogep.workflow.records import recorded
    from histogep.workflow.software import format_versions, loaded_versions

    saved = [os.dup(1), os.dup(2)]
    with open(path, "w", buffering=1) as handle:
        _flush()
        os.dup2(handle.fileno(), 1)
        os.dup2(handle.fileno(), 2)
        logging.basicConfig(
            stream=handle,
            level=logging.INFO,
            force=True,
            format="%(asctime)s %(levelname)s %(message)s",
        )
        logging.captureWarnings(True)
        log = logging.getLogger("histogep")
        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, _terminate) if main else None
        try:
            with contextlib.ExitStack() as stack:
                if job:
                    record = Path(path).with_suffix(".json")
                    stack.enter_context(recorded(record, job, stack.enter_context(heard())))
                yield log
            log.info("peak memory %.0f MB, %.1f s CPU", *_cost())
            log.info("%s", format_versions(loaded_versions()))
        except _Terminated:
            log.error("SIGTERM: the job was cancelled, preempted, or is over its time")
            raise
        except InputError as error:
            log.error("%s", error)
            sys.excepthook = _say_mistake
            raise
        except BaseException as error:
            log.exception("the job failed")
            if hint := _remedy(error):
                log.error(hint)
            raise
        finally:
            if main:
                signal.signal(signal.SIGTERM, before)
            _flush()
            for stream, descriptor in enumerate(saved, start=1):
                os.dup2(descriptor, stream)
                os.close(descriptor)


def _say_mistake(kind: type, error: BaseException, trace: Any) -> None:
    """Print a mistake of the user's without where the code found it; all else as usual."""
    if isinstance(error, InputError):
        print(f"{kind.__name__}: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _cost() -> tuple[float, float]:
    """Return the peak memory in MB of this process, and its CPU seconds with those of its children."""
    own, children = (
        resource.getrusage(r) for r in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    cpu = sum(used.ru_utime + used.ru_stime for used in (own, children))
    with contextlib.suppress(OSError):
        # ru_maxrss of a process begins with what the one that started it held.
        if peak := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(peak[1]) / 1024, cpu
    return own.ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024), cpu


class _Terminated(SystemExit):
    pass


def _terminate(number: int, _frame: object) -> None:
    raise _Terminated(128 + number)


def _remedy(error: BaseException) -> str:
    """Return what a user can do about a machine that ran short of something, "" for other errors."""
    said = str(error).lower()
    if isinstance(error, MemoryError) or "allocate memory" in said or "out of memory" in said:
        return (
            "out of memory: give this rule more, for example with "
            "--set-resources RULE:mem_mb=16000, or run fewer jobs at once"
        )
    short = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
    if isinstance(error, OSError) and error.errno in short or "no space left" in said:
        return f"{short.get(getattr(error, 'errno', 0), 'the disk is full')}: make room, run again"
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return "the results lie on a read-only disk: choose another folder with --directory"
    return ""


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
