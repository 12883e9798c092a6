"""The tokenizer of a checkpoint as one JSON text: the `tokenizer.json` of the tokenizers library.

Whatever files a checkpoint brings (tokenizer.json, vocab.txt, vocab.json and merges.txt, a
SentencePiece model), transformers turns them into one description; the host side runs it, and
the graph side is built from it.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from tfft.utils import pretrained
from tfft.utils.errors import UserError
from tfft.utils.reading import library_errors, open_regular

_FILE_LIMIT = 64 << 20  # bytes
# Files that transformers reads for a tokenizer, and those that it may open.
_READ = re.compile(
    r"(added_tokens|chat_template|config|merges|special_tokens_map|tokenizer|vocab).*|.*\.model"
)
_OPENED = (".jinja", ".json", ".model", ".tiktoken", ".txt", ".vocab")
# Hieroglyphs, which no vocabulary holds: an unknown token is needed for them, if any is.
_UNKNOWN = "\U00013000\U00013050 a"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")


def from_checkpoint(name: str, revision: str | None = None) -> str:
    """The tokenizer description of a checkpoint folder or repository.

    Raises:
        UserError: there is no tokenizer there, or it cannot be read.
    """
    folder = pretrained.folder(name, revision)
    if not any((folder / file).exists() for file in FILES):
        raise UserError(f"{folder}: holds no tokenizer; needs one of {', '.join(FILES)}")
    for path in sorted(folder.iterdir()):
        if path.suffix in _OPENED and path.exists():  # a link may lead nowhere
            limit = _FILE_LIMIT if _READ.fullmatch(path.name) else None
            open_regular(path, limit).close()
    spec = _through_transformers(folder)
    usable(spec, str(folder))
    return spec


def usable(spec: str, where: str) -> Tokenizer:
    """Return the tokenizer of a description, tried on a text.

    Args:
        where: names the description in errors.

    Raises:
        UserError: it is broken, or has ids that no table of embeddings could have.
    """
    with library_errors(f"{where}: the tokenizer cannot be used"):
        made = Tokenizer.from_str(spec)
        made.encode_batch([_UNKNOWN, (_UNKNOWN, _UNKNOWN)])
    _check_ids(made, where)
    return made


def _check_ids(made: Tokenizer, where: str) -> None:
    highest = max(made.get_vocab(with_added_tokens=True).values(), default=-1)
    if not 0 <= highest < pretrained.MOST_TOKENS:
        raise UserError(
            f"{where}: the tokenizer's ids must be from 0 to {pretrained.MOST_TOKENS - 1:,}. "
            f"Received: {'none' if highest < 0 else f'{highest:,}'}"
        )


def of_bytes() -> str:
    """Each byte of UTF-8 is a token: 0 is padding, 1 + n the byte n; two texts have a space between
    them."""
    letters = byte_letters()
    vocabulary = {"[PAD]": 0, **{letters[n]: 1 + n for n in range(256)}}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    space = letters[ord(" ")]
    made.post_processor = processors.TemplateProcessing(
        single="$A", pair=f"$A {space}:1 $B:1", special_tokens=[(space, vocabulary[space])]
    )
    return made.to_str()


def of_vocabulary(tokens: Sequence[str], where: str) -> str:
    """BERT's WordPiece over a vocabulary, a token an id; cased if a token has a capital letter.

    Raises:
        UserError: BERT's special tokens are missing.
    """
    ids = {token: i for i, token in enumerate(tokens)}
    missing = [t for t in ("[CLS]", "[SEP]", "[UNK]") if t not in ids]
    if missing:
        raise UserError(f"{where}: holds no {missing[0]}; is it a WordPiece vocabulary?")
    # Where texts were lower-cased capitals stand in brackets alone: [CLS], [unused1].
    cased = any(t != t.lower() for t in tokens if not re.fullmatch(r"\[.*\]", t))
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=not cased, strip_accents=not cased)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    own = [t for t in _SPECIAL if t in ids]
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in own])
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(t, ids[t]) for t in ("[CLS]", "[SEP]")],
    )
    return made.to_str()


def byte_letters() -> list[str]:
    """What stands for each byte in a byte-level vocabulary (Radford et al. 2019): itself where that
    is a visible Latin-1 letter, else the next free letter from 256 on."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return [chr(n) if n in seen else chr(next(hidden)) for n in range(256)]


def _through_transformers(folder: Path) -> str:
    from transformers import AutoTokenizer

    # Left out, `trust_remote_code` makes transformers ask whether to run the checkpoint's code.
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
    _check_ids(backend, str(folder))  # writing the description counts up to the highest
    backend.no_truncation()
    backend.no_padding()
    return backend.to_str()
