"""The tokenizer of a checkpoint as one JSON text: the `tokenizer.json` of the tokenizers library.

Whatever files a checkpoint brings (tokenizer.json, vocab.txt, vocab.json and merges.txt, a
SentencePiece model), transformers turns them into one description; the host side runs it, and
the graph side is built from it.
"""

from pathlib import Path

from tfft import pretrained
from tfft.errors import UserError

FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")


def from_checkpoint(name: str, revision: str | None = None) -> str:
    """The tokenizer description of a checkpoint folder or repository.

    Raises:
        UserError: there is no tokenizer there, or it cannot be read.
    """
    folder = pretrained.folder(name, revision)
    if not any((folder / file).is_file() for file in FILES):
        raise UserError(f"{folder}: holds no tokenizer; needs one of {', '.join(FILES)}")
    return _through_transformers(folder)


def _through_transformers(folder: Path) -> str:
    from transformers import AutoTokenizer

    try:
        # trust_remote_code is False by default: no code of the checkpoint's is run.
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
    except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: the tokenizer cannot be read: {reason}") from None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"{folder}: {type(tokenizer).__name__} has no fast form, which tfft needs; "
            "save one as tokenizer.json"
        )
    backend.no_truncation()
    backend.no_padding()
    return backend.to_str()
