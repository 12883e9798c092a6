"""Targets of question answering: the places of the answers in a context."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfft.config import DataConfig
from tfft.data import answer_positions, squad
from tfft.data.records import BadRow, Columns, Row
from tfft.data.targets import Locate
from tfft.preprocess.windows import Window
from tfft.utils.ragged import Ragged

if TYPE_CHECKING:  # `prepared` imports `targets`
    from tfft.data.prepared import Prepared, Writer
    from tfft.data.splits import Dataset

NAMES = ("start", "end")  # the logits of a token: where an answer starts and where it ends
_CHUNK = 1024  # windows whose targets are computed at once


@dataclass(frozen=True)
class AnswerTargets:
    """Any number of answers: their bytes in the context, int32 `Ragged` [N] of [2]."""

    width = 1
    of_windows = True
    files = ("answers", "answer_ends", "token_starts", "token_ends")
    noun = "outputs (start, end)"

    @property
    def settings(self) -> list[Any]:
        """Plain data that the stored targets depend on."""
        return ["answers", 1]

    def read(self, row: Row, columns: Columns) -> Row | BadRow:
        """Return the row as question, context, and the spans of its answers in bytes."""
        *texts, answers = row.values
        for column, text in zip(columns, texts, strict=False):
            if not isinstance(text, str):
                kind = type(text).__name__
                return BadRow(row.place, f"column {column!r} must be a text. Received: {kind}")
        context = texts[-1]
        if isinstance(answers, str):
            reason = f"column {columns[-1]!r} must be a list of answers; csv cannot hold them"
            return BadRow(row.place, f"{reason}, jsonl can. Received: text")
        try:
            # Tokens are located without white space, so answers are too.
            spans = [
                answer_positions.byte_span(
                    context, text.strip(), start + len(text) - len(text.lstrip())
                )
                for text, start in squad.answers_of(answers, context)
            ]
        except UnicodeEncodeError:
            spans = []  # `sources.read` names the text that has no bytes
        except ValueError as error:
            return BadRow(row.place, f"column {columns[-1]!r}: {error}")
        return Row(row.place, (*texts, spans))

    def labels(self, value: Any) -> Sequence[str]:
        """Return nothing: rows are not located by their answers."""
        return ()

    def problem(self, value: str) -> str | None:
        """Return None: `read` has checked the answers."""
        return None

    def write(self, writer: "Writer", rows: Sequence[Row]) -> None:
        """Append the spans of the answers of some rows."""
        spans = [np.array(row.values[-1], np.int32).reshape(-1, 2) for row in rows]
        writer.put_ragged("answer", spans)

    def write_windows(self, writer: "Writer", row: Row, windows: Sequence[Window]) -> None:
        """Append where the tokens of the windows are in the context; -1 for other tokens."""
        for window in windows:
            is_own = np.array(window.is_own, bool)
            writer.put("token_starts", np.where(is_own, window.starts, -1).astype(np.int32))
            writer.put("token_ends", np.where(is_own, window.ends, -1).astype(np.int32))

    def lost(self, split: "Dataset") -> str | None:
        """Return how many questions have an answer that no window holds; None if there is none."""
        in_window = (token_targets(split) > 0).any(axis=1)
        has_answer = split.targets.lengths > 0
        lost = len(np.setdiff1d(np.flatnonzero(has_answer), split.example_rows[in_window]))
        if not lost:
            return None
        return (
            f"{lost:,} answers lie in no window: they are longer than doc_stride, beyond "
            "max_windows, or of characters that the tokenizer drops"
        )

    def names(
        self,
        config: DataConfig,
        stored: Sequence[str] | None,
        prepared: "Prepared",
        locate: Locate,
    ) -> tuple[str, ...]:
        """Return the names of the outputs of a token."""
        return NAMES

    def array(
        self, prepared: "Prepared", names: Sequence[str], config: DataConfig, locate: Locate
    ) -> Ragged:
        """Return the spans of the answers, bytes from start to end, int32 [answers, 2]."""
        ends = np.array(prepared.map("answer_ends", np.int64))
        return Ragged(np.array(prepared.map("answers", np.int32)).reshape(-1, 2), ends)

    def check(self, names: Sequence[str], locate: Locate) -> None:
        """Do nothing: the names of the outputs are fixed."""

    def groups(self, targets: Ragged) -> np.ndarray:
        """Return whether each row has an answer."""
        return (targets.lengths > 0).astype(np.int64)

    def units(self, prepared: Any) -> np.ndarray:
        """Return the number of each row's context: its questions are held out together."""
        numbers: dict[str, int] = {}
        contexts = (prepared.raw_row(row)[-1] for row in range(prepared.rows))
        return np.array([numbers.setdefault(context, len(numbers)) for context in contexts])

    def text(self, target: np.ndarray, names: Sequence[str]) -> str:
        """Return the places of the answers in bytes."""
        return ", ".join(f"{start} to {end}" for start, end in target) or "no answer"

    def summary(self, targets: Ragged, names: Sequence[str]) -> dict[str, int | float]:
        """Return how many questions have an answer, and how many answers there are."""
        return {
            "questions": len(targets),
            "without an answer": int((targets.lengths == 0).sum()),
            "answers": len(targets.values),
        }


ANSWERS = AnswerTargets()


def token_places(
    split: "Dataset", positions: np.ndarray, width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return where the tokens of some windows are in their contexts.

    Args:
        split: the questions.
        positions: of the windows in `split.examples`, int [B].
        width: T; default: tokens of the longest window.

    Returns:
        The first byte of each token and one after its last, int [B, T, 2], and whether it is a
        token of the context, bool [B, T].
    """
    starts, ends = split.token_offsets
    indices, rows = starts.indices(positions)
    columns = indices - starts.starts[positions][rows]
    width = int(starts.lengths[positions].max(initial=0)) if width is None else width
    places = np.zeros((len(positions), width, 2), np.int64)
    is_context = np.zeros((len(positions), width), bool)
    places[rows, columns, 0] = starts.values[indices]
    places[rows, columns, 1] = ends.values[indices]
    is_context[rows, columns] = starts.values[indices] >= 0
    return places, is_context


def token_targets(split: "Dataset") -> np.ndarray:
    """Return the first and the last token of the first answer in each window, int32 [E, 2].

    They are 0 where the window does not hold all of it, or there is none.

    Args:
        split: the questions.
    """
    targets: Ragged = split.targets
    has_answer = targets.lengths > 0
    spans = np.full((len(targets), 2), answer_positions.NO_ANSWER)
    spans[has_answer] = targets.values[targets.starts[has_answer]]
    result = np.zeros((len(split.examples), 2), np.int32)
    for start in range(0, len(result), _CHUNK):
        positions = np.arange(start, min(start + _CHUNK, len(result)))
        places, is_context = token_places(split, positions)
        bounds = answer_positions.token_targets(
            spans[split.example_rows[positions]], places, is_context
        )
        result[positions] = np.stack(bounds, axis=1)
    return result
