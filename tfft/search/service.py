"""A search on several machines, through KerasTuner's oracle service.

The chief holds the oracle and answers over gRPC; workers take trials from it. Each is started with
KerasTuner's own environment variables, and all of them with the same `tfft tune` command, on a
folder that all of them see:

    export KERASTUNER_ORACLE_IP=10.0.0.1 KERASTUNER_ORACLE_PORT=8000
    KERASTUNER_TUNER_ID=chief    tfft tune --config=search.yaml --workdir=/shared/search
    KERASTUNER_TUNER_ID=worker-a tfft tune --config=search.yaml --workdir=/shared/search

The service neither encrypts nor asks who calls: KERASTUNER_ORACLE_IP, the only address that the
chief listens on, must be of a network on which every machine is trusted.

A worker that is started again under its name gets the trial that it had. One that is silent for
`LOST` seconds is thought lost, and its trial is given to another.
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

LOST = 60.0  # seconds of silence
BEAT = 5.0  # seconds between two signs of life
PATIENCE = 2.0  # seconds that the chief stays when all is over
RESULTS = "results"  # folder of the outcomes, which the protocol has no field for

_NAMES = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")


def role() -> str | None:
    """`chief`, a worker's name, or None where the search is this process's alone.

    Raises:
        UserError: only some of KerasTuner's environment variables are set.
    """
    given = [os.environ.get(name) for name in _NAMES]
    if not any(given[1:]):
        return None
    for name, value in zip(_NAMES, given, strict=True):
        if not value:
            raise UserError(f"{name}: is not set, {_NAMES[1]} or {_NAMES[2]} is; set all three")
    if not str(given[2]).isdigit():
        raise UserError(f"{_NAMES[2]}: must be a number; received {given[2]!r}")
    return "chief" if "chief" in str(given[0]) else given[0]


class _Servicer(OracleServicer):
    """KerasTuner's, with signs of life and outcomes."""

    def __init__(self, oracle: Any, workdir: Path, told: Callable[[], None]):
        super().__init__(oracle)
        self._workdir, self._told = workdir, told
        self.seen: dict[str, float] = {}  # worker -> when it was last heard of
        self.has: dict[str, str] = {}  # trial -> worker

    def CreateTrial(self, request: Any, context: Any) -> Any:
        """A trial for a worker."""
        self.seen[request.tuner_id] = time.monotonic()
        trial = self.oracle.create_trial(request.tuner_id)
        if trial.status == TrialStatus.RUNNING:
            self.has[trial.trial_id] = request.tuner_id
        if trial.status == TrialStatus.STOPPED:
            self.seen.pop(request.tuner_id, None)
        return protos.get_service().CreateTrialResponse(trial=trial.to_proto())

    def GetTrial(self, request: Any, context: Any) -> Any:
        """A trial as it is now; asked for by the worker that runs it, a sign of life."""
        self._require_known(request.trial_id, context)
        if (worker := self.has.get(request.trial_id)) in self.seen:
            self.seen[worker] = time.monotonic()
        trial = Trial.from_state(self.oracle.get_trial(request.trial_id).get_state())
        if self.oracle.over:
            trial.status = TrialStatus.STOPPED
        return protos.get_service().GetTrialResponse(trial=trial.to_proto())

    def EndTrial(self, request: Any, context: Any) -> Any:
        """Take an outcome, whose text lies in the folder that all see."""
        trial = Trial.from_proto(request.trial)
        self._require_known(trial.trial_id, context)
        path = self._workdir / RESULTS / f"{trial.trial_id}.json"
        try:
            trial.message = path.read_text(encoding="utf-8")
        except OSError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{path}: {error.strerror}")
        self.oracle.end_trial(trial)
        self._told()
        return protos.get_service().EndTrialResponse()

    def _require_known(self, trial_id: str, context: Any) -> None:
        """Refuse an id that the oracle did not give out: ids are parts of paths."""
        if trial_id not in self.oracle.trials:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no trial {trial_id[:20]!r}")


def serve(oracle: Any, workdir: Path, told: Callable[[], None]) -> None:
    """Answer workers until the search is over and none of them has a trial.

    Raises:
        UserError: the address cannot be listened on.
        Interrupted: a signal asked for it.
    """
    address = f"{os.environ[_NAMES[1]]}:{os.environ[_NAMES[2]]}"
    servicer = _Servicer(oracle, workdir, told)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="oracle"))
    protos.get_service_grpc().add_OracleServicer_to_server(servicer, server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if port == 0:
        raise UserError(f"{_NAMES[1]}: cannot listen on {address}")
    server.start()
    console.log(f"chief: waiting for workers at {address}")
    try:
        while not _finished(oracle):
            time.sleep(0.5)
            now = time.monotonic()
            for worker, at in list(servicer.seen.items()):
                if now - at > LOST and worker in oracle.ongoing_trials:
                    console.log(
                        f"chief: {worker} is silent for {LOST:.0f} s; its trial is given again"
                    )
                    servicer.seen.pop(worker)
                    oracle.lose(worker)
        time.sleep(PATIENCE)  # those that wait hear that it is over
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command goes on") from None
    finally:
        server.stop(grace=None)


def _finished(oracle: Any) -> bool:
    """Whether there is nothing more to give, and nothing runs."""
    if oracle.ongoing_trials:
        return False
    return bool(oracle.over) or oracle.exhausted


class Client:
    """The chief's oracle, as a worker sees it.

    Attributes:
        over: whether the chief said that the running trial is to stop.
    """

    def __init__(self, workdir: Path):
        self._client = OracleClient(None)
        self._workdir, self.over = workdir, False

    def create_trial(self, tuner_id: str) -> Trial:
        """As the oracle's; STOPPED where the chief is gone."""
        try:
            trial = self._client.create_trial(tuner_id)
        except grpc.RpcError as error:
            console.log(f"{tuner_id}: the chief is gone: {_reason(error)}")
            return Trial(HyperParameters(), "", TrialStatus.STOPPED)
        if trial.status == TrialStatus.RUNNING and not trial.trial_id.isalnum():  # part of a path
            raise UserError(f"{_NAMES[1]}: not a chief of tfft. Received: trial {trial.trial_id!r}")
        return trial

    def get_trial(self, trial_id: str) -> Trial:
        """As the oracle's.

        Raises:
            UserError: the chief does not answer.
        """
        try:
            return self._client.get_trial(trial_id)
        except grpc.RpcError as error:
            raise UserError(f"the chief is gone: {_reason(error)}; start it again") from None

    def end_trial(self, trial: Trial) -> None:
        """As the oracle's."""
        folder = self._workdir / RESULTS
        folder.mkdir(exist_ok=True)
        write_atomic(folder / f"{trial.trial_id}.json", trial.message or "{}")
        try:
            self._client.end_trial(trial)
        except grpc.RpcError as error:  # given again, the finished run answers at once
            console.log(f"trial {trial.trial_id}: the chief did not take it: {_reason(error)}")

    @contextmanager
    def running(self, trial_id: str) -> Iterator[None]:
        """Tell the chief every few seconds that a trial runs; hear whether it is to stop."""
        ended, self.over = threading.Event(), False

        def beat() -> None:
            while not ended.wait(BEAT):
                with suppress(UserError):  # it may come back
                    self.over = self.get_trial(trial_id).status == TrialStatus.STOPPED

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _reason(error: grpc.RpcError) -> str:
    code = getattr(error, "code", lambda: None)()
    return code.name.lower().replace("_", " ") if code is not None else "no answer"
