"""Convert the tokenizers of KerasHub presets, and check presets before KerasHub reads them.

KerasHub's WordPiece differs from the original on accents and Chinese. Its vocabularies are the
originals, so the description combines them with the original's rules.
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

# Weight files of KerasHub's presets, and of checkpoints that it converts. The first that exists is
# read.
_KERASHUB_WEIGHTS = ("model.weights.h5", "model.weights.json")
_CONVERTIBLE_WEIGHTS = ("model.safetensors.index.json", "model.safetensors")
_TOKENIZER_LIMIT = 64 << 20  # bytes; it holds the vocabulary of a Hugging Face checkpoint
# Tokenizer settings that KerasHub takes for a file's path if they are strings.
_PATH_SETTINGS = ("merges", "proto", "vocabulary")
# Largest values of settings that count layers, which take time to build, and of those that size
# arrays, which take memory.
_SETTING_LIMITS = (
    (re.compile(r"layers|blocks|depth|repeat|repetition|num_groups"), 1000),
    (re.compile(r"dim|size|filter|channel|length|width|heads|segments|units|shape"), 1 << 22),
)


def check_encoder(preset: str) -> None:
    """Refuse a preset whose network KerasHub should not build, because KerasHub trusts its files.

    Raises:
        UserError: there is no such preset, one of its files is broken, not a regular file or names
            files elsewhere, or the network that it describes is larger than its weights.
    """
    config = read_settings(preset, "config.json")
    # KerasHub's presets name their class in config.json; other checkpoints are converted.
    names = _KERASHUB_WEIGHTS if "registered_name" in config else _CONVERTIBLE_WEIGHTS
    weights = [_optional_file(preset, names[0]) or _preset_file(preset, names[1])]
    if weights[0].suffix == ".json":
        weights = [_preset_file(preset, shard) for shard in pretrained.shards(weights[0])]
    sizes = [regular_file(path, pretrained.WEIGHTS_LIMIT).stat().st_size for path in weights]
    _check_numbers(config.get("config", config), sum(sizes), f"kerashub:{preset}: config.json")


def read_settings(preset: str, file: str, optional: bool = False) -> dict[str, Any]:
    """Return the object in a JSON file of a preset.

    Args:
        preset: name of the preset.
        file: name of the file.
        optional: return an empty object if the file does not exist.

    Raises:
        UserError: the file does not exist, is broken or not a regular file, or names other files.
    """
    path = _optional_file(preset, file) if optional else _preset_file(preset, file)
    if path is None:
        return {}
    limit = _TOKENIZER_LIMIT if file == "tokenizer.json" else pretrained.JSON_LIMIT
    value = pretrained.read_json(path, limit)
    for key, setting in _leaves(value.get("config")):
        if key in _PATH_SETTINGS and isinstance(setting, str):
            raise UserError(f"{path}: {key} must not name a file. Received: {setting!r:.60}")
    return value


def _preset_file(preset: str, file: str) -> Path:
    """Return the local path of a preset's file, downloaded if necessary."""
    # KerasHub has no public function for the path of a preset's file.
    from keras_hub.src.utils.preset_utils import get_file

    with library_errors(f"model.backbone: kerashub:{preset} cannot be loaded"):
        return Path(get_file(preset, file))


def _optional_file(preset: str, file: str) -> Path | None:
    """Return what `_preset_file` does; None if the file is missing or there is no network."""
    try:
        return _preset_file(preset, file)
    except UserError:
        return None


def _leaves(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of nested objects; the values of a list have the key of the list."""
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
    """Refuse settings that would exhaust memory or time before the weights are read.

    Args:
        config: the settings.
        weights: total bytes of the weight files.
        where: names the file in errors.
    """
    if not isinstance(config, Mapping):
        raise UserError(f"{where}: config must be an object. Received: {config!r:.60}")
    for key, value in _leaves(config):
        limit = next((maximum for pattern, maximum in _SETTING_LIMITS if pattern.search(key)), None)
        # `not <=` also refuses NaN.
        if limit is not None and isinstance(value, int | float) and not value <= limit:
            raise UserError(f"{where}: {key} must not exceed {limit:,}. Received: {value!r:.60}")
    widths = [config.get(key, 1) for key in ("hidden_dim", "intermediate_dim")]
    # Lower bound of the parameters: two dense layers per block, and the embedding table.
    hidden = (config.get("num_groups", config.get("num_layers", 1)), 2, *widths)
    embedding = (config.get("vocabulary_size", 1), config.get("embedding_dim", widths[0]))
    sizes = [math.prod(f) for f in (hidden, embedding) if all(isinstance(n, int) for n in f)]
    if weights and sum(sizes) > 2 * weights:  # a parameter takes four bits at least
        raise UserError(
            f"{where}: requires at least {sum(sizes):,} parameters, but the weights have "
            f"{weights:,} bytes"
        )


def tokenizer_spec(name: str) -> str:
    """Return the description of a preset's tokenizer.

    Raises:
        UserError: there is no such preset, or its tokenizer is of an unsupported kind.
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
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=source.oov_token))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=bool(source.lowercase),
        # In the original, lowercasing implies stripping accents.
        strip_accents=bool(source.strip_accents) or bool(source.lowercase),
        handle_chinese_chars=bool(source.split_on_cjk),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _finish(tokenizer, source.cls_token, source.sep_token, source, double_separator=False)


def _byte_pair(source: Any) -> str:
    vocabulary = {str(token): int(i) for token, i in dict(source.vocabulary).items()}
    merges = [tuple(str(merge).split(" ")) for merge in source.merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _finish(tokenizer, source.start_token, source.end_token, source, double_separator=True)


def _finish(tokenizer: Tokenizer, start: str, end: str, source: Any, double_separator: bool) -> str:
    """Add the special tokens around the texts and return the description.

    Args:
        tokenizer: to complete.
        start: token before the first text.
        end: token after each text.
        source: KerasHub's tokenizer.
        double_separator: whether two `end` tokens separate a pair, as in RoBERTa.
    """
    tokens = [
        t for t in dict.fromkeys(source.special_tokens) if tokenizer.token_to_id(t) is not None
    ]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens])
    separator, segment = (f"{end} {end}", 0) if double_separator else (end, 1)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {separator} $B:{segment} {end}:{segment}",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in (start, end)],
    )
    return tokenizer.to_str()
