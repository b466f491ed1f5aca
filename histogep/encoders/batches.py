"""Encode a slide batch by batch: reading overlaps encoding, and results keep their order.

`read` returns the parts of a batch that are to be encoded, one for each view; `start` starts the
work on a part, and returns a function that waits for its features.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

Prepared = TypeVar("Prepared")
T = TypeVar("T")


def encode_on_cpu(
    batches: Iterable[slice],
    read: Callable[[slice], list[Prepared]],
    start: Callable[[Prepared], Callable[[], np.ndarray]],
    *,
    threads: int,
) -> Iterator[list[np.ndarray]]:
    """Yield the features of the batches in order, one array for each view.

    One thread reads ahead of `threads` that encode a batch each.
    """
    with ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(threads) as encoding:

        def encode(views: Future[list[Prepared]]) -> list[np.ndarray]:
            return [start(view)() for view in views.result()]

        def submit(rows: slice) -> Future[list[np.ndarray]]:
            return encoding.submit(encode, reading.submit(read, rows))

        yield from _in_order(submit, batches, ahead=threads + 1)


def encode_on_gpu(
    batches: Iterable[slice],
    read: Callable[[slice], list[Prepared]],
    start: Callable[[Prepared], Callable[[], np.ndarray]],
    *,
    threads: int,
) -> Iterator[list[np.ndarray]]:
    """Yield the features of the batches in order, one array for each view.

    All threads read and prepare; a batch is queued on the GPU before the previous one is awaited.
    """
    with ThreadPoolExecutor(threads) as reading:
        running: list[Callable[[], np.ndarray]] = []
        for views in _in_order(lambda rows: reading.submit(read, rows), batches, ahead=threads + 1):
            started = [start(view) for view in views]
            if running:
                yield [finish() for finish in running]
            running = started
        if running:
            yield [finish() for finish in running]


def _in_order(
    submit: Callable[[slice], Future[T]], batches: Iterable[slice], *, ahead: int
) -> Iterator[T]:
    """Yield the results of the batches in order, with at most `ahead` + 1 of them in progress."""
    queue: deque[Future[T]] = deque()
    try:
        for rows in batches:
            queue.append(submit(rows))
            if len(queue) > ahead:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
    finally:
        for future in queue:
            future.cancel()
