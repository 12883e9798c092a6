"""Windows over long texts: overlapping parts of a text, each of which the model reads by itself.

Devlin et al. 2019, "BERT", section 4.2, and the `doc_stride` of its code. A row of one text is
divided; in a pair the second text is, and each window begins with the first one. A row that fits
into the model is a single window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from tfft.config import TaskSection
from tfft.utils.errors import UserError

LONGEST_STRIDE = 128  # tokens, where `task.doc_stride` is auto


class WindowSettings(NamedTuple):
    """What is chosen of `Windows`, whatever the length of the model.

    Attributes:
        stride: tokens that two neighbouring windows share; None: chosen by their size.
        most: the most windows of a row.
        first: the most tokens of the first text of a pair; 0: single texts.
        least: least stride that is chosen, if half of a window has so many tokens.
    """

    stride: int | None = None
    most: int = 32
    first: int = 0
    least: int = 1

    @classmethod
    def of(cls, task: TaskSection) -> "WindowSettings | None":
        """Return the settings of a section `task`; None: its texts are not divided."""
        stride = getattr(task, "doc_stride", None)
        if stride is None:
            return None
        return cls(
            None if stride == "auto" else stride,
            task.max_windows,
            getattr(task, "max_question_length", 0),
            getattr(task, "max_answer_length", 1),
        )


@dataclass(frozen=True)
class Windows:
    """How a row is divided; all numbers count tokens, special ones excluded.

    Attributes:
        size: tokens of a window, those of the first text of a pair included.
        stride: tokens that two neighbouring windows share.
        most: the most windows of a row. What follows them in the text is cut off.
        first: the most tokens of the first text of a pair, which is cut after them; 0: single
            texts.
    """

    size: int
    stride: int
    most: int
    first: int = 0

    @classmethod
    def create(cls, size: int, settings: WindowSettings) -> "Windows":
        """Return windows of a size, with their stride checked or chosen.

        Raises:
            UserError: a window has no room for more than the first text and the stride.
        """
        stride, most, first, least = settings
        room = size - first
        if first and room < 2:
            raise UserError(
                f"task.max_question_length: must leave room for the context; a window has {size} "
                f"tokens beside the special ones (data.max_length). Received: {first}"
            )
        if room < 2:
            raise UserError(
                "data.max_length: a window needs two tokens beside the special ones. Received: "
                f"room for {room}"
            )
        chosen = max(min(LONGEST_STRIDE, room // 4), min(least, room // 2))
        chosen = chosen if stride is None else stride
        if chosen >= room:
            raise UserError(
                f"task.doc_stride: must be below the {room} tokens of a window's text "
                f"(data.max_length without special tokens{' and question' if first else ''}). "
                f"Received: {chosen}"
            )
        return cls(size, chosen, most, first)

    @property
    def settings(self) -> WindowSettings:
        """The settings from which they can be created again."""
        return WindowSettings(self.stride, self.most, self.first)

    def bounds(self, length: int, first_length: int = 0) -> list[tuple[int, int]]:
        """Return the first token of each window and one after its last.

        Args:
            length: tokens of the text that is divided.
            first_length: tokens of the first text of a pair.
        """
        room = self.size - first_length
        step = room - self.stride
        count = 1 + max(0, -(-(length - room) // step))
        return [(i * step, min(i * step + room, length)) for i in range(min(count, self.most))]


class Window(NamedTuple):
    """A window of a row: T tokens, special ones included.

    Attributes:
        ids: token ids.
        segments: segment ids.
        starts: first byte of the tokens that the window answers for, in the text; 0 for others.
        ends: one after their last byte; 0 for others.
        is_own: whether the window answers for a token.
        truncated: whether the text goes on after this window, the last one of its row, or the
            first text of a pair was cut.
    """

    ids: list[int]
    segments: list[int]
    starts: list[int]
    ends: list[int]
    is_own: list[bool]
    truncated: bool

    def add(
        self,
        ids: Sequence[int],
        segment: int,
        starts: Sequence[int] = (),
        ends: Sequence[int] = (),
        own_positions: range = range(0),
    ) -> None:
        """Append tokens; `own_positions` are those that the window answers for."""
        self.ids.extend(ids)
        self.segments.extend([segment] * len(ids))
        for position in range(len(ids)):
            is_own = position in own_positions
            self.is_own.append(is_own)
            self.starts.append(int(starts[position]) if is_own else 0)
            self.ends.append(int(ends[position]) if is_own else 0)


def own_tokens(bounds: Sequence[tuple[int, int]], is_pair: bool) -> list[tuple[int, int]]:
    """Return the tokens that each window answers for: the first one, and one after the last.

    In pairs, a window answers for all of its text, as in question answering by BERT. Of a single
    text, each token is answered for in one window: of the tokens that two windows share, the first
    half belongs to the first one, so that each token has context on both sides.

    Args:
        bounds: what `Windows.bounds` returned.
        is_pair: whether the row is a pair of texts.
    """
    if is_pair:
        return list(bounds)
    # The middle of what two neighbours share, rounded up.
    middles = [(first + end + 1) // 2 for (_, end), (first, _) in pairwise(bounds)]
    return list(zip([bounds[0][0], *middles], [*middles, bounds[-1][1]], strict=True))
