"""Answer requests of one signature together, as TF Serving's batching does.

No request waits for others: what has come in while the model was busy makes up the next batch.
"""

import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from tfft.serve.failure import Failure
from tfft.serve.loaded import Arrays, Signature

FULL = "The batch scheduling queue to which this task was submitted is full"


@dataclass
class _Request:
    signature: Signature
    inputs: Mapping[str, np.ndarray]
    rows: int | None  # None: it has no batch dimension and is run alone
    answer: "Future[Arrays]" = field(default_factory=Future)

    @property
    def kind(self) -> tuple[object, ...]:
        """Requests of one kind go together."""
        shapes = tuple(sorted((k, v.shape[1:], v.dtype.str) for k, v in self.inputs.items()))
        return id(self.signature), shapes


class Batcher:
    """Threads that answer what is submitted.

    Args:
        rows: of a batch at most; a larger request is run alone.
        waiting: requests that may wait; further ones are refused.
        threads: batches at once.
    """

    def __init__(self, rows: int = 32, waiting: int = 1000, threads: int = 1):
        self._rows, self._waiting = rows, waiting
        self._queue: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batch{at}", daemon=True)
            for at in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, signature: Signature, inputs: Mapping[str, np.ndarray]) -> "Future[Arrays]":
        """Queue a request.

        Raises:
            Failure: too many wait.
        """
        request = _Request(signature, inputs, signature.batch_rows(inputs))
        with self._changed:
            if self._closed or len(self._queue) >= self._waiting:
                raise Failure("UNAVAILABLE", FULL)
            self._queue.append(request)
            self._changed.notify()
        return request.answer

    def close(self) -> None:
        """Answer what waits, end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while batch := self._next():
            try:
                self._answer(batch)
            except BaseException as error:  # a thread that ended would answer nobody any more
                for request in batch:
                    if not request.answer.done():
                        request.answer.set_exception(error)

    def _next(self) -> list[_Request]:
        """The oldest request with those of its kind that fit; empty at the end."""
        with self._changed:
            while not self._queue:
                if self._closed:
                    return []
                self._changed.wait()
            first = self._queue.popleft()
            batch, rows = [first], first.rows
            if rows is None:
                return batch
            for request in list(self._queue):
                if request.rows is None or request.kind != first.kind:
                    continue
                if rows + request.rows > self._rows:
                    break
                self._queue.remove(request)
                batch.append(request)
                rows += request.rows
            return batch

    def _answer(self, batch: list[_Request]) -> None:
        alive = [r for r in batch if r.answer.set_running_or_notify_cancel()]
        if len(alive) > 1 and self._together(alive):
            return
        for request in alive:
            try:
                request.answer.set_result(request.signature.answer(request.inputs))
            except Exception as error:
                request.answer.set_exception(error)

    def _together(self, batch: list[_Request]) -> bool:
        """Answer all at once; where that fails, or the outputs are not rows, each is run alone."""
        names = batch[0].inputs
        joined = {name: np.concatenate([r.inputs[name] for r in batch]) for name in names}
        try:
            outputs = batch[0].signature.answer(joined)
        except Failure:
            return False
        ends = np.cumsum([r.rows for r in batch])
        if any(value.ndim == 0 or len(value) != ends[-1] for value in outputs.values()):
            return False
        for request, end in zip(batch, ends, strict=True):
            start = end - (request.rows or 0)
            request.answer.set_result({name: v[start:end] for name, v in outputs.items()})
        return True
