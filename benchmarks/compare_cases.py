"""Cases that `compare_commits.py` runs, the names that changed between versions, and tiny inputs.

Everything here is independent of the commits that are compared: configs are written in the keys of
version 1, and checkpoints, tables and images are written with numpy alone.
"""

import json
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

STEPS = 30
RESUME_AT = 14  # a checkpoint in the middle of the second epoch
TWO_REPLICAS = {"strategy": "mirrored", "devices": ["CPU:0", "CPU:1"]}

# --- names that changed between versions ---

# Config key in version 1 -> key in version 2. A key is renamed only where the schema of a commit
# lacks the old one.
KEYS = {
    "train.cache": "train.cache_features",
    "train.cache_type": "train.cache_dtype",
    "train.jit": "train.jit_compile",
    "optimizer.end": "optimizer.end_factor",
    "export.weights": "export.weight_dtype",
    "evaluate.views": "evaluate.test_time_augmentation",
}
# Config key in version 1 -> its values that were renamed.
VALUES = {
    "task.name": {
        "text_tagging": "text_multilabel",
        "image_tagging": "image_multilabel",
    },
}
# Console modules, the first that a commit has is used.
MODULES = ("tfft.cli", "tfft.bin")
# Regular expressions over the names in a record (variable paths, keys of JSON files, signatures)
# and their replacements, for names that were changed on purpose. Both records are renamed.
RECORD_NAMES: tuple[tuple[str, str], ...] = ()


def renamed(name: str, table: tuple[tuple[str, str], ...] = RECORD_NAMES) -> str:
    """Return the current name of an entry in a record."""
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def translate(config: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a version-1 config in the keys and values of a commit.

    Args:
        config: nested mappings.
        schema: the JSON schema that the commit prints.
    """
    result: dict[str, Any] = {}
    for path, value in _leaves(config):
        key = ".".join(path)
        nodes = _nodes(schema, path)
        if not nodes and key in KEYS:
            key = KEYS[key]
        if isinstance(value, str) and value not in _choices(nodes):
            value = VALUES.get(".".join(path), {}).get(value, value)
        *sections, last = key.split(".")
        section = result
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    return result


def _leaves(
    config: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _nodes(schema: Mapping[str, Any], path: tuple[str, ...]) -> list[Mapping[str, Any]]:
    """Return the parts of a JSON schema that describe the value at a path."""
    nodes = _alternatives(schema, schema)
    for key in path:
        inner = [node["properties"][key] for node in nodes if key in node.get("properties", {})]
        nodes = [part for node in inner for part in _alternatives(schema, node)]
    return nodes


def _alternatives(schema: Mapping[str, Any], node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "$ref" in node:
        return _alternatives(schema, schema["$defs"][node["$ref"].rpartition("/")[2]])
    parts = [part for key in ("anyOf", "oneOf", "allOf") for part in node.get(key, ())]
    return [node, *(inner for part in parts for inner in _alternatives(schema, part))]


def _choices(nodes: list[Mapping[str, Any]]) -> set[Any]:
    return {value for node in nodes for value in (*node.get("enum", ()), node.get("const"))}


# --- cases ---


@dataclass(frozen=True)
class Case:
    """One training run, compared undisturbed and resumed.

    Attributes:
        changes: sections that differ from the base config, in version-1 keys.
        backbone: folder of the checkpoint. Tracing takes most of the time, so only cases that tell
            blocks apart have two.
        table: name of the table of texts.
        teacher: name of the case whose run is the teacher of a distillation.
        devices: number of logical CPU devices.
        static: give every batch one shape, as on a TPU.
        export: export the run, and answer fixed raw rows with every signature.
        show: compare the mask table that `tfft show` prints too.
        interrupt: stop the run by SIGINT instead of resuming a copy of the undisturbed run from a
            checkpoint. Only the resumed run is compared then.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    backbone: str = "bert_1"
    table: str = "classes"
    teacher: str | None = None
    devices: int = 1
    static: bool = False
    export: bool = False
    show: bool = False
    interrupt: bool = False


CASES: dict[str, Case] = {
    "full": Case(backbone="bert_2", export=True),
    "interrupted": Case(backbone="bert_2", interrupt=True),
    "cached_head": Case({"method": {"name": "head"}, "train": {"cache": True}}),
    "gradual": Case({"method": {"name": "gradual"}}, backbone="bert_2", show=True),
    "lp_ft": Case({"method": {"name": "lp_ft"}}),
    "lora": Case({"method": {"name": "lora", "rank": 2}}, backbone="bert_2", export=True),
    "qlora": Case({"method": {"name": "qlora", "rank": 2, "bits": 4, "group": 4}}),
    "prefix": Case({"method": {"name": "prefix", "length": 3}}),
    "adversarial": Case({"regularization": {"adversarial": {"name": "fgm", "epsilon": 0.5}}}),
    "r_drop": Case({"regularization": {"r_drop": {"alpha": 1.0}}}),
    "distillation": Case({"regularization": {"distillation": {}}}, teacher="full"),
    "micro_batch": Case({"train": {"micro_batch": 3}}),
    "ema": Case({"optimizer": {"ema": 0.9}}),
    "swa": Case({"optimizer": {"swa": {"start": "40%", "every": "3 steps"}}}),
    "soup": Case({"train": {"soup": 3, "validate_every": "4 steps"}}),
    "bfloat16": Case({"distribute": {"precision": "mixed_bfloat16"}}),
    "two_replicas": Case({"distribute": TWO_REPLICAS}, devices=2),
    "static_shapes": Case({"distribute": TWO_REPLICAS}, devices=2, static=True),
    "tagging": Case(
        {"task": {"name": "text_tagging"}, "evaluate": {"baselines": True}},
        table="tags",
        export=True,
    ),
    "mixup": Case(
        {"augmentation": {"flip": "horizontal", "mixup": 0.2}}, backbone="resnet", export=True
    ),
    "batch_norm": Case({"train": {"batch_norm": "adapt"}}, backbone="resnet"),
}


def config(case: Case, inputs: Path, teacher: Path | None) -> dict[str, Any]:
    """Return the config of a case in version-1 keys.

    Args:
        inputs: the folder that `write_inputs` filled.
        teacher: run directory of the teacher, of a distillation.
    """
    base: dict[str, Any] = {
        "data": {"max_length": 16},
        "model": {"backbone": f"hf:{inputs / case.backbone}"},
        "optimizer": {"learning_rate": 1e-2},
        "train": {
            "epochs": 3,
            "batch_size": 8,
            "metric": "log_loss",
            "checkpoint": {"every": "7 steps", "keep": 9},
        },
        "evaluate": {"bootstrap": 50, "baselines": False},
        "export": {"enabled": False},
    }
    images = case.backbone == "resnet"
    for split in ROWS:
        folder = f"{inputs / 'images' / split}/"
        base["data"][split] = folder if images else str(inputs / f"{case.table}_{split}.csv")
    if images:
        base["task"] = {"name": "image_classification"}
    if teacher is not None:
        base = _merged(base, {"regularization": {"distillation": {"teacher": str(teacher)}}})
    return _merged(base, case.changes)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result


# --- inputs ---

COLORS = {"red": (200, 10, 20), "green": (20, 180, 30), "blue": (10, 20, 200)}
WORDS = [*COLORS, "apple", "sky", "grass", "the", "is", "a", "like", "an", "un"]
LETTERS = "abcdefghijklmnopqrst"
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS]
TOKENS += [f"##{letter}" for letter in LETTERS]
IMAGE_SIZE = 24
ROWS = {"train": 76, "validation": 40, "test": 40}
TEXTS = [
    "a red sky",
    "the blue apple is like grass",
    "",
    "Green, RED; blue!",
    "é unapple\t图 a " * 9,
]


def write_inputs(folder: Path) -> None:
    """Write the checkpoints, the tables and the images of all cases."""
    folder.mkdir(parents=True)
    for blocks in (1, 2):
        _write_bert(folder / f"bert_{blocks}", blocks)
    _write_resnet(folder / "resnet")
    for seed, (split, count) in enumerate(ROWS.items()):
        _write_table(folder / f"classes_{split}.csv", count, seed, _color)
        _write_table(folder / f"tags_{split}.csv", count, seed, _tags)
        for index, (name, color) in enumerate(COLORS.items()):
            generator = np.random.default_rng([seed, index])
            for number in range(count // 3 + (index < count % 3)):
                noise = generator.integers(-10, 50, (IMAGE_SIZE, IMAGE_SIZE + 6, 3))
                pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
                path = folder / "images" / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(pixels))


def _color(words: list[str]) -> str:
    return next(word for word in words if word in COLORS)


def _tags(words: list[str]) -> str:
    return "|".join(word for word in ("red", "green", "blue", "apple") if word in words)


def _write_table(path: Path, rows: int, seed: int, label: Callable[[list[str]], str]) -> None:
    generator = random.Random(seed)
    lines = ["text,label"]
    for _ in range(rows):
        words = generator.choices(WORDS[3:], k=generator.randint(1, 9))
        for color in generator.sample(list(COLORS), 1 if label is _color else 2):
            if label is _color or generator.random() < 0.5:
                words.insert(generator.randint(0, len(words)), color)
        lines.append(f"{' '.join(words)},{label(words)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def png(pixels: np.ndarray) -> bytes:
    """Return uint8 pixels [H, W, 3] as a PNG file."""
    height, width, _ = pixels.shape
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)  # filter 0 in front of each line
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _save(folder: Path, shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]) -> None:
    """Write a Hugging Face checkpoint of seeded weights."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes.items():
        noise = generator.normal(0, 0.2, shape).astype(np.float32)
        scale = name.endswith(("LayerNorm.weight", "normalization.weight", "running_var"))
        tensors[name] = np.abs(1 + noise) if scale else noise
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings))


def _write_bert(folder: Path, blocks: int) -> None:
    """Write a BERT with the vocabulary of the tables."""
    width, inner, positions = 16, 24, 24
    settings = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": 2,
        "max_position_embeddings": positions,
        "type_vocab_size": 2,
        "vocab_size": len(TOKENS),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    dense = {"pooler.dense": (width, width)}
    norms = ["embeddings.LayerNorm"]
    for block in (f"encoder.layer.{number}" for number in range(blocks)):
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            dense[f"{block}.attention.{name}"] = (width, width)
        dense[f"{block}.intermediate.dense"] = (inner, width)
        dense[f"{block}.output.dense"] = (width, inner)
        norms += [f"{block}.attention.output.LayerNorm", f"{block}.output.LayerNorm"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(TOKENS), width),
        "embeddings.position_embeddings.weight": (positions, width),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    for name, shape in (dense | dict.fromkeys(norms, (width,))).items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    _save(folder, shapes, settings)
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))


def _write_resnet(folder: Path) -> None:
    """Write a ResNet of two stages, which has BatchNorm layers."""
    settings = {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "depths": [1, 1],
        "hidden_sizes": [8, 16],
        "embedding_size": 8,
        "layer_type": "basic",
        "hidden_act": "relu",
        "num_channels": 3,
        "downsample_in_first_stage": True,
        "downsample_in_bottleneck": False,
    }
    kernels = {"embedder.embedder": (8, 3, 7, 7)}
    for stage, (before, after) in enumerate(((8, 8), (8, 16))):
        layer = f"encoder.stages.{stage}.layers.0"
        kernels |= {
            f"{layer}.shortcut": (after, before, 1, 1),
            f"{layer}.layer.0": (after, before, 3, 3),
            f"{layer}.layer.1": (after, after, 3, 3),
        }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in kernels.items():
        shapes[f"resnet.{name}.convolution.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"resnet.{name}.normalization.{part}"] = shape[:1]
    _save(folder, shapes, settings)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    mean = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    processor = {"image_processor_type": "ViTImageProcessor", "size": size, **mean}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
