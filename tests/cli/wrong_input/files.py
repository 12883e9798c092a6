"""Wrong inputs by kind, each with a part of the line that refuses it; each has one mistake."""

import contextlib
import io
import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
import yaml

from tests.conftest import GOLDEN, whole_config, write_tiny
from tfft.config import dump, parse
from tfft.training import setup

DEEP = "[" * 100_000
DIGITS = "9" * 5000

# --- configs: name -> (text, part of the error) ---

MULTIPLYING = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
)
CONFIGS = {
    "unclosed": ("data: [", "yaml/unclosed.yaml:1:8: not valid YAML"),
    "tab": ("data:\n\ttrain: a.csv", "yaml/tab.yaml:2:1: not valid YAML"),
    "empty": ("", "must hold sections"),
    "list": ("- data", "must hold sections"),
    "not-utf-8": (b"data: {train: caf\xe9.csv}", "not UTF-8 text"),
    "control-character": ("data: \x01", "special characters are not allowed"),
    "key-twice": ("data: {}\ndata: {}", "key 'data' is here twice"),
    "key-list": ("? [a]\n: b", "not a plain value"),
    "python-tag": ("!!python/object/apply:os.system [echo]", "not valid YAML"),
    "int-tag": ('data: !!int "abc"', "'abc' is not a valid int"),
    "timestamp-tag": ("data: !!timestamp 2020-01-01", "could not determine a constructor"),
    "binary-tag": ("data: !!binary aGk=", "could not determine a constructor"),
    "set-tag": ("data: !!set {a, b}", "could not determine a constructor"),
    "digits": (f"data: {DIGITS}", "is not a valid int"),
    "own-alias": ("&a [*a]", "an alias contains itself"),
    "unknown-alias": ("data: *none", "found undefined alias"),
    "multiplying-aliases": (MULTIPLYING, "more than 1,048,576 values"),
    "surrogate": ('data: "\\ud800"', "a text holds a lone surrogate"),
    "deep": ("data: " + "[" * 500, "nested too deep"),
    "deep-but-valid": ("data: " + "{a: " * 100 + "1" + "}" * 100, "nested more than 50 deep"),
    "long": ("#" * (16 << 20) + "\n", "has 16,777,217 bytes; at most 16,777,216 are read"),
    "two-documents": ("data: {}\n---\ndata: {}", "found another document"),
}

# --- values in place of those of the valid config: name -> (--set, part of the error) ---

VALUES = {
    "unknown section": ("trian={}", "trian: unknown key; did you mean 'train'?"),
    "unknown key": ("train.epoch=3", "train.epoch: unknown key; did you mean 'epochs'?"),
    "section that is a number": ("train=3", "train: "),
    "text for a number": ("train.epochs=three", "train.epochs: "),
    "hexadecimal digits": ("data=0x" + "f" * 5000, "an integer of thousands of digits"),
    "date for a number": ("train.epochs=2020-01-01", "train.epochs: "),
    "zero": ("train.batch_size=0", "should be greater than or equal to 1. Received: 0"),
    "huge number": ("train.epochs=1099511627776", "must be an integer below"),
    "infinite number": ("optimizer.learning_rate=.inf", "optimizer.learning_rate: input should"),
    "not a number": ("optimizer.learning_rate=.nan", "optimizer.learning_rate: "),
    "duration of digits": ("optimizer.warmup=" + "9" * 400 + " steps", "must be below"),
    "unknown method": ("method.name=fulll", "Received: 'fulll'; did you mean 'full'?"),
    "unknown provider": ("model.backbone=hff:tiny", "model.backbone: "),
    "unknown format": ("data.train=data.bin", "cannot tell the format from the name"),
    "override without value": ("train.epochs", "--set: must be section.key=value"),
    "override of a text": ("model.backbone.name=x", "model.backbone holds 'hf:tiny', not keys"),
    "override that is no YAML": ("train.epochs=[", "not valid YAML"),
    "search space": ("train.epochs={search: int, min: 1, max: 3}", "which needs tfft tune"),
    "columns of two kinds": ("data.text=0", "columns must be all names or all numbers"),
    "images for texts": ("data.train=images/", "is for images"),
    "one label": ("data.labels=[red]", "`labels` must be at least two names"),
    "labels alike": ('data.labels=["red", "red "]', "`labels` must differ"),
    "mask of nothing": (
        "mask=[{match: blok_1}]",
        "mask: must match a stage or a variable. Received: 'blok_1'",
    ),
    "positions": ("data.max_length=4000", "the backbone has positions for 24 tokens"),
    "no such device": (
        "distribute={strategy: one_device, devices: ['GPU:7']}",
        "distribute.devices: no such device",
    ),
}

# --- tables: file name -> (content, part of the error) ---


def parquet_of(**columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def npz_of(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


HEADER = "text,label\n"
PARQUET = parquet_of(text=["sky", "grass"] * 50, label=["a", "b"] * 50)
PIXELS = np.zeros((2, 4, 4), np.uint8)
NPZ = npz_of(image=PIXELS, label=np.arange(2))
TABLES = {
    "empty.csv": ("", "empty.csv: empty; needs a header line"),
    "header.csv": (HEADER, "data.train: tables/header.csv holds no usable"),
    "column.csv": ("sentence,label\na,b\n", "column.csv:1: no column 'text' in the header"),
    "column-twice.csv": ("text,label,text\na,b,c\n", "column 'text' appears 2 times"),
    "ragged.csv": (f"{HEADER}a\n", "ragged.csv:2: 1 columns where 2 are expected"),
    "open-quote.csv": (f'{HEADER}"a,b\n', "open-quote.csv:2: unexpected end of data"),
    "latin-1.csv": (b"text,label\ncaf\xe9,b\n", "latin-1.csv:2: byte 0xe9 is not utf-8"),
    "utf-16.csv": (f"{HEADER}a,b\n".encode("utf-16"), "utf-16.csv:1: byte 0xff is not utf-8"),
    "blank-text.csv": (f"{HEADER} ,b\n", "blank-text.csv:2: column 'text' is empty"),
    "blank-label.csv": (f"{HEADER}a,\n", "blank-label.csv:2: column 'label' is empty"),
    "one-class.csv": (HEADER + "a,b\n" * 9, "at least two classes are needed; found ['b']"),
    "alike.csv": (f"{HEADER}a,pos\nb,neg\nc, pos\n", "alike.csv:4: label ' pos' differs"),
    "long-line.csv": (HEADER + "x" * (1 << 24), "a line of more than 16,777,216 characters"),
    "long-text.csv": (HEADER + "a " * (1 << 18) + "a,b", "at most 524,288 are read"),
    "ragged.tsv": ("text\tlabel\na\tb\tc\n", "ragged.tsv:2: 3 columns where 2 are expected"),
    "commas.tsv": (f"{HEADER}a,b\n", "commas.tsv:1: no column 'text' in the header"),
    "plain.txt": ("a text\nanother\n", "plain.txt:1: no column 'text' in the header"),
    "cut.jsonl": ('{"text": "a", "lab', "cut.jsonl:1: not valid JSON"),
    "list.jsonl": ("[1]\n", "list.jsonl:1: holds list, not an object"),
    "key.jsonl": ('{"text": "a", "lable": 1}', "no key 'label'; did you mean 'lable'?"),
    "key-twice.jsonl": ('{"text": "a", "label": 1, "text": "b"}', "an object has a key twice"),
    "null.jsonl": ('{"text": null, "label": 1}', "'text' is null; text or a number is expected"),
    "nan.jsonl": ('{"text": "a", "label": NaN}', "'label' is nan"),
    "deep.jsonl": (f'{{"text": {DEEP}', "not valid JSON (nested too deep)"),
    "digits.jsonl": (f'{{"text": "a", "label": {DIGITS}}}', "not valid JSON (Exceeds the limit"),
    "surrogate.jsonl": ('{"text": "\\ud800", "label": 1}', "'text' holds a lone surrogate"),
    "text.parquet": ("text,label\na,b\n", "text.parquet: not a parquet file"),
    "cut.parquet": (PARQUET[:-9], "cut.parquet: not a parquet file"),
    "column.parquet": (parquet_of(txt=["a"], label=["b"]), "no column 'text' in the header"),
    "null.parquet": (parquet_of(text=pa.nulls(1), label=["b"]), "row 1: 'text' is null"),
}
ARRAYS = {
    "text.npz": (b"no zip", "text.npz: not an npz file of plain arrays"),
    "cut.npz": (NPZ[:-30], "cut.npz: not an npz file of plain arrays"),
    "key.npz": (npz_of(x=PIXELS, label=np.arange(2)), "no column 'image' in the header"),
    "float.npz": (npz_of(image=PIXELS / 2, label=np.arange(2)), "image must be uint8"),
    "vectors.npz": (npz_of(image=PIXELS[0], label=np.arange(4)), "image must be [N, H, W]"),
    "objects.npz": (npz_of(image=PIXELS, label=np.array([{}, 1])), "label holds Python objects"),
}

# --- images: file name -> (content, or what it is; part of the error) ---

PNG = tf.io.encode_png(np.arange(3 * 32 * 32, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3))
PNG = PNG.numpy()
LARGE_PNG = PNG[:16] + struct.pack(">II", 1 << 17, 1 << 17) + PNG[24:]
IMAGES = {
    "zero.png": (b"", "zero.png: an empty file"),
    "text.jpg": (b"no image", "text.jpg: not an image of a known format"),
    "cut.png": (PNG[:60], "cut.png: broken, cut off"),
    "large.png": (LARGE_PNG, "large.png: its size is not between 1 and 33,554,432 pixels"),
    "fifo.png": ("fifo", "fifo.png: is a FIFO or a device, not a regular file"),
    "device.png": ("device", "device.png: is a FIFO or a device, not a regular file"),
    "loop.png": ("loop", "loop.png: cannot be read: Too many levels of symbolic links"),
}

# --- checkpoints: name -> ({file: content}, part of the error); None removes a file ---


def settings(**changes):
    whole = json.loads((GOLDEN / "encoders/bert/config.json").read_text())
    return json.dumps({**whole, "num_hidden_layers": 1, **changes})


TENSOR = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
OTHER_TENSOR = struct.pack("<Q", len(TENSOR)) + TENSOR + b"1234"
CHECKPOINTS = {
    "config-missing": ({"config.json": None}, "config.json: missing"),
    "config-cut": ({"config.json": '{"model_type": "be'}, "config.json: not valid JSON"),
    "config-list": ({"config.json": "[]"}, "config.json: must hold a JSON object"),
    "config-deep": ({"config.json": DEEP}, "config.json: not valid JSON"),
    "config-fifo": ({"config.json": "fifo"}, "config.json: is a FIFO or a device"),
    "config-folder": ({"config.json": "folder"}, "config.json: is a folder"),
    "type": ({"config.json": settings(model_type="bertt")}, "did you mean 'bert'?"),
    "layers": ({"config.json": settings(num_hidden_layers=1e308)}, "from 1 to 1000"),
    "width": ({"config.json": settings(hidden_size=60_000)}, "where config.json requires"),
    "heads": ({"config.json": settings(num_attention_heads="two")}, "must be a number"),
    "weights-missing": ({"model.safetensors": None}, "weights-missing"),
    "weights-cut": ({"model.safetensors": b"x" * 99}, "not a safetensors file"),
    "weights-header": ({"model.safetensors": struct.pack("<Q", 2**63)}, "model.safetensors"),
    "weights-other": ({"model.safetensors": OTHER_TENSOR}, "model.safetensors"),
    "weights-device": ({"model.safetensors": "device"}, "is a FIFO or a device"),
    "pickle": ({"model.safetensors": None, "pytorch_model.bin": b"x"}, "never reads"),
    "index-cut": (
        {"model.safetensors": None, "model.safetensors.index.json": '{"weight_'},
        "index.json: not valid JSON",
    ),
    "index-outside": (
        {
            "model.safetensors": None,
            "model.safetensors.index.json": '{"weight_map": {"a": "../tiny/model.safetensors"}}',
        },
        "must list names of files beside it",
    ),
    "index-part-missing": (
        {
            "model.safetensors": None,
            "model.safetensors.index.json": '{"weight_map": {"a": "part.safetensors"}}',
        },
        "part.safetensors",
    ),
}
TOKENIZERS = {
    "no-tokenizer": ({"vocab.txt": None}, "holds no tokenizer"),
    "vocab-not-utf-8": ({"vocab.txt": b"[UNK]\n\xff\n"}, "the tokenizer cannot be read"),
    "vocab-no-unknown": ({"vocab.txt": "[PAD]\n[CLS]\n[SEP]\na"}, "Missing [UNK] token"),
    "vocab-fifo": ({"vocab.txt": "fifo"}, "vocab.txt: is a FIFO or a device"),
    "tokenizer-cut": ({"tokenizer.json": '{"version": "1.'}, "tokenizer-cut: the tokenizer"),
    "tokenizer-deep": ({"tokenizer.json": DEEP}, "tokenizer-deep: the tokenizer"),
    "tokenizer-settings": ({"tokenizer_config.json": "[1"}, "tokenizer-settings: the tokenizer"),
    "merges": (
        {
            "config.json": '{"model_type": "roberta"}',
            "vocab.txt": None,
            "vocab.json": '{"a": 0}',
            "merges.txt": "#version\nb c d e\n",
        },
        "merges: the tokenizer cannot be",
    ),
}
OTHER_BACKBONES = {
    "hf:nowhere/is/none": "model.backbone: no such folder: nowhere/is/none",
    "hf:train.csv/x/y": "model.backbone: no such folder",
    "hub:tiny": "holds no SavedModel",
    "hub:saved/cut": "saved_model.pb cannot be read",
    "hub:saved/fifo": "saved_model.pb: is a FIFO or a device",
    "hub:saved/signatures": "not in TF2's reusable format",
    "hub:nowhere": "model.backbone: no such folder: nowhere",
    "keras:MobileNett": "did you mean 'MobileNet",
    "timm:tiny": "names no timm architecture",
    "kerashub:nowhere": "model.backbone: ",
}

# --- prepared TFDS sets: name -> ({file: content}, part of the error) ---

FEATURES = "tensorflow_datasets.core.features."
INFO = json.dumps({"name": "colours", "version": "1.0.0", "fileFormat": "tfrecord"})
TFDS = {
    "info-cut": ({"dataset_info.json": INFO[:30]}, "data.train.path: Dataset colours not found"),
    "features-cut": (
        {"dataset_info.json": INFO, "features.json": "{"},
        "TFDS cannot give colours",
    ),
    "features-of-another-module": (
        {"dataset_info.json": INFO, "features.json": '{"pythonClassName": "harmful.Feature"}'},
        "name 'harmful.Feature', whose module would be imported",
    ),
    "features-unknown": (
        {
            "dataset_info.json": INFO,
            "features.json": '{"pythonClassName": "tensorflow_datasets.no.F"}',
        },
        "Could not import",
    ),
}

# --- exports: name -> ({file: content}, part of the error); the SavedModel is whole ---

ABOUT = {
    "task": "text_classification",
    "labels": ["a", "b"],
    "columns": ["text"],
    "fitted": {},
}
EXTRA = "assets.extra/tfft.json"
OTHER_GRAPH = "the graph without signatures"
EXPORTS = {
    "empty": ({"saved_model.pb": None}, "exports/empty: must contain a SavedModel"),
    "not-of-tfft": ({}, "was not exported by tfft"),
    "about-cut": ({EXTRA: json.dumps(ABOUT)[:30]}, "tfft.json: not valid JSON"),
    "about-list": ({EXTRA: "[]"}, "tfft.json: must hold a JSON object"),
    "no-labels": ({EXTRA: '{"task": "text_classification"}'}, "'labels' is missing"),
    "label-number": ({EXTRA: json.dumps({**ABOUT, "labels": 3})}, "'labels' is missing or of"),
    "columns-number": ({EXTRA: json.dumps({**ABOUT, "columns": 3})}, "'columns' is missing or of"),
    "three-labels": (
        {EXTRA: json.dumps({**ABOUT, "labels": ["a", "b", "c"]})},
        "tfft.json names 3 labels",
    ),
    "no-label": ({EXTRA: json.dumps(ABOUT)}, "its model gives no 'label' of type string"),
    "unknown-task": (
        {EXTRA: json.dumps({**ABOUT, "task": "text_tagging"})},
        "tfft.json: unknown task 'text_tagging'",
    ),
    "other-columns": (
        {EXTRA: json.dumps({**ABOUT, "columns": ["txt"]})},
        "its model takes text; assets.extra/tfft.json names txt",
    ),
    "thresholds-text": (
        {EXTRA: json.dumps({**ABOUT, "fitted": {"thresholds": "half"}})},
        "'fitted' is missing or of",
    ),
    "graph-cut": (
        {EXTRA: json.dumps(ABOUT), "saved_model.pb": b"\x08\x01torn"},
        "not a SavedModel that TensorFlow can load",
    ),
    "graph-fifo": (
        {EXTRA: json.dumps(ABOUT), "saved_model.pb": "fifo"},
        "exports/graph-fifo: must contain a SavedModel",
    ),
    "variables-missing": (
        {EXTRA: json.dumps(ABOUT), "variables/variables.index": None},
        "not a SavedModel that TensorFlow can load",
    ),
    "no-signature": (
        {EXTRA: json.dumps(ABOUT), "saved_model.pb": OTHER_GRAPH},
        "has no signature serving_default",
    ),
}

# --- run directories: name -> ({file: content}, part of the error) ---

MODEL = "best/model.json"
CUT = "cut to a half"
RUNS = {
    "config-missing": ({"config.yaml": None}, "holds no run (no config.yaml)"),
    "config-cut": ({"config.yaml": "data: {train"}, "config.yaml:1:13: not valid YAML"),
    "config-list": ({"config.yaml": "- data"}, "config.yaml: must hold sections"),
    "model-missing": ({MODEL: None}, "the run has no weights yet"),
    "model-cut": ({MODEL: CUT}, "model.json: not valid JSON"),
    "model-list": ({MODEL: "[]"}, "model.json: must hold a JSON object"),
    "model-zeros": ({MODEL: "\0" * 99}, "model.json: not valid JSON"),
    "weights-missing": ({"best/weights.safetensors": None}, "the run has no weights yet"),
    "weights-cut": ({"best/weights.safetensors": CUT}, "weights.safetensors: cannot be read"),
    "weights-other": (
        {"best/weights.safetensors": OTHER_TENSOR},
        "has no weights of the model's shape for",
    ),
    "weights-fifo": ({"best/weights.safetensors": "fifo"}, "the run has no weights yet"),
    "inputs-missing": ({"best/inputs.json": None}, "inputs.json: cannot be read"),
    "inputs-cut": ({"best/inputs.json": CUT}, "inputs.json: not valid JSON"),
    "inputs-other": (
        {"best/inputs.json": '{"image_spec": {"size": 3}}'},
        "inputs.json cannot be read",
    ),
    "tokenizer-cut": ({"best/tokenizer.json": CUT}, "tokenizer.json: the tokenizer cannot be used"),
}
DESCRIPTIONS = {  # changes to best/model.json
    "labels-number": ({"labels": 3}, "'labels' is missing or of the wrong type"),
    "labels-fewer": ({"labels": ["red", "green"]}, "has no weights of the model's shape for"),
    "labels-numbers": ({"labels": [1, 2, 3]}, "'labels' is missing or of the wrong type"),
    "labels-none": ({"labels": []}, "'labels' is missing or of the wrong type"),
    "backbone-empty": ({"backbone": {}, "trained": None}, "best/model.json cannot be built"),
    "backbone-unknown": (
        {"backbone": {"provider": "x"}, "trained": None},
        "best/model.json cannot be built",
    ),
    "trained-number": ({"trained": 5}, "'trained' is missing or of the wrong type"),
    "thresholds-text": ({"fitted": "half"}, "'fitted' is missing or of the wrong type"),
    "thresholds-fewer": (
        {"fitted": {"thresholds": [0.5]}},
        "'fitted.thresholds' must be a number for each label",
    ),
    "fingerprint-other": ({"fingerprint": "0123"}, "was trained on another backbone"),
}


# --- writing them ---


def write_all(folder):
    """Fill the folder that the commands run in; they name its files by relative paths."""
    with contextlib.chdir(folder):
        _write_valid()
        for name, (text, _) in CONFIGS.items():
            _put(Path("yaml", f"{name}.yaml"), text)
        for name, (content, _) in (TABLES | ARRAYS).items():
            _put(Path("tables", name), content)
        _put(Path("tables/label.csv"), "text,label\na,redd\n")
        for name, (content, _) in IMAGES.items():
            _put(Path("broken", name, "class", name), content)
        for name, (files, _) in (CHECKPOINTS | TOKENIZERS).items():
            _changed("tiny", Path("checkpoints", name), files)
        for name, (files, _) in TFDS.items():
            _changed(None, Path("tfds", name, "colours", "1.0.0"), files)
        for name in ("colours", "shapes"):
            _changed(None, Path("sets", name, "1.0.0"), {"dataset_info.json": "{}"})
        for name, (files, _) in EXPORTS.items():
            _changed("saved/signatures", Path("exports", name), files)
        for name, (files, _) in RUNS.items():
            _changed("finished", Path("finished-but", name), files)
        for name, (changes, _) in DESCRIPTIONS.items():
            text = json.dumps({**json.loads(Path("finished", MODEL).read_text()), **changes})
            _changed("finished", Path("finished-but", name), {MODEL: text})
        _changed(None, Path("saved/cut"), {"saved_model.pb": b"\x08\x01torn"})
        _changed(None, Path("saved/fifo"), {"saved_model.pb": "fifo"})
        _changed("saved/signatures", Path("configured/1"), {})
        _put(Path("configured/models.config"), "model_config_list {")
        _put(Path("one.txt"), "red\n")
        _put(Path("fifo.yaml"), "fifo")
        _put(Path("x.h5"), b"no weights")


def _write_valid():
    """Configs, a checkpoint, images, SavedModels, a run and searches without a mistake."""
    write_tiny(_made("tiny"), 1)
    config = whole_config(Path("tiny"), Path())
    _put(Path("good.yaml"), yaml.safe_dump(config))
    _changed(None, Path("images"), {"a/1.png": PNG, "b/2.png": PNG})
    images = {
        "data": {"train": "images/"},
        "model": {"backbone": f"hf:{GOLDEN / 'vision' / 'vit'}"},
        "task": {"name": "image_classification"},
    }
    _put(Path("images.yaml"), yaml.safe_dump(images))
    _save_models()
    head = parse({**config, "method": {"name": "head"}})
    run = setup.prepare(head, Path("finished"))[0]
    run.save()
    _put(Path("finished/config.yaml"), dump(head))
    _put(Path("finished/metrics.json"), "{}")
    _changed("finished", Path("locked"), {})
    search = {**config, "optimizer": {"learning_rate": {"search": "uniform", "min": 0, "max": 1}}}
    search["tune"] = {"advise": False, "trials": 1, "final_seeds": 0}
    text = yaml.safe_dump(search, sort_keys=False, allow_unicode=True)
    _put(Path("search.yaml"), text)
    for name, changes in {
        "whole": {},
        "search-cut": {"search.yaml": "data: {train"},
        "journal-cut": {"journal.jsonl": '{"event": \n'},
    }.items():
        _changed(None, Path("runs", name), {"search.yaml": text, "journal.jsonl": "", **changes})


def _save_models():
    """Write two SavedModels: one of signatures, as tfft exports it, and one without any."""
    module = tf.Module()
    tf.saved_model.save(module, "saved/empty")
    module.weight = tf.Variable([[0.25, 0.75]])
    spec = tf.TensorSpec([None], tf.string, "text")
    module.serve = tf.function(
        lambda text: {"probabilities": tf.repeat(module.weight, tf.size(text), 0)}, [spec]
    )
    tf.saved_model.save(module, "saved/signatures", {"serving_default": module.serve})


def _made(name):
    Path(name).mkdir(parents=True)
    return Path(name)


def _changed(source, folder, files):
    """Copy a folder with other files; None removes one."""
    if source is None:
        folder.mkdir(parents=True)
    else:
        shutil.copytree(source, folder)
    for name, content in files.items():
        path = folder / name
        if content == CUT:
            content = path.read_bytes()[: path.stat().st_size // 2]
        path.unlink(missing_ok=True)
        if content is not None:
            _put(path, content)


def _put(path, content):
    """Write a text or bytes; or what a word stands for in place of a regular file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content == "fifo":
        os.mkfifo(path)
    elif content == "device":
        path.symlink_to("/dev/zero")
    elif content == "loop":
        path.symlink_to(path.name)
    elif content == "folder":
        path.mkdir()
    elif content == OTHER_GRAPH:
        shutil.copy("saved/empty/saved_model.pb", path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
