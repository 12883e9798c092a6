"""The tokenizer of a KerasHub preset as a description of the tokenizers library, and what the
files of a preset must be before KerasHub reads them.

KerasHub's own WordPiece differs from the original on accents and Chinese; its vocabularies are
the originals, so the original's rules are put around them.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from tfft.utils import pretrained
from tfft.utils.errors import UserError
from tfft.utils.reading import library_errors, regular_file

# Of each the first that a preset has is read: of KerasHub's own presets, and of those it converts.
_WEIGHTS = ("model.weights.h5", "model.weights.json")
_CONVERTED = ("model.safetensors.index.json", "model.safetensors")
_TOKENIZER_LIMIT = 64 << 20  # bytes: of a Hugging Face checkpoint it holds the vocabulary
# Settings of tokenizers that KerasHub takes for the path of a file where they are strings.
_PATHS = ("merges", "proto", "vocabulary")
# Settings that count layers, which take time to build, and such as take memory; their largest.
_LIMITS = (
    (re.compile(r"layers|blocks|depth|repeat|repetition|num_groups"), 1000),
    (re.compile(r"dim|size|filter|channel|length|width|heads|segments|units|shape"), 1 << 22),
)


def check_encoder(preset: str) -> None:
    """Refuse a preset whose network KerasHub, which trusts its files, should not build.

    Raises:
        UserError: there is no such preset, a file of it is broken or no regular file, one names
            files elsewhere, or the network that it describes is larger than its weights.
    """
    config = read_settings(preset, "config.json")
    names = _WEIGHTS if "registered_name" in config else _CONVERTED
    weights = [_optional(preset, names[0]) or _file(preset, names[1])]
    if weights[0].suffix == ".json":
        weights = [_file(preset, shard) for shard in pretrained.shards(weights[0])]
    sizes = [regular_file(path, pretrained.WEIGHTS_LIMIT).stat().st_size for path in weights]
    _check_numbers(config.get("config", config), sum(sizes), f"kerashub:{preset}: config.json")


def read_settings(preset: str, file: str, optional: bool = False) -> dict[str, Any]:
    """Return the object in a JSON file of a preset; an empty one where there need not be any.

    Raises:
        UserError: there is none, it is broken or no regular file, or it names other files.
    """
    path = _optional(preset, file) if optional else _file(preset, file)
    if path is None:
        return {}
    limit = _TOKENIZER_LIMIT if file == "tokenizer.json" else pretrained.JSON_LIMIT
    value = pretrained.read_json(path, limit)
    for key, setting in _leaves(value.get("config")):
        if key in _PATHS and isinstance(setting, str):
            raise UserError(f"{path}: {key} must not name a file. Received: {setting!r:.60}")
    return value


def _file(preset: str, file: str) -> Path:
    """Return the local path of a preset's file, downloaded where it must be."""
    # No public function says where KerasHub keeps the files of a preset.
    from keras_hub.src.utils.preset_utils import get_file

    with library_errors(f"model.backbone: kerashub:{preset} cannot be loaded"):
        return Path(get_file(preset, file))


def _optional(preset: str, file: str) -> Path | None:
    """Return what `_file` does; None also where nobody can be asked, as without a network."""
    try:
        return _file(preset, file)
    except UserError:
        return None


def _leaves(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keys of nested objects and lists with their values; those of lists for each."""
    pending = [("", config)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, Mapping):
            pending += [(str(k), v) for k, v in value.items()]
        elif isinstance(value, list):
            pending += [(key, v) for v in value]
        else:
            yield key, value


def _check_numbers(config: Any, weights: int, where: str) -> None:
    """Refuse numbers that would take all memory or time before the weights are looked at.

    Args:
        weights: the bytes of all files of weights.
    """
    if not isinstance(config, Mapping):
        raise UserError(f"{where}: config must be an object. Received: {config!r:.60}")
    for key, value in _leaves(config):
        most = next((limit for pattern, limit in _LIMITS if pattern.search(key)), None)
        if most is not None and isinstance(value, int | float) and not value <= most:
            raise UserError(f"{where}: {key} must not exceed {most:,}. Received: {value!r:.60}")
    widths = [config.get(key, 1) for key in ("hidden_dim", "intermediate_dim")]
    rows = (config.get("num_groups", config.get("num_layers", 1)), 2, *widths)
    table = (config.get("vocabulary_size", 1), config.get("embedding_dim", widths[0]))
    sizes = [math.prod(f) for f in (rows, table) if all(isinstance(n, int) for n in f)]
    if weights and sum(sizes) > 2 * weights:  # a number takes four bits at least
        raise UserError(
            f"{where}: requires {sum(sizes):,} numbers at least where the weights have {weights:,} "
            "bytes"
        )


def tokenizer_spec(name: str) -> str:
    """The description for a preset.

    Raises:
        UserError: no such preset, or a tokenizer of a kind not known here.
    """
    import keras_hub

    for file in ("config.json", "tokenizer.json"):
        read_settings(name, file)
    with library_errors(f"model.backbone: kerashub:{name} has no tokenizer"):
        tokenizer = keras_hub.tokenizers.Tokenizer.from_preset(name)
        if isinstance(tokenizer, keras_hub.tokenizers.WordPieceTokenizer):
            return _wordpiece(tokenizer)
        if isinstance(tokenizer, keras_hub.tokenizers.BytePairTokenizer):
            return _byte_pair(tokenizer)
    raise UserError(
        f"model.backbone: the tokenizer {type(tokenizer).__name__} of kerashub:{name} is not "
        "supported; load the Hugging Face checkpoint of the same model with hf:"
    )


def _wordpiece(source: Any) -> str:
    vocabulary = {token: i for i, token in enumerate(source.get_vocabulary())}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token=source.oov_token))
    made.normalizer = normalizers.BertNormalizer(
        lowercase=bool(source.lowercase),
        strip_accents=bool(source.strip_accents) or bool(source.lowercase),
        handle_chinese_chars=bool(source.split_on_cjk),
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _finish(made, source.cls_token, source.sep_token, source, doubled=False)


def _byte_pair(source: Any) -> str:
    vocabulary = {str(token): int(i) for token, i in dict(source.vocabulary).items()}
    merges = [tuple(str(merge).split(" ")) for merge in source.merges]
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _finish(made, source.start_token, source.end_token, source, doubled=True)


def _finish(made: Tokenizer, start: str, end: str, source: Any, doubled: bool) -> str:
    """Special tokens around the texts; RoBERTa puts two between those of a pair."""
    tokens = [t for t in dict.fromkeys(source.special_tokens) if made.token_to_id(t) is not None]
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens])
    middle, segment = (f"{end} {end}", 0) if doubled else (end, 1)
    made.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {middle} $B:{segment} {end}:{segment}",
        special_tokens=[(t, made.token_to_id(t)) for t in (start, end)],
    )
    return made.to_str()
