"""The serving configuration works by the rules of TF Serving.

Series of exports with any measured throughput, with promotion, rollback, missed configs and
restarts between them.
"""

import random
import re
import shutil
import subprocess

import numpy as np
import pytest
from tensorflow.core.protobuf import saved_model_pb2

from tests.export.serving_rules import Batching, RequestRejected, Server
from tfft.export import serving_config, warmup_requests
from tfft.export.models_config import Config

ROWS = [("a red sky",), ("green",), ("the blue grass is like an apple",)]


class Exports:
    """A series of exports without SavedModels."""

    def __init__(self, folder, servable, seed):
        self.folder, self.servable, self.random = folder, servable, random.Random(seed)
        folder.mkdir()
        self.newest = 0

    def export(self):
        self.newest += 1
        version = self.folder / str(self.newest)
        version.mkdir()
        # Any measurement: some of the sizes, with random rates.
        sizes = serving_config.SIZES[: self.random.randint(1, len(serving_config.SIZES))]
        rates = {size: self.random.uniform(1, 100) for size in (*sizes, 64)}
        warmup_requests.write(version, self.servable, ROWS, serving_config.warm_up_sizes(rates))
        serving_config.write(self.folder, "colours", self.servable)
        return self.newest

    def commands(self):
        """Return the commands of the README that promote a version and roll back."""
        text = (self.folder / "README.md").read_text()
        (section,) = re.findall(r"## Promote and roll back\n(.*?)\n## ", text, re.DOTALL)
        check, promote, roll_back = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
        assert f"/versions/{self.newest} " in check
        return promote, roll_back

    def run_command(self, command):
        subprocess.run(["bash", "-ec", command], cwd=self.folder, check=True)


@pytest.fixture
def exports(exported, tmp_path, request):
    return Exports(tmp_path / "export", exported._servable, request.param)


@pytest.mark.parametrize("exports", range(3), indirect=True)
def test_ten_exports_with_promotion_and_rollback(exports):
    """After each step the server accepts the config and serves the newest and stable versions."""
    stable = exports.export()
    server = Server(exports.folder)
    batching = (exports.folder / serving_config.BATCHING).read_text()
    assert server.find("stable") == server.find() == 1
    for _ in range(9):
        newest = exports.export()
        assert (exports.folder / serving_config.BATCHING).read_text() == batching
        if exports.random.random() < 0.3:  # the next export precedes the server's next poll
            newest = exports.export()
        server = Server(exports.folder) if exports.random.random() < 0.3 else server
        server.reload()
        assert not server.failed
        assert server.find() == server.find(version=newest) == newest
        assert server.find("stable") == stable
        promote, roll_back = exports.commands()
        if exports.random.random() < 0.7:
            exports.run_command(promote)
            server.reload()
            assert server.find("stable") == newest
            if exports.random.random() < 0.5:
                server = Server(exports.folder)
                assert server.find("stable") == newest
            if exports.random.random() < 0.5:
                exports.run_command(roll_back)
                server.reload()
                assert server.find("stable") == stable
            else:
                stable = newest
        assert len(server.loaded) <= 3


@pytest.mark.parametrize("exports", [0], indirect=True)
def test_rollback_after_later_exports(exports):
    for _ in range(2):
        exports.export()
    server = Server(exports.folder)
    exports.run_command(exports.commands()[0])
    server.reload()
    for _ in range(3):
        exports.export()
        server.reload()
    assert server.loaded == {1, 2, 5} and server.find("stable") == 2
    exports.run_command("""sed -i 's/"stable" value: 2/"stable" value: 1/' models.config""")
    server.reload()
    assert server.find("stable") == 1


@pytest.mark.parametrize("exports", [0], indirect=True)
def test_user_labels_are_kept(exports):
    """A label added as README.md says stays at its version."""
    for _ in range(2):
        exports.export()
    server = Server(exports.folder)
    (line,) = re.findall(r"`(version_labels .*)`", (exports.folder / "README.md").read_text())
    exports.run_command(f"sed -i '/\"stable\"/a {line}' models.config")
    server.reload()
    for _ in range(3):
        exports.export()
        server.reload()
    assert (server.find("canary"), server.find("stable"), server.find()) == (2, 1, 5)


@pytest.mark.parametrize("exports", [0], indirect=True)
def test_rollback_with_a_canary_label(exports):
    """The former version of `stable` stays loaded, although another one is nearer to it."""
    for _ in range(3):
        exports.export()
    path = exports.folder / serving_config.CONFIG
    config = Config([1, 2, 3], {"stable": 1, "canary": 2})
    path.write_text(f"# {serving_config.MARK}\n{config.text('colours')}")
    server = Server(exports.folder)
    promote, roll_back = exports.commands()
    for command in (promote, 'sed -i \'s/"canary" value: 2/"canary" value: 3/\' models.config'):
        exports.run_command(command)
        server.reload()
    for _ in range(2):
        exports.export()
        server.reload()
        assert {1, 3} < server.loaded
    exports.run_command(roll_back)
    server.reload()
    assert server.find("stable") == 1
    exports.export()
    assert Config.read(path).former == 3


@pytest.mark.parametrize("exports", [0], indirect=True)
def test_label_of_a_deleted_version_moves(exports, capsys):
    for _ in range(2):
        exports.export()
    server = Server(exports.folder)
    shutil.rmtree(exports.folder / "1")
    exports.export()
    server.reload()
    assert server.find("stable") == 2 and server.find() == 3
    assert (
        "version 1 of the label stable was deleted; the label is now at version 2"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("exports", [0], indirect=True)
def test_label_of_a_deleted_version_on_a_server_that_missed_a_config(exports, capsys):
    exports.export()
    server = Server(exports.folder)
    exports.export()  # the server does not poll
    shutil.rmtree(exports.folder / "1")
    exports.export()
    with pytest.raises(RequestRejected, match="label stable to version 2, which is not"):
        server.reload()
    assert "Restart a server that has not loaded that version" in capsys.readouterr().err
    assert Server(exports.folder).find("stable") == 2


@pytest.mark.parametrize("exports", [0], indirect=True)
def test_label_moved_too_early_is_rejected_until_the_version_is_loaded(exports):
    exports.export()
    server = Server(exports.folder)
    exports.export()
    promote, roll_back = exports.commands()
    exports.run_command(promote)  # before the server's next poll
    for _ in range(2):
        with pytest.raises(RequestRejected, match="label stable to version 2, which is not"):
            server.reload()
        assert server.find("stable") == 1
    for command, version in ((roll_back, 1), (promote, 2)):  # as README.md says
        exports.run_command(command)
        server.reload()
        assert server.find("stable") == version


@pytest.mark.parametrize("exports", [0], indirect=True)
def test_requests_of_any_size_and_concurrent_requests(exports, exported):
    exports.export()
    server = Server(exports.folder)
    for rows in (1, 3, 33, serving_config.MAX_ROWS):
        server.answer({"text": (rows,)})
    server.answer(*[{"text": (serving_config.MAX_ROWS,)}] * serving_config.MAX_QUEUED_REQUESTS)
    with pytest.raises(RequestRejected, match="larger than maximum"):
        server.answer({"text": (serving_config.MAX_ROWS + 1,)})
    for inputs in input_shapes(exported.workdir / "export" / "1").values():
        # Clients that follow the signature can differ where an axis is not static.
        server.answer(*[client_shapes(inputs, np.random.default_rng(seed)) for seed in range(3)])


def input_shapes(version):
    """Return the input shapes of each signature in the SavedModel."""
    saved = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    return {
        name: {
            key: tuple(dim.size for dim in value.tensor_shape.dim)
            for key, value in signature.inputs.items()
        }
        for name, signature in saved.meta_graphs[0].signature_def.items()
        if not name.startswith("__")
    }


def client_shapes(inputs, generator):
    rows, width = generator.integers(1, 4), generator.integers(1, 99)
    return {
        name: (rows, *(width if size < 0 else size for size in shape[1:]))
        for name, shape in inputs.items()
    }


def test_rules_reject_invalid_setups(tmp_path, exported):
    """Labels moved by an export, batch sizes from measurements, rows of different lengths."""
    exports = Exports(tmp_path / "export", exported._servable, 0)
    for _ in range(3):
        exports.export()
    config = Config([1, 2], {"stable": 1, "canary": 2})
    path = exports.folder / serving_config.CONFIG
    path.write_text(config.text("colours"))
    batching = "max_batch_size { value: 8 }\nallowed_batch_sizes: 1\nallowed_batch_sizes: 8\n"
    (exports.folder / serving_config.BATCHING).write_text(batching)
    warmup_requests.write(exports.folder / "2", exported._servable, ROWS, [32])
    for version in "13":
        warmup_requests.write(exports.folder / version, exported._servable, ROWS, [8])
    server = Server(exports.folder)
    assert server.loaded == {1}
    assert "Task size 32 is larger than maximum input batch size 8" in server.failed[2]
    path.write_text(Config([1, 3], {"stable": 1, "canary": 3}).text("colours"))
    with pytest.raises(RequestRejected, match="label canary to version 3"):
        server.reload()
    assert server.loaded == {1}
    with pytest.raises(RequestRejected, match="Task size 9"):
        server.answer({"text": (9,)})
    with pytest.raises(RequestRejected, match="different shapes"):
        server.answer({"token_ids": (1, 5)}, {"token_ids": (1, 7)})
    with pytest.raises(RequestRejected, match="last entry"):
        Batching.parse("max_batch_size { value: 8 }\nallowed_batch_sizes: 4\n")
