"""A checkpoint's tokenizer as one JSON text: the `tokenizer.json` of the tokenizers library.

Whatever files a checkpoint has (tokenizer.json, vocab.txt, vocab.json and merges.txt, a
SentencePiece model), transformers converts them to one description. The host side runs it, and the
graph side is built from it.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from tfft.utils import pretrained
from tfft.utils.errors import UserError
from tfft.utils.reading import library_errors, open_regular

_FILE_LIMIT = 64 << 20  # bytes
# Names of files that transformers reads for a tokenizer, and suffixes of those that it may open.
_TOKENIZER_FILE = re.compile(
    r"(added_tokens|chat_template|config|merges|special_tokens_map|tokenizer|vocab).*|.*\.model"
)
_OPENED_SUFFIXES = (".jinja", ".json", ".model", ".tiktoken", ".txt", ".vocab")
# Hieroglyphs are in no vocabulary: encoding them fails now if the unknown token is missing.
_UNKNOWN_TEXT = "\U00013000\U00013050 a"
_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")


def from_checkpoint(name: str, revision: str | None = None) -> str:
    """Return the tokenizer description of a checkpoint.

    Args:
        name: a folder, or a repository of the Hugging Face Hub.
        revision: of the repository.

    Raises:
        UserError: the checkpoint has no tokenizer, or it cannot be read.
    """
    folder = pretrained.folder(name, revision)
    if not any((folder / file).exists() for file in FILES):
        raise UserError(f"{folder}: holds no tokenizer; needs one of {', '.join(FILES)}")
    for path in sorted(folder.iterdir()):
        if path.suffix in _OPENED_SUFFIXES and path.exists():  # a broken link does not exist
            limit = _FILE_LIMIT if _TOKENIZER_FILE.fullmatch(path.name) else None
            open_regular(path, limit).close()
    spec = _convert_with_transformers(folder)
    load_tokenizer(spec, str(folder))
    return spec


def load_tokenizer(spec: str, where: str) -> Tokenizer:
    """Build a tokenizer from its description and try it on a text.

    Args:
        spec: the description.
        where: names the description in errors.

    Raises:
        UserError: the description is broken, or its ids do not fit an embedding table.
    """
    with library_errors(f"{where}: the tokenizer cannot be used"):
        tokenizer = Tokenizer.from_str(spec)
        tokenizer.encode_batch([_UNKNOWN_TEXT, (_UNKNOWN_TEXT, _UNKNOWN_TEXT)])
    _check_ids(tokenizer, where)
    return tokenizer


def _check_ids(tokenizer: Tokenizer, where: str) -> None:
    # Ids may have gaps: the highest decides the size of the embedding table.
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if not 0 <= highest < pretrained.MOST_TOKENS:
        raise UserError(
            f"{where}: the tokenizer's ids must be from 0 to {pretrained.MOST_TOKENS - 1:,}. "
            f"Received: {'none' if highest < 0 else f'{highest:,}'}"
        )


def byte_tokenizer_json() -> str:
    """Return the description of a tokenizer whose tokens are the bytes of UTF-8.

    Id 0 is padding, 1 + n the byte n; a space separates the texts of a pair.
    """
    alphabet = byte_alphabet()
    vocabulary = {"[PAD]": 0, **{alphabet[n]: 1 + n for n in range(256)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    space = alphabet[ord(" ")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair=f"$A {space}:1 $B:1", special_tokens=[(space, vocabulary[space])]
    )
    return tokenizer.to_str()


def wordpiece_tokenizer_json(tokens: Sequence[str], where: str) -> str:
    """Return the description of BERT's WordPiece over a vocabulary.

    It is cased if any token has a capital letter.

    Args:
        tokens: the vocabulary; a token's id is its index.
        where: names the vocabulary in errors.

    Raises:
        UserError: BERT's special tokens are missing.
    """
    ids = {token: i for i, token in enumerate(tokens)}
    missing = [t for t in ("[CLS]", "[SEP]", "[UNK]") if t not in ids]
    if missing:
        raise UserError(f"{where}: holds no {missing[0]}; is it a WordPiece vocabulary?")
    # In an uncased vocabulary only tokens in brackets have capitals: [CLS], [unused1].
    cased = any(t != t.lower() for t in tokens if not re.fullmatch(r"\[.*\]", t))
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased, strip_accents=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special_tokens = [t for t in _SPECIAL_TOKENS if t in ids]
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in special_tokens]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(t, ids[t]) for t in ("[CLS]", "[SEP]")],
    )
    return tokenizer.to_str()


def byte_alphabet() -> list[str]:
    """Return the letter for each byte in a byte-level vocabulary (Radford et al. 2019).

    It is the Latin-1 letter of the byte if that is visible, else the next free letter from 256 on.
    """
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    next_code = iter(range(256, 512))
    return [chr(n) if n in visible else chr(next(next_code)) for n in range(256)]


def _convert_with_transformers(folder: Path) -> str:
    """Return the description that transformers makes of a checkpoint's files."""
    from transformers import AutoTokenizer

    # If `trust_remote_code` is unset, transformers asks whether to run the checkpoint's code.
    with library_errors(f"{folder}: the tokenizer cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, use_fast=True, trust_remote_code=False, local_files_only=True
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"{folder}: {type(tokenizer).__name__} has no fast form, which tfft needs; "
            "save one as tokenizer.json"
        )
    _check_ids(backend, str(folder))  # serialisation loops up to the highest id
    # A checkpoint may store truncation and padding, which `TextInputs` does itself.
    backend.no_truncation()
    backend.no_padding()
    return backend.to_str()
