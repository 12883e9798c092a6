"""A search on several machines, through KerasTuner's oracle service.

The chief holds the oracle and answers over gRPC; workers take trials from it. Start all processes
with KerasTuner's environment variables and the same `tfft tune` command, on a folder that all
machines share:

    export KERASTUNER_ORACLE_IP=10.0.0.1 KERASTUNER_ORACLE_PORT=8000
    KERASTUNER_TUNER_ID=chief    tfft tune --config=search.yaml --workdir=/shared/search
    KERASTUNER_TUNER_ID=worker-a tfft tune --config=search.yaml --workdir=/shared/search

The service has neither encryption nor authentication. KERASTUNER_ORACLE_IP is the only address that
the chief listens on; it must belong to a network on which every machine is trusted.

A worker that is restarted under the same name receives its previous trial. A worker that is silent
for `LOST_SECONDS` seconds is declared lost, and its trial goes to another worker.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
from keras_tuner import HyperParameters
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.src import protos
from keras_tuner.src.distribute.oracle_chief import OracleServicer
from keras_tuner.src.distribute.oracle_client import OracleClient

from tfft.utils import console
from tfft.utils.errors import Interrupted, UserError
from tfft.utils.files import write_atomic

LOST_SECONDS = 60.0  # seconds of silence after which a worker is lost
HEARTBEAT_SECONDS = 5.0  # seconds between two heartbeats
SHUTDOWN_SECONDS = 2.0  # seconds that the chief keeps answering after the end of the search
RESULTS_FOLDER = "results"  # folder of the outcomes, which the protocol has no field for

_VARIABLES = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")


def role() -> str | None:
    """Return `chief`, the name of a worker, or None where this process searches alone.

    Raises:
        UserError: only some of KerasTuner's environment variables are set.
    """
    values = [os.environ.get(name) for name in _VARIABLES]
    if not any(values[1:]):
        return None
    for name, value in zip(_VARIABLES, values, strict=True):
        if not value:
            raise UserError(
                f"{name}: must be set where {_VARIABLES[1]} or {_VARIABLES[2]} is; set all three"
            )
    if not str(values[2]).isdigit():
        raise UserError(f"{_VARIABLES[2]}: must be a number. Received: {values[2]!r}")
    return "chief" if "chief" in str(values[0]) else values[0]


class _Servicer(OracleServicer):
    """KerasTuner's servicer, with heartbeats and outcomes."""

    def __init__(self, oracle: Any, workdir: Path, on_trial_end: Callable[[], None]):
        super().__init__(oracle)
        self._workdir, self._on_trial_end = workdir, on_trial_end
        self.last_heartbeat: dict[str, float] = {}  # worker -> time of its last heartbeat
        self.worker_of: dict[str, str] = {}  # trial -> worker

    def CreateTrial(self, request: Any, context: Any) -> Any:
        """Return a trial for a worker."""
        self.last_heartbeat[request.tuner_id] = time.monotonic()
        trial = self.oracle.create_trial(request.tuner_id)
        if trial.status == TrialStatus.RUNNING:
            self.worker_of[trial.trial_id] = request.tuner_id
        if trial.status == TrialStatus.STOPPED:
            self.last_heartbeat.pop(request.tuner_id, None)
        return protos.get_service().CreateTrialResponse(trial=trial.to_proto())

    def GetTrial(self, request: Any, context: Any) -> Any:
        """Return the current state of a trial.

        The worker that runs the trial polls it, so the request counts as its heartbeat.
        """
        self._require_known(request.trial_id, context)
        if (worker := self.worker_of.get(request.trial_id)) in self.last_heartbeat:
            self.last_heartbeat[worker] = time.monotonic()
        trial = Trial.from_state(self.oracle.get_trial(request.trial_id).get_state())
        if self.oracle.out_of_time:
            trial.status = TrialStatus.STOPPED
        return protos.get_service().GetTrialResponse(trial=trial.to_proto())

    def EndTrial(self, request: Any, context: Any) -> Any:
        """Record an outcome, which the worker wrote to the shared folder."""
        trial = Trial.from_proto(request.trial)
        self._require_known(trial.trial_id, context)
        path = self._workdir / RESULTS_FOLDER / f"{trial.trial_id}.json"
        try:
            trial.message = path.read_text(encoding="utf-8")
        except OSError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{path}: {error.strerror}")
        self.oracle.end_trial(trial)
        self._on_trial_end()
        return protos.get_service().EndTrialResponse()

    def _require_known(self, trial_id: str, context: Any) -> None:
        """Refuse an id that the oracle did not hand out: ids become parts of paths."""
        if trial_id not in self.oracle.trials:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no trial {trial_id[:20]!r}")


def serve(oracle: Any, workdir: Path, on_trial_end: Callable[[], None]) -> None:
    """Answer workers until the search is over and no worker has a trial.

    Raises:
        UserError: the address cannot be listened on.
        Interrupted: a signal asked the search to stop.
    """
    address = f"{os.environ[_VARIABLES[1]]}:{os.environ[_VARIABLES[2]]}"
    servicer = _Servicer(oracle, workdir, on_trial_end)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="oracle"))
    protos.get_service_grpc().add_OracleServicer_to_server(servicer, server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if port == 0:
        raise UserError(f"{_VARIABLES[1]}: cannot listen on {address}")
    server.start()
    console.log(f"chief: waiting for workers at {address}")
    try:
        while not _is_finished(oracle):
            time.sleep(0.5)
            now = time.monotonic()
            for worker, last_heartbeat in list(servicer.last_heartbeat.items()):
                if now - last_heartbeat > LOST_SECONDS and worker in oracle.ongoing_trials:
                    console.log(
                        f"chief: {worker} is silent for {LOST_SECONDS:.0f} s; "
                        "its trial goes to another worker"
                    )
                    servicer.last_heartbeat.pop(worker)
                    oracle.requeue_trial_of(worker)
        time.sleep(SHUTDOWN_SECONDS)  # idle workers ask once more and learn that the search is over
    except KeyboardInterrupt:
        raise Interrupted("interrupted; run the same command to resume") from None
    finally:
        server.stop(grace=None)


def _is_finished(oracle: Any) -> bool:
    """Return whether no trial is left to hand out and none runs."""
    if oracle.ongoing_trials:
        return False
    return bool(oracle.out_of_time) or oracle.exhausted


class Client:
    """The oracle of the chief, as a worker uses it.

    Attributes:
        out_of_time: whether the chief asked the running trial to stop.
    """

    def __init__(self, workdir: Path):
        self._client = OracleClient(None)
        self._workdir, self.out_of_time = workdir, False

    def create_trial(self, tuner_id: str) -> Trial:
        """Return a trial from the chief; STOPPED where the chief does not answer.

        Raises:
            UserError: the answer holds an id that could leave the search directory.
        """
        try:
            trial = self._client.create_trial(tuner_id)
        except grpc.RpcError as error:
            console.log(f"{tuner_id}: the chief does not answer: {_reason(error)}")
            return Trial(HyperParameters(), "", TrialStatus.STOPPED)
        # The id becomes part of a path.
        if trial.status == TrialStatus.RUNNING and not trial.trial_id.isalnum():
            raise UserError(
                f"{_VARIABLES[1]}: not a chief of tfft. Received: trial {trial.trial_id!r}"
            )
        return trial

    def get_trial(self, trial_id: str) -> Trial:
        """Return the current state of a trial from the chief.

        Raises:
            UserError: the chief does not answer.
        """
        try:
            return self._client.get_trial(trial_id)
        except grpc.RpcError as error:
            raise UserError(f"the chief does not answer: {_reason(error)}; restart it") from None

    def end_trial(self, trial: Trial) -> None:
        """Write the outcome of a trial to the shared folder and report the trial to the chief."""
        folder = self._workdir / RESULTS_FOLDER
        folder.mkdir(exist_ok=True)
        write_atomic(folder / f"{trial.trial_id}.json", trial.message or "{}")
        try:
            self._client.end_trial(trial)
        except grpc.RpcError as error:
            # Not fatal: if the trial is handed out again, its finished run returns at once.
            console.log(
                f"trial {trial.trial_id}: the chief did not accept the result: {_reason(error)}"
            )

    @contextmanager
    def running(self, trial_id: str) -> Iterator[None]:
        """Send heartbeats to the chief while a trial runs, and learn whether to stop."""
        stop, self.out_of_time = threading.Event(), False

        def send_heartbeats() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                with suppress(UserError):  # the chief may come back
                    self.out_of_time = self.get_trial(trial_id).status == TrialStatus.STOPPED

        thread = threading.Thread(target=send_heartbeats, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _reason(error: grpc.RpcError) -> str:
    code = getattr(error, "code", lambda: None)()
    return code.name.lower().replace("_", " ") if code is not None else "no answer"
