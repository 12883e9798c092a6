"""Broken or hostile checkpoints: a one-line error, no code run, no other file read."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import GOLDEN
from tfft import backbones
from tfft.config import ModelConfig
from tfft.preprocess import TextInputs, kerashub, tokenizer
from tfft.utils.errors import UserError
from tfft.utils.reading import regular_file

HUGE = "1" * 5000  # Python limits the digits of an integer literal
DEEP = "[" * 100_000


def link_checkpoint(name: str, folder: Path, **changes) -> Path:
    """Link a golden checkpoint with a changed config.json."""
    source = next(p for p in (GOLDEN / "encoders" / name, GOLDEN / "vision" / name) if p.is_dir())
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    settings = {**json.loads((source / "config.json").read_text()), **changes}
    return write_file(folder, "config.json", json.dumps(settings))


def write_file(folder: Path, name: str, content: str | bytes) -> Path:
    """Write a file that replaces the link of its name."""
    (folder / name).unlink(missing_ok=True)
    data = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(data)
    return folder


def check_refused(load, *fragments: str) -> None:
    with pytest.raises(UserError) as error:
        load()
    message = str(error.value)
    assert "\n" not in message and len(message) < 600
    message.encode()  # no lone surrogates, so it can be printed
    for fragment in fragments:
        assert fragment in message


def load(folder, provider="hf", **settings):
    return backbones.load(ModelConfig(backbone=f"{provider}:{folder}", **settings))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("bert", "num_hidden_layers", 1e308, "a whole number from 1 to 1000"),
        ("bert", "num_hidden_layers", 0, "from 1 to 1000"),
        ("bert", "num_hidden_layers", 1.5, "a whole number"),
        ("bert", "num_hidden_layers", float("nan"), "from 1 to 1000. Received: nan"),
        ("bert", "num_hidden_layers", True, "must be a number"),
        ("bert", "num_hidden_layers", [[1] * 10_000], "must be a number"),
        ("bert", "num_hidden_layers", 999, "lacks 'encoder.layer.2"),
        ("bert", "num_attention_heads", 0, "from 1 to"),
        ("bert", "hidden_size", -4, "from 1 to"),
        ("bert", "hidden_size", 60_000, "numbers where config.json requires"),
        ("bert", "vocab_size", 4_000_000, "vocab_size must be a whole number from 1 to 1048576"),
        ("bert", "vocab_size", 1_000_000, "numbers where config.json requires"),
        ("bert", "intermediate_size", 1 << 18, "numbers where config.json requires"),
        ("bert", "max_position_embeddings", 1 << 20, "numbers where config.json requires"),
        ("bert", "hidden_dropout_prob", 1.0, "hidden_dropout_prob must be from 0 to 0.999"),
        ("bert", "layer_norm_eps", "1e-12", "layer_norm_eps must be a number"),
        ("bert", "hidden_act", {"name": "gelu"}, "unknown activation"),
        ("bert", "model_type", ["bert"], "is not supported"),
        ("bert", "model_type", "\ud800", "not valid JSON"),
        ("roberta", "pad_token_id", 1000, "max_position_embeddings must exceed"),
        ("albert", "num_hidden_groups", 900, "num_hidden_groups must be 1 to"),
        ("albert", "embedding_size", 60_000, "numbers where config.json requires"),
        ("distilbert", "n_layers", -1, "n_layers must be a whole number"),
        ("vit", "patch_size", 0, "patch_size must be a whole number from 1"),
        ("vit", "patch_size", 4096, "holds no patch"),
        ("vit", "image_size", 4096, "numbers where config.json requires"),
        ("vit", "qkv_bias", "false", "qkv_bias must be true or false"),
        ("dinov2", "mlp_ratio", 1e308, "mlp_ratio must be a whole number"),
        ("swin", "depths", [], "depths must be a list of 1 to 8 numbers"),
        ("swin", "depths", [1] * 900, "depths must be a list of 1 to 8 numbers"),
        ("swin", "num_heads", "many", "num_heads must be a list"),
        ("swin", "window_size", 32, "numbers where config.json requires"),
        ("convnext", "hidden_sizes", [60_000] * 2, "numbers where config.json requires"),
        ("resnet", "hidden_sizes", [3, 16], "hidden_sizes must be at least 4"),
        ("resnet", "depths", [1, 1, 1, 0], "depths must be a whole number from 1"),
        ("mobilenet_v2", "depth_multiplier", 1e308, "depth_multiplier must be from 0.01 to 16"),
        ("mobilenet_v2", "depth_multiplier", 16, "holds"),
        ("mobilenet_v2", "output_stride", -8, "output_stride must be"),
    ],
)
def test_invalid_config_values_are_refused(name, key, value, words, tmp_path):
    check_refused(lambda: load(link_checkpoint(name, tmp_path, **{key: value})), words)


@pytest.mark.parametrize("value", [["zero"], {"0": "zero"}])
def test_invalid_labels_are_refused(value, tmp_path):
    folder = link_checkpoint("bert_classifier", tmp_path, id2label=value)
    check_refused(lambda: load(folder, head="checkpoint"), "id2label")


BROKEN = {
    "deep": DEEP,
    "digits": '{"num_hidden_layers": ' + HUGE + "}",
    "surrogate": '{"model_type": "\\ud800"}',
    "not UTF-8": b'{"a": "\xff"}',
    "cut": '{"model_type": "be',
    "list": "[]",
}


def make_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("broken", [*BROKEN, "fifo", "directory", "device"])
def test_broken_json_files_are_refused(name, broken, tmp_path):
    folder = link_checkpoint("vit", tmp_path)
    path = folder / name
    path.unlink(missing_ok=True)
    if broken == "fifo":
        make_fifo(path)
    elif broken == "device":
        path.symlink_to("/dev/zero")
    elif broken == "directory":
        path.mkdir()
    else:
        write_file(folder, name, BROKEN[broken])
    check_refused(lambda: load(folder), name)


def test_regular_file_checks_size_and_path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert regular_file(path, 5) == path
    check_refused(lambda: regular_file(path, 4), "has 5 bytes; at most 4 are read")
    check_refused(lambda: regular_file(tmp_path / "none", 4), "No such file")
    check_refused(lambda: regular_file(Path("a\0b"), 4), "cannot be read")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", {"height": -1, "width": 8}),
        ("size", 1e308),
        ("size", [1, 2, 3]),
        ("size", {"shortest_edge": 10**9}),
        ("resample", [2]),
        ("rescale_factor", "one"),
        ("rescale_factor", float("inf")),
        ("image_mean", [0.5, "a", 0.5]),
        ("image_mean", 10**400),
        ("image_std", [0, 0, 0]),
        ("crop_size", {"height": 10**6}),
        ("do_resize", False),
    ],
)
def test_invalid_preprocessing_is_refused(key, value, tmp_path):
    folder = link_checkpoint("vit", tmp_path)
    settings = {"size": 8, "do_center_crop": key == "crop_size", key: value}
    write_file(folder, "preprocessor_config.json", json.dumps(settings))
    check_refused(lambda: load(folder), "preprocessor_config.json", key)


@pytest.mark.parametrize(
    "index",
    [
        [],
        {},
        {"weight_map": []},
        {"weight_map": {}},
        {"weight_map": {"a": 5}},
        {"weight_map": {"a": {}}},
        {"weight_map": {"a": ".."}},
        {"weight_map": {"a": "../model.safetensors"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": "none.safetensors"}},
        {"weight_map": {"a": "\0"}},
    ],
)
def test_invalid_weight_indices_are_refused(index, tmp_path):
    folder = link_checkpoint("bert", tmp_path)
    (folder / "model.safetensors").unlink()
    write_file(folder, "model.safetensors.index.json", json.dumps(index))
    check_refused(lambda: load(folder), str(folder))


def safetensors_file(header: dict, data: bytes) -> bytes:
    """Return the content of a safetensors file."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def weights_with_token_table(dtype: str, shape: list[int], size: int) -> bytes:
    """Return the golden BERT's safetensors file with another token table, of `size` zero bytes."""
    header, body = {}, b""
    for name, array in load_file(GOLDEN / "encoders" / "bert" / "model.safetensors").items():
        entry, part = {"dtype": "F32", "shape": list(array.shape)}, array.tobytes()
        if name.endswith("word_embeddings.weight"):
            entry, part = {"dtype": dtype, "shape": shape}, b"\0" * size
        header[name] = {**entry, "data_offsets": [len(body), len(body) + len(part)]}
        body += part
    return safetensors_file(header, body)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["bert", "vit"])
@pytest.mark.parametrize("broken", ["empty", "cut", "header", "length", "fifo", "other"])
def test_broken_weight_files_are_refused(name, broken, tmp_path):
    folder = link_checkpoint(name, tmp_path)
    valid = (folder / "model.safetensors").read_bytes()
    if broken == "fifo":
        make_fifo(folder / "model.safetensors")
    else:
        content = {
            "empty": b"",
            "cut": valid[:-7],
            "header": valid[:100],
            "length": struct.pack("<Q", 2**63) + valid[8:],
            "other": safetensors_file(
                {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"1234"
            ),
        }
        write_file(folder, "model.safetensors", content[broken])
    check_refused(lambda: load(folder), "model.safetensors")


@pytest.mark.parametrize(
    ("dtype", "shape", "size", "words"),
    [
        ("F8_E4M3", None, 1, "must be one of F64, F32, F16, BF16. Received: F8_E4M3"),
        ("I64", None, 8, "Received: I64"),
        ("F32", [1, 2], 8, "where config.json requires"),
        ("F32", [10**6], 4 * 10**6, "is [1000000] where config.json requires"),
    ],
)
def test_unexpected_dtype_or_shape_is_refused(dtype, shape, size, words, tmp_path):
    folder = link_checkpoint("bert", tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    if shape is None:
        shape = [settings["vocab_size"], settings["hidden_size"]]
        size *= shape[0] * shape[1]
    write_file(folder, "model.safetensors", weights_with_token_table(dtype, shape, size))
    check_refused(lambda: load(folder), words)


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]


def description(**changes) -> dict:
    """Return the content of tokenizer.json, with changes to its model."""
    spec = json.loads(tokenizer.wordpiece_tokenizer_json(VOCABULARY, "here"))
    spec["model"] |= changes
    return spec


TOKENIZERS = {
    "list": {"tokenizer.json": "[]"},
    "cut": {"tokenizer.json": json.dumps(description())[:200]},
    "no model": {"tokenizer.json": "{}"},
    "deep": {"tokenizer.json": DEEP},
    "digits": {"tokenizer.json": HUGE},
    "not UTF-8": {"tokenizer.json": b"\xff\xfe"},
    "surrogate": {"tokenizer.json": '{"model": {"vocab": {"\\ud800": 1}}}'},
    "high id": {"tokenizer.json": json.dumps(description(vocab={"[UNK]": 0, "a": 2**31}))},
    "vocabulary of numbers": {"tokenizer.json": json.dumps(description(vocab={"a": "one"}))},
    "bad config": {
        "tokenizer.json": json.dumps(description()),
        "tokenizer_config.json": '{"tokenizer_class": 5, "auto_map": 7}',
    },
    "merges": {"vocab.json": '{"a": 0}', "merges.txt": "#version\na\nb c d e\n"},
    "vocab.json": {"vocab.json": "[1, 2]", "merges.txt": ""},
    "vocab.txt": {"vocab.txt": b"[UNK]\n\xff\xfe\n"},
    "spiece": {"spiece.model": b"\x0a\xff\xff\xff\xff\x0f"},
    "fifo": {},
    "large": {},
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("broken", TOKENIZERS)
def test_broken_tokenizer_files_are_refused(broken, tmp_path):
    kind = {"merges": "roberta", "vocab.json": "roberta", "spiece": "albert"}.get(broken, "bert")
    link_checkpoint(kind, tmp_path)
    for name, content in TOKENIZERS[broken].items():
        write_file(tmp_path, name, content)
    if broken == "fifo":
        make_fifo(tmp_path / "tokenizer.json")
    elif broken == "large":
        os.truncate(write_file(tmp_path, "tokenizer.json", "") / "tokenizer.json", (64 << 20) + 1)
    check_refused(lambda: tokenizer.from_checkpoint(str(tmp_path)), str(tmp_path))


def test_unrelated_files_beside_a_tokenizer_are_not_read(tmp_path):
    link_checkpoint("bert", tmp_path)
    write_file(tmp_path, "tokenizer.json", json.dumps(description()))
    for name in ("train.txt", "trainer_state.json"):
        os.truncate(write_file(tmp_path, name, "") / name, 1 << 30)
    (tmp_path / "rows.json").symlink_to(tmp_path / "none")
    assert tokenizer.from_checkpoint(str(tmp_path))
    make_fifo(tmp_path / "other.json")
    check_refused(lambda: tokenizer.from_checkpoint(str(tmp_path)), "other.json: is a FIFO")


@pytest.mark.parametrize(
    "model", [{"unk_token": "[NONE]"}, {"vocab": {}}, {"vocab": {"[UNK]": 0, "a": 1 << 22}}]
)
def test_invalid_tokenizer_descriptions_are_refused(model):
    """A tokenizer that cannot encode all texts is refused before any text is read."""
    spec = {**description(**model), "added_tokens": [], "post_processor": None}
    check_refused(lambda: TextInputs(json.dumps(spec), 16), "tokenizer.json: the tokenizer")


def test_tokenizer_without_an_in_graph_form_is_refused():
    """tensorflow-text supports no piece longer than 256 bytes."""
    model = {"vocab": {"[UNK]": 0, "x" * 300: 1}}
    spec = {**description(**model), "added_tokens": [], "post_processor": None}
    check_refused(TextInputs(json.dumps(spec), 16).graph, "tokenizer: it has no in-graph form")


def test_vocabulary_size_counts_gaps_in_the_ids():
    spec = {**description(vocab={"[UNK]": 0, "a": 9}), "added_tokens": [], "post_processor": None}
    assert TextInputs(json.dumps(spec), 16).vocabulary_size == 10


@pytest.mark.parametrize("named_in", ["config.json", "tokenizer_config.json"])
def test_code_of_a_checkpoint_is_never_run_or_offered(named_in, tmp_path, monkeypatch):
    """config.json may redirect to another file, which names code."""
    marker = tmp_path / "marker"
    code = {"AutoConfig": "code_of_it.Config", "AutoTokenizer": ["code_of_it.T", "code_of_it.T"]}
    files = {
        "config.json": {"model_type": "bert", "configuration_files": ["config.4.0.0.json"]},
        "config.4.0.0.json": {"model_type": "unheard-of", "auto_map": code},
        "tokenizer_config.json": {},
        "tokenizer.json": description(),
    }
    if named_in == "tokenizer_config.json":
        files |= {"config.json": {"model_type": "unheard-of"}, named_in: {"auto_map": code}}
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    (tmp_path / "code_of_it.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\n")
    prompts = []
    monkeypatch.setattr("builtins.input", lambda *text: prompts.append(text) or "y")
    try:
        tokenizer.from_checkpoint(str(tmp_path))
    except UserError as error:
        assert "\n" not in str(error)
    assert not prompts and not marker.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": 5}, "names no timm architecture"),
        ({"registered_name": "keras_hub>BertBackbone"}, "names no timm architecture"),
        ({"pretrained_cfg": [1]}, "pretrained_cfg must be an object"),
        ({"pretrained_cfg": {"input_size": [3, 1e308, 8]}}, "input_size"),
        ({"pretrained_cfg": {"std": [0, 1, 1]}}, "std must be"),
        ({"pretrained_cfg": {"crop_pct": "nan"}}, "crop_pct must be a number"),
    ],
)
def test_invalid_timm_config_is_refused(changes, words, tmp_path, monkeypatch):
    import keras_hub

    from tfft.backbones import timm

    # The config is checked after KerasHub has loaded a model, which is not needed here.
    monkeypatch.setattr(keras_hub.models.Backbone, "from_preset", lambda *_, **__: None)
    save_file({"a": np.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", **changes}))
    check_refused(lambda: timm.load(ModelConfig(backbone=f"timm:{tmp_path}"), "float32"), words)


def test_redundant_weight_index_is_checked(tmp_path):
    """KerasHub reads the index even if there is a model.safetensors."""
    save_file({"a": np.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    index = {"weight_map": {"conv1.weight": "../other.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    check_refused(lambda: load(tmp_path, "timm"), "weight_map must list names of files beside it")


BERT = {
    "module": "keras_hub.src.models.bert.bert_backbone",
    "class_name": "BertBackbone",
    "registered_name": "keras_hub>BertBackbone",
    "config": {
        "vocabulary_size": 8,
        "num_layers": 1,
        "num_heads": 1,
        "hidden_dim": 4,
        "intermediate_dim": 4,
    },
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", {"num_layers": 1e308}, "num_layers must not exceed 1,000"),
        ("config.json", {"num_layers": 4000}, "num_layers must not exceed 1,000"),
        ("config.json", {"hidden_dim": 10**9}, "hidden_dim must not exceed"),
        ("config.json", {"hidden_dim": 60_000}, "parameters, but the weights have"),
        ("config.json", {"vocabulary_size": 4_000_000}, "requires at least"),
        ("config.json", {"num_heads": "two"}, "cannot be loaded"),
        ("config.json", 5, "config must be an object"),
        ("tokenizer.json", {"config": {"vocabulary": "/etc/passwd"}}, "must not name a file"),
        ("tokenizer.json", {"config": {"a": [{"proto": "x"}]}}, "must not name a file"),
        ("model.weights.json", {"weight_map": {"a": ["../x.h5"]}}, "names of files beside it"),
        ("model.safetensors.index.json", {"weight_map": [1]}, "weight_map must be an object"),
        ("image_converter.json", {"config": {"proto": "x"}}, "must not name a file"),
        ("model.weights.h5", None, "not a regular file"),
    ],
)
def test_invalid_kerashub_presets_are_refused(name, content, words, tmp_path):
    if "index" in name:  # a checkpoint that KerasHub converts
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    else:
        (tmp_path / "config.json").write_text(json.dumps(BERT))
    if name.startswith(("config", "tokenizer")):
        (tmp_path / "model.weights.h5").write_bytes(b"x" * 100)
    if content is None:
        make_fifo(tmp_path / name)
    elif name == "config.json":
        config = {**BERT["config"], **content} if isinstance(content, dict) else content
        (tmp_path / name).write_text(json.dumps({**BERT, "config": config}))
    else:
        (tmp_path / name).write_text(json.dumps(content))
    if name == "tokenizer.json":
        check_refused(lambda: kerashub.tokenizer_spec(str(tmp_path)), words)
    elif name == "image_converter.json":
        check_refused(lambda: kerashub.read_settings(str(tmp_path), name, optional=True), words)
    else:
        check_refused(lambda: load(tmp_path, "kerashub"), words)


def test_irregular_weight_file_for_keras_applications_is_refused(tmp_path):
    make_fifo(tmp_path / "a.weights.h5")
    weights = str(tmp_path / "a.weights.h5")
    check_refused(
        lambda: backbones.load(ModelConfig(backbone="keras:MobileNet", weights=weights)),
        "not a regular file",
    )
