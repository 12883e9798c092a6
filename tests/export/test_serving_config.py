"""The serving configuration parses, fits the model, and does not replace the user's files."""

import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tests.console import run_command
from tfft.export import models_config, serving_config, verify
from tfft.export.models_config import MARK, Config


def parse_config(text):
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse(text, config)
    (model,) = config.model_config_list.config
    return model


def write_config(path, config):
    serving_config._write_files(path.parent, {path.name: config.text("colours")})


def test_versions_and_labels(tmp_path):
    path = tmp_path / serving_config.CONFIG
    config = Config.read(path).after_export([1])
    write_config(path, config)
    first = parse_config(path.read_text())
    assert (first.name, first.base_path) == ("colours", "/models/colours")
    assert list(first.model_version_policy.specific.versions) == [1]
    assert dict(first.version_labels) == {"stable": 1}
    assert Config.read(path) == config
    third = config.after_export([1, 2, 3])
    assert third == Config([1, 3], {"stable": 1})
    write_config(path, third)
    path.write_text(path.read_text().replace('"stable" value: 1', '"stable" value: 3'))
    promoted = Config.read(path)
    assert promoted == Config([1, 3], {"stable": 3}, 1)
    assert promoted.after_export([1, 2, 3, 4]) == Config([1, 3, 4], {"stable": 3}, 1)
    path.write_text(path.read_text().replace("# When", "# "))  # without the history line
    assert Config.read(path) == promoted
    moved = config.after_export([2, 3])  # stable was deleted
    assert moved == Config([3], {"stable": 3})


@pytest.fixture(params=["grammar", "no grammar"])
def grammar(request, monkeypatch):
    """With and without tensorflow-serving-api."""
    if request.param == "no grammar":
        monkeypatch.setattr(models_config.importlib.util, "find_spec", lambda name: None)
    return request.param == "grammar"


PLAIN = Config([1, 3, 4], {"stable": 3, "canary": 4}, 1)
FORMS = [
    'version_labels { value: 4 key: "canary" }',
    "version_labels < key: 'canary', value:4 >",
    'version_labels: {\n key : "canary"\n value: 4\n}',
    'version_labels: [{ key: "canary" value: 4 }]',
]


@pytest.mark.parametrize("form", FORMS)
def test_edited_config_is_read_or_kept(tmp_path, grammar, form):
    """A config that cannot be read is not overwritten, so that no label is lost."""
    path = tmp_path / serving_config.CONFIG
    write_config(path, PLAIN)
    assert Config.read(path) == PLAIN
    text = path.read_text()
    edited = text.replace('version_labels { key: "canary" value: 4 }', form)
    assert edited != text
    path.write_text(f'{edited}# version_labels {{ key: "old" value: 9 }}\n')
    assert Config.read(path) == (PLAIN if grammar else None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("written by tfft export", "mine"),
        (
            "    model_platform",
            "    logging_config { log_collector_config { } }\n    model_platform",
        ),
        ("\n  }\n}\n", '\n  }\n  config { name: "other" base_path: "/models/other" }\n}\n'),
        ("specific {", "latest { num_versions: 2 } # {"),
        ("/models/colours", "/mnt/colours"),
        ("model_config_list {", "model_config_list {{"),
    ],
)
def test_config_with_other_settings_is_kept(tmp_path, grammar, exported, capsys, old, new):
    path = tmp_path / serving_config.CONFIG
    (tmp_path / "7").mkdir()
    write_config(path, PLAIN)
    edited = path.read_text().replace(old, new)
    if "latest" in new:
        edited = re.sub(r"# \{\n[^}]*\}\n", "\n", edited)
        assert parse_config(edited).model_version_policy.latest.num_versions == 2
    path.write_text(edited)
    serving_config.write(tmp_path, "colours", exported._servable)
    assert path.read_text() == edited
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("is not changed; add version 7 to it")
    readme = (tmp_path / "README.md").read_text()
    assert (
        "exports do not change it. Add version\n7 to its versions" in readme and "sed" not in readme
    )


def test_warmup_sizes_end_where_throughput_stops_growing():
    rates = {1: 100.0, 2: 190.0, 4: 350.0, 8: 500.0, 16: 540.0, 32: 545.0}
    assert serving_config.warm_up_sizes(rates) == [
        1,
        2,
        4,
        8,
    ]  # 16 and 32 raise the throughput by less than 10 %
    assert serving_config.warm_up_sizes({1: 100.0, 2: 90.0, 4: 80.0}) == [1]
    assert serving_config.warm_up_sizes({1: 10.0, 2: 10.5, 4: 30.0}) == [1, 2, 4]
    assert serving_config.SIZES == verify.SIZES


def test_compose_and_kubernetes_files_agree():
    (service,) = yaml.safe_load(serving_config.compose("colours"))["services"].values()
    deployment, load_balancer = yaml.safe_load_all(serving_config.kubernetes("colours"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert service["command"] == container["args"]
    assert "--model_config_file=/models/colours/models.config" in container["args"]
    assert service["volumes"] == [".:/models/colours:ro"]
    assert container["volumeMounts"][0]["mountPath"] == "/models/colours"
    assert {port["port"] for port in load_balancer["spec"]["ports"]} == {8500, 8501}
    pod_labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert (
        load_balancer["spec"]["selector"]
        == deployment["spec"]["selector"]["matchLabels"]
        == pod_labels
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [("My Run_2", "my-run-2"), ("---", "model"), ("评论", "model"), ("a" * 80, "a" * 50)],
)
def test_model_names(text, name):
    assert serving_config.model_name(text) == name


def test_foreign_files_are_kept(tmp_path, capsys):
    (tmp_path / "1").mkdir()
    (tmp_path / "README.md").write_text("# my own")
    serving_config._write_files(tmp_path, {"README.md": "ours", "models.config": "ours"})
    assert (tmp_path / "README.md").read_text() == "# my own"
    assert "was not written by tfft and is not changed" in capsys.readouterr().err
    serving_config._write_files(tmp_path, {"models.config": "newer"})
    assert "newer" in (tmp_path / "models.config").read_text()
    (tmp_path / "README.md").write_text(f"# my own\n\nIt was {MARK}.\n")
    serving_config._write_files(tmp_path, {"README.md": "ours"})
    assert "my own" in (tmp_path / "README.md").read_text()


def test_class_names_are_escaped_in_the_readme(exported):
    servable = replace(exported._servable, labels=["a", "<script>\n# Forged"])
    text = serving_config.readme("colours", servable, 1, Config([1], {"stable": 1}))
    assert "Labels: a, &lt;script&gt; \\# Forged.\n" in text
    assert "<script>" not in text and "\n# Forged" not in text


def test_docker_image_has_patch_number_zero(monkeypatch):
    for version in ("2.20.0", "2.21.0", "2.20.1", "2.21.0-rc1"):
        monkeypatch.setattr(serving_config.tf, "__version__", version)
        assert serving_config._docker_image() == f"tensorflow/serving:{version[:4]}.0"


def test_folder_without_a_run_is_a_one_line_error(tmp_path):
    code, _, err = run_command("export", f"--workdir={tmp_path}")
    assert code == 2 and "Traceback" not in err
    assert np.size(err.splitlines()) == 1
