"""The chief's service answers workers, and nobody who makes trials up."""

from concurrent import futures

import grpc
import pytest
from keras_tuner import HyperParameters
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.src import protos

from tests.search.test_oracles import oracle
from tfft.search import service
from tfft.utils.errors import UserError


@pytest.fixture
def chief(tmp_path):
    """A client's stub, and the oracle behind it."""
    made = oracle(tmp_path, trials=3)
    server = grpc.server(futures.ThreadPoolExecutor(1))
    servicer = service._Servicer(made, tmp_path, lambda: None)
    protos.get_service_grpc().add_OracleServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield protos.get_service_grpc().OracleStub(channel), made
    server.stop(None).wait()


def test_a_trial_that_was_not_given_out_is_refused(chief, tmp_path):
    stub, made = chief
    (tmp_path / "secret.json").write_text('{"score": 1.0, "epochs": 9}')
    messages = protos.get_service()
    for name in ("../secret", "0007", ""):
        forged = Trial(HyperParameters(), name, TrialStatus.COMPLETED).to_proto()
        for call, request in (
            (stub.EndTrial, messages.EndTrialRequest(trial=forged)),
            (stub.GetTrial, messages.GetTrialRequest(trial_id=name)),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(request, timeout=20)
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert not made.notes

    request = messages.CreateTrialRequest(tuner_id="worker-a")
    trial = stub.CreateTrial(request, timeout=20).trial
    with pytest.raises(grpc.RpcError, match=r"0000\.json"):  # it left no outcome
        stub.EndTrial(messages.EndTrialRequest(trial=trial), timeout=20)
    assert set(made.trials) == {"0000"}


def test_a_worker_takes_no_path_from_a_chief(tmp_path, monkeypatch):
    class Forged:
        def create_trial(self, tuner_id):
            return Trial(HyperParameters(), "../../elsewhere", TrialStatus.RUNNING)

    monkeypatch.setattr(service, "OracleClient", lambda _: Forged())
    with pytest.raises(UserError, match="not a chief of tfft"):
        service.Client(tmp_path).create_trial("worker-a")
