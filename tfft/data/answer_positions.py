"""Positions of answers: UTF-8 bytes, and the tokens of windows over a context.

A long context is divided into overlapping windows (BERT's `doc_stride`; Devlin et al. 2019, section
4.2). W windows of T tokens, special tokens and padding included.
"""

from collections.abc import Sequence

import numpy as np

NO_ANSWER = (-1, -1)  # span of a row without an answer


def byte_span(context: str, text: str, start: int) -> tuple[int, int]:
    """Return the UTF-8 bytes, end excluded, of an answer that starts at a character of a context.

    Offsets of tokens are in bytes where the tokenizer runs in the graph.
    """
    first = len(context[:start].encode())
    return first, first + len(text.encode())


def span_text(context: str, start: int, end: int) -> str:
    """Return the text of a span of a context.

    One that begins or ends within a character, as byte-level tokens may, is extended to the whole
    character.

    Args:
        context: the text.
        start, end: the span in UTF-8 bytes, end excluded.
    """
    if end <= start:
        return ""
    encoded = context.encode()
    # All bytes of a character but its first are 0b10xxxxxx.
    while start > 0 and encoded[start] & 0xC0 == 0x80:
        start -= 1
    while end < len(encoded) and encoded[end] & 0xC0 == 0x80:
        end += 1
    return encoded[start:end].decode()


def token_targets(
    spans: np.ndarray | Sequence[tuple[int, int]],
    offsets: np.ndarray,
    is_context: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last token of each window's answer, both int64 [W].

    They are 0, the position of the CLS token, where the answer is not wholly inside of the window,
    or there is none. As in `prepare_train_features` of transformers' run_qa.py, with one
    difference: for an answer in the last token of a context, run_qa counts on through the special
    tokens and the padding, and returns the end of the window as the first token.

    Args:
        spans: the answer of each window's row in its context, end excluded, [W, 2]; in the unit of
            the offsets. `NO_ANSWER` for a row without one.
        offsets: start and end of each token in the context, [W, T, 2], end excluded; those of the
            context's tokens do not decrease.
        is_context: whether a token is one of the context, bool [W, T].

    Raises:
        ValueError: the arrays do not have these shapes.
    """
    answers, offsets = np.asarray(spans, np.int64).reshape(-1, 2), np.asarray(offsets)
    windows, length = is_context.shape
    if offsets.shape != (windows, length, 2) or len(answers) != windows:
        raise ValueError(
            f"spans must be [{windows}, 2] and offsets [{windows}, {length}, 2], as is_context is "
            f"{list(is_context.shape)}. Received: {list(answers.shape)}, {list(offsets.shape)}"
        )
    if not length:
        return np.zeros(windows, np.int64), np.zeros(windows, np.int64)
    start, end = answers[:, :1], answers[:, 1:]  # [W, 1]
    begins_before = is_context & (offsets[..., 0] <= start)  # [W, T]
    reaches_end = is_context & (offsets[..., 1] >= end)
    # The last token that begins at the answer's start or before, the first that reaches its end.
    first = length - 1 - begins_before[:, ::-1].argmax(axis=1)
    last = reaches_end.argmax(axis=1)
    # No context token begins before the answer, or none reaches its end.
    is_inside = begins_before.any(axis=1) & reaches_end.any(axis=1)
    is_inside &= answers[:, 0] >= 0
    return np.where(is_inside, first, 0), np.where(is_inside, last, 0)
