"""What stands beside the versions: it parses, it fits the model, it leaves others' files alone."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tests.console import command
from tfft.export import kit, probe


def parsed(text):
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse(text, config)
    (one,) = config.model_config_list.config
    return one


def test_versions_and_labels(tmp_path):
    path = tmp_path / kit.CONFIG
    config = kit.Config.read(path).after_export([1])
    path.write_text(kit.models_config("colours", config))
    first = parsed(path.read_text())
    assert (first.name, first.base_path) == ("colours", "/models/colours")
    assert list(first.model_version_policy.specific.versions) == [1]
    assert dict(first.version_labels) == {"stable": 1}
    assert kit.Config.read(path) == config
    third = config.after_export([1, 2, 3])
    assert third == kit.Config([1, 3], {"stable": 1})
    promoted = kit.Config(third.versions, {"stable": 3})
    assert promoted.after_export([1, 2, 3, 4]) == kit.Config([1, 3, 4], {"stable": 3})
    gone = config.after_export([2, 3])  # stable was deleted
    assert gone == kit.Config([3], {"stable": 3})


def test_a_config_is_read_as_it_may_be_edited(tmp_path):
    path = tmp_path / kit.CONFIG
    path.write_text(
        '# written by tfft export\n# version_labels { key: "old" value: 9 }\n'
        "specific { versions: [1, 3]\nversions:4 }\n"
        "version_labels < key: 'stable', value:3 >\n"
        'version_labels: {\n key : "canary"\n value: 4\n}\n'
    )
    assert kit.Config.read(path) == kit.Config([1, 3, 4], {"stable": 3, "canary": 4})


def test_warm_up_batches_are_as_large_as_it_was_worth():
    rates = {1: 100.0, 2: 190.0, 4: 350.0, 8: 500.0, 16: 540.0, 32: 545.0}
    assert kit.warm_up_sizes(rates) == [1, 2, 4, 8]  # 16 and 32 answer hardly more a second
    assert kit.warm_up_sizes({1: 100.0, 2: 90.0, 4: 80.0}) == [1]
    assert kit.warm_up_sizes({1: 10.0, 2: 10.5, 4: 30.0}) == [1, 2, 4]
    assert kit.SIZES == probe.SIZES


def test_containers_read_what_is_there():
    (service,) = yaml.safe_load(kit.compose("colours"))["services"].values()
    deployment, balancer = yaml.safe_load_all(kit.kubernetes("colours"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert service["command"] == container["args"]
    assert "--model_config_file=/models/colours/models.config" in container["args"]
    assert service["volumes"] == [".:/models/colours:ro"]
    assert container["volumeMounts"][0]["mountPath"] == "/models/colours"
    assert {port["port"] for port in balancer["spec"]["ports"]} == {8500, 8501}
    selected = deployment["spec"]["template"]["metadata"]["labels"]
    assert balancer["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == selected


@pytest.mark.parametrize(
    ("text", "name"),
    [("My Run_2", "my-run-2"), ("---", "model"), ("评论", "model"), ("a" * 80, "a" * 50)],
)
def test_names(text, name):
    assert kit.model_name(text) == name


def test_others_files_stay(tmp_path, capsys):
    (tmp_path / "1").mkdir()
    (tmp_path / "README.md").write_text("# my own")
    kit._put(tmp_path, {"README.md": "ours", "models.config": "ours"})
    assert (tmp_path / "README.md").read_text() == "# my own"
    assert "is not tfft's and stays as it is" in capsys.readouterr().err
    kit._put(tmp_path, {"models.config": "newer"})
    assert "newer" in (tmp_path / "models.config").read_text()


def test_hostile_class_names_in_the_readme(exported):
    servable = replace(exported._servable, labels=["a", "<script>\n# Forged"])
    text = kit.readme("colours", servable, kit.Config([1], {"stable": 1}))
    assert "Classes: a, &lt;script&gt; \\# Forged.\n" in text
    assert "<script>" not in text and "\n# Forged" not in text


def test_the_image_is_one_that_there_is(monkeypatch):
    for version in ("2.20.0", "2.21.0", "2.20.1", "2.21.0-rc1"):
        monkeypatch.setattr(kit.tf, "__version__", version)
        assert kit._image() == f"tensorflow/serving:{version[:4]}.0"


def test_a_folder_without_a_run_is_a_line(tmp_path):
    code, _, err = command("export", f"--workdir={tmp_path}")
    assert code == 2 and "Traceback" not in err
    assert np.size(err.splitlines()) == 1
