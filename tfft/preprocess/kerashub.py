"""The tokenizer of a KerasHub preset as a description of the tokenizers library.

KerasHub's own WordPiece differs from the original on accents and Chinese; its vocabularies are
the originals, so the original's rules are put around them.
"""

from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from tfft.errors import UserError


def tokenizer_spec(name: str) -> str:
    """The description for a preset.

    Raises:
        UserError: no such preset, or a tokenizer of a kind not known here.
    """
    import keras_hub

    try:
        tokenizer = keras_hub.tokenizers.Tokenizer.from_preset(name)
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model.backbone: kerashub:{name} has no tokenizer: {reason}") from None
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
