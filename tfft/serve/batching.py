"""Compute requests to one signature in batches, as TF Serving's batching does.

No request waits for others to arrive: the requests that arrived while the model was busy form the
next batch.
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
    """A queued request and the future of its outputs."""

    signature: Signature
    inputs: Mapping[str, np.ndarray]
    num_rows: int | None  # None: it has no batch dimension and runs alone
    future: "Future[Arrays]" = field(default_factory=Future)

    @property
    def batch_key(self) -> tuple[object, ...]:
        """Return what requests of one batch must share: the signature, and shapes and dtypes.

        The signature counts by identity: two versions of a model have signatures of one name.
        """
        shapes = tuple(
            sorted((name, array.shape[1:], array.dtype.str) for name, array in self.inputs.items())
        )
        return id(self.signature), shapes


class Batcher:
    """Threads that compute submitted requests in batches.

    Args:
        max_rows: largest number of rows of a batch; a larger request runs alone.
        max_queued: number of requests that may wait; further ones are rejected.
        num_threads: number of batches that are computed at once.
    """

    def __init__(self, max_rows: int = 32, max_queued: int = 1000, num_threads: int = 1):
        self._max_rows, self._max_queued = max_rows, max_queued
        self._queue: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run_batches, name=f"batch{index}", daemon=True)
            for index in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, signature: Signature, inputs: Mapping[str, np.ndarray]) -> "Future[Arrays]":
        """Queue a request, and return the future of its outputs.

        Raises:
            Failure: the queue is full.
        """
        request = _Request(signature, inputs, signature.batch_rows(inputs))
        with self._changed:
            if self._closed or len(self._queue) >= self._max_queued:
                raise Failure("UNAVAILABLE", FULL)
            self._queue.append(request)
            self._changed.notify()
        return request.future

    def close(self) -> None:
        """Compute the queued requests, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run_batches(self) -> None:
        while batch := self._next_batch():
            try:
                self._run_batch(batch)
            except BaseException as error:  # the thread must survive, or later requests would hang
                for request in batch:
                    if not request.future.done():
                        request.future.set_exception(error)

    def _next_batch(self) -> list[_Request]:
        """Wait for requests, and return the oldest with those that can join its batch.

        Returns:
            The batch; empty once the batcher is closed and the queue is empty.
        """
        with self._changed:
            while not self._queue:
                if self._closed:
                    return []
                self._changed.wait()
            first = self._queue.popleft()
            batch, num_rows = [first], first.num_rows
            if num_rows is None:
                return batch
            for request in list(self._queue):
                if request.num_rows is None or request.batch_key != first.batch_key:
                    continue
                # `break`, not `continue`: smaller requests must not overtake this one forever.
                if num_rows + request.num_rows > self._max_rows:
                    break
                self._queue.remove(request)
                batch.append(request)
                num_rows += request.num_rows
            return batch

    def _run_batch(self, batch: list[_Request]) -> None:
        # The clients of cancelled futures have stopped waiting.
        pending = [r for r in batch if r.future.set_running_or_notify_cancel()]
        if len(pending) > 1 and self._run_joined(pending):
            return
        for request in pending:
            try:
                request.future.set_result(request.signature.run(request.inputs))
            except Exception as error:
                request.future.set_exception(error)

    def _run_joined(self, batch: list[_Request]) -> bool:
        """Compute a batch as one request.

        Returns:
            False if that fails or the outputs do not have one row per input row. The caller then
            runs each request alone, so that a bad request fails no other.
        """
        input_names = batch[0].inputs
        inputs = {name: np.concatenate([r.inputs[name] for r in batch]) for name in input_names}
        try:
            outputs = batch[0].signature.run(inputs)
        except Failure:
            return False
        row_ends = np.cumsum([r.num_rows for r in batch])
        if any(value.ndim == 0 or len(value) != row_ends[-1] for value in outputs.values()):
            return False
        for request, end in zip(batch, row_ends, strict=True):
            start = end - (request.num_rows or 0)
            request.future.set_result({name: array[start:end] for name, array in outputs.items()})
        return True
