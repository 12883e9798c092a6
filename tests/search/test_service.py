"""The chief's service answers workers and refuses forged trials."""

from concurrent import futures

import grpc
import pytest
from keras_tuner import HyperParameters
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.src import protos

from tests.search.test_oracles import make_oracle
from tfft.search import service
from tfft.utils.errors import UserError


@pytest.fixture
def chief(tmp_path):
    """A client's stub and the oracle behind it."""
    search_oracle = make_oracle(tmp_path, trials=3)
    server = grpc.server(futures.ThreadPoolExecutor(1))
    servicer = service._Servicer(search_oracle, tmp_path, lambda: None)
    protos.get_service_grpc().add_OracleServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield protos.get_service_grpc().OracleStub(channel), search_oracle
    server.stop(None).wait()


def test_unknown_trials_are_refused(chief, tmp_path):
    stub, search_oracle = chief
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
    assert not search_oracle.notes

    request = messages.CreateTrialRequest(tuner_id="worker-a")
    trial = stub.CreateTrial(request, timeout=20).trial
    with pytest.raises(grpc.RpcError, match=r"0000\.json"):  # the worker wrote no outcome
        stub.EndTrial(messages.EndTrialRequest(trial=trial), timeout=20)
    assert set(search_oracle.trials) == {"0000"}


def test_worker_refuses_a_trial_id_that_is_a_path(tmp_path, monkeypatch):
    class ForgedClient:
        def create_trial(self, tuner_id):
            return Trial(HyperParameters(), "../../elsewhere", TrialStatus.RUNNING)

    monkeypatch.setattr(service, "OracleClient", lambda _: ForgedClient())
    with pytest.raises(UserError, match="not a chief of tfft"):
        service.Client(tmp_path).create_trial("worker-a")
