"""Choose backbone, lengths and training by the first rows, without measuring.

From 1,000 rows on, epochs, batch size and rates are those of `tfft.methods.auto` on a CPU with
enough memory and time; tests compare the two. The method is always `full`, where `auto` may choose
another by measuring, and MixUp is left to it. Where the size of the backbone is not known, as for
fewer rows, `method: auto` chooses.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ENGLISH = "hf:sentence-transformers/all-MiniLM-L6-v2"
CHINESE = "hf:google-bert/bert-base-chinese"
MULTILINGUAL = "hf:FacebookAI/xlm-roberta-base"
IMAGES = "keras:MobileNetV2"
LARGER_ENGLISH = "hf:FacebookAI/roberta-base"
LARGER_IMAGES = "keras:EfficientNetV2B0"
MILLION_PARAMETERS = {
    ENGLISH: 23,
    LARGER_ENGLISH: 125,
    CHINESE: 102,
    MULTILINGUAL: 278,
    IMAGES: 2,
    LARGER_IMAGES: 6,
}
_SMALL_BACKBONE = 50  # million parameters; smaller ones take higher rates

SMALL, MEDIUM, LARGE = 1_000, 20_000, 500_000  # rows
LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # of which max_length is one
_WINDOW = 384  # of long contexts, as in the code of Devlin et al. 2019 for SQuAD
_LONG = 192  # tokens of a context that is long
_SHORTEST_WINDOW = 96  # holds a question of 64 tokens, the default of task.max_question_length
PERCENTILE = 95  # of the rows fit in max_length
_CHARACTERS_PER_TOKEN = 4  # of English in the vocabularies of BERT and XLM-RoBERTa
_TOKENS_PER_WORD = 1.25
_SPECIAL_TOKENS = 3  # [CLS] and two [SEP]
_MIN_FOREIGN = 0.005  # share of letters beyond ASCII; English has less, German and French more
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


@dataclass(frozen=True)
class Training:
    """The sections `method`, `optimizer` and `train`, with their reasons.

    Attributes:
        method: its name.
        optimizer: keys of the section `optimizer`; empty where `method: auto` chooses them.
        train: keys of the section `train`.
        reason: why the method was chosen.
    """

    method: str
    optimizer: dict[str, Any]
    train: dict[str, Any]
    reason: str


def language(texts: Sequence[str]) -> str:
    """Return `english`, `chinese` or `other`, by the letters of the texts."""
    letters = [c for text in texts for c in text[:1000] if c.isalpha()]
    beyond_ascii = [c for c in letters if not c.isascii()]
    if len(beyond_ascii) < _MIN_FOREIGN * max(1, len(letters)):
        return "english"
    scripts = [unicodedata.name(c, "").split(" ")[0] for c in beyond_ascii]
    is_japanese = any(script in ("HIRAGANA", "KATAKANA") for script in scripts)
    if scripts.count("CJK") > 0.5 * len(letters) and not is_japanese:
        return "chinese"
    return "other"


def max_length(rows: Sequence[str]) -> int:
    """Return the smallest of `LENGTHS` in which 95 % of the rows fit.

    No tokenizer is needed: a row is estimated to have 1.25 tokens for each word or one for each
    four characters, whichever are more, and one for each character of a script without spaces.

    Args:
        rows: the texts of each row together.
    """
    tokens = sorted(map(_estimated_tokens, rows))
    percentile = tokens[math.ceil(PERCENTILE / 100 * len(tokens)) - 1]
    return next((length for length in LENGTHS if length >= percentile), LENGTHS[-1])


def window_length(contexts: Sequence[str], rows: Sequence[str]) -> int:
    """Return the tokens of a window: 384 for long contexts, or so that 95 % of the rows fit.

    Args:
        contexts: the context of each row; none if they are not known yet.
        rows: the question and the context of each row together.
    """
    if not contexts or max_length(contexts) > _LONG:
        return _WINDOW
    return max(_SHORTEST_WINDOW, max_length(rows))


def _estimated_tokens(text: str) -> float:
    unspaced = sum(not c.isascii() and unicodedata.name(c, "").startswith(_UNSPACED) for c in text)
    words, characters = len(text.split()), len(text) - unspaced
    by_words = _TOKENS_PER_WORD * words
    return unspaced + max(by_words, characters / _CHARACTERS_PER_TOKEN) + _SPECIAL_TOKENS


def validation_fraction(rows: int | None) -> float:
    """Return the share of the rows to hold out: more of few rows, where each counts for more."""
    return 0.2 if rows is not None and rows < SMALL else 0.1


def training(rows: int | None, backbone: str, is_text: bool) -> Training:
    """Return how to train on a number of rows; None: unknown.

    Args:
        rows: of the training source, possibly estimated.
        backbone: as in `model.backbone`.
        is_text: whether the rows are texts, not images.
    """
    size = MILLION_PARAMETERS.get(backbone)
    if rows is None or rows < SMALL or size is None:
        is_few = rows is None or rows < SMALL
        cause = "few rows make delicate" if is_few else "depend on the size of this backbone"
        reason = (
            "measures data, backbone and device, then chooses and logs method, learning rate, "
            f"epochs and batch size, which {cause}; or full, head, lora, top, lp_ft"
        )
        return Training("auto", {}, {"seed": 0}, reason)
    is_small = size < _SMALL_BACKBONE
    rates = text_rates(rows, is_small) if is_text else image_rates(is_small)
    epochs = text_epochs(rows) if is_text else image_epochs(rows)
    batch = 64 if is_text and rows >= LARGE else 32
    reason = (
        "trains every weight; or head (fast, weaker), lora (less memory), auto (measures first)"
    )
    return Training("full", rates, {"epochs": epochs, "batch_size": batch, "seed": 0}, reason)


def text_epochs(rows: int) -> int:
    """Return the epochs for 1,000 rows of text or more (Devlin 2019, appendix A.3)."""
    return 4 if rows < MEDIUM else 3 if rows < LARGE else 1


def image_epochs(rows: int) -> int:
    """Return the epochs for 1,000 images or more (BiT's rule: Kolesnikov 2020, section 3.3)."""
    steps = 500 if rows < MEDIUM else 10_000 if rows < LARGE else 20_000
    return max(5, math.ceil(steps * 32 / rows))


def text_rates(rows: int, is_small: bool) -> dict[str, float]:
    """Return `learning_rate` and, for fewer than 20,000 rows, `layer_decay`."""
    rate = 1e-4 if is_small else 3e-5
    if rows >= MEDIUM:
        return {"learning_rate": rate}
    if is_small:
        return {"learning_rate": 2 * rate, "layer_decay": 0.8}
    return {"learning_rate": rate, "layer_decay": 0.9}


def image_rates(is_small: bool) -> dict[str, float]:
    """Return `learning_rate`."""
    return {"learning_rate": 5e-4 if is_small else 5e-5}


def image_size(pixels: int | None) -> int:
    """Return the size of the images in the model, by that of the source, None if unknown."""
    return 96 if pixels is not None and pixels <= 64 else 160
