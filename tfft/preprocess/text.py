"""Turn texts into token ids: the host side, and the hand-over to the graph side."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from tfft.preprocess import template, words
from tfft.preprocess.offsets import byte_bounds
from tfft.preprocess.tokenizer import load_tokenizer
from tfft.preprocess.windows import Window, Windows, WindowSettings, own_tokens
from tfft.utils.errors import UserError
from tfft.utils.files import write_atomic
from tfft.utils.reading import MIB, is_unicode, library_errors, read_json, read_text

if TYPE_CHECKING:
    import tensorflow as tf

    from tfft.preprocess.graph import GraphTokenizer

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

# Of BERT, of RoBERTa and T5, of GPT-2.
PAD_TOKENS = ("[PAD]", "<pad>", "<|endoftext|>")


class TextInputs:
    """A tokenizer and the length at which it truncates (an `Inputs`).

    Args:
        spec: the tokenizer's description (`tokenizer.json`).
        max_length: the most tokens of a row, special tokens included; the longer text of a pair is
            truncated first (`longest_first` of transformers).
        pair: whether a row is two texts.
        where: names the description in errors.
        windows: how long rows are divided, for `windows_of`; None: they are truncated.
        columns: names of the raw columns; default: `text`, or `text` and `text_pair`.

    Raises:
        UserError: the description is broken, or `max_length` holds no more than the special tokens.
    """

    def __init__(
        self,
        spec: str,
        max_length: int,
        pair: bool = False,
        where: str = "tokenizer.json",
        windows: WindowSettings | None = None,
        columns: Sequence[str] | None = None,
    ):
        self.spec, self.max_length, self.pair = spec, max_length, pair
        self.columns = tuple(columns or (("text", "text_pair") if pair else ("text",)))
        self._host = load_tokenizer(spec, where)
        num_special = self._host.num_special_tokens_to_add(is_pair=pair)
        if max_length <= num_special:
            raise UserError(
                f"data.max_length: must exceed the {num_special} special tokens of a row. "
                f"Received: {max_length}"
            )
        self._host.enable_truncation(max_length, strategy="longest_first")
        self.windows: Windows | None = None
        if windows is not None:
            self.windows = Windows.create(max_length - num_special, windows)
            self._untruncated = load_tokenizer(spec, where)
            self._untruncated.no_truncation()
            description = json.loads(self._untruncated.to_str())["post_processor"]
            self._template = template.templates(description)[pair]
        ids = (self._host.token_to_id(token) for token in PAD_TOKENS)
        # Without a padding token any valid id serves: the padding mask hides it.
        self.pad_id = next((i for i in ids if i is not None), 0)

    @property
    def text(self) -> "TextInputs":
        """The inputs themselves."""
        return self

    @property
    def image(self) -> None:
        """None: rows have no image."""
        return None

    def row(self, value: str | Sequence[str]) -> tuple[str, ...]:
        """Return a raw row as a tuple of its texts.

        Raises:
            UserError: a pair is needed and one text was passed, or the reverse, or a text holds a
                lone surrogate.
        """
        texts = (value,) if isinstance(value, str) else tuple(value)
        if len(texts) != 1 + self.pair or not all(isinstance(text, str) for text in texts):
            expected = "a pair of texts" if self.pair else "one text"
            raise UserError(f"a row must be {expected}. Received: {value!r}")
        # A lone surrogate has no UTF-8 form, which the tokenizer and TensorFlow require.
        if not all(map(is_unicode, texts)):
            raise UserError(f"a row holds a lone surrogate. Received: {value!r}")
        return texts

    def request_row(self, row: tuple[str, ...]) -> tuple[str, ...]:
        """Return a row as a client of a served model sends it."""
        return row

    def length_hint(self, row: tuple[str, ...]) -> int:
        """Return the characters of a row, which grow with its tokens."""
        # Characters, because counting tokens would mean to tokenize.
        return sum(map(len, row))

    @property
    def vocabulary_size(self) -> int:
        """Number of embedding rows needed: the highest id, added tokens included, plus one."""
        return 1 + max(self._host.get_vocab(with_added_tokens=True).values())

    @property
    def fingerprint(self) -> str:
        """Digest that changes when any token id of any text could change."""
        windows = [] if self.windows is None else [self.windows.settings]
        parts = json.dumps([self.spec, self.max_length, self.pair, *windows])
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> list[tuple[list[int], list[int], bool]]:
        """Return (token ids, segment ids, whether it was truncated) for each row.

        The rows are encoded in parallel.
        """
        rows = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        # `overflowing` holds what truncation cut off.
        return [(e.ids, e.type_ids, bool(e.overflowing)) for e in self._host.encode_batch(rows)]

    def windows_of(self, *columns: Sequence[str]) -> list[list[Window]]:
        """Return the windows of each row.

        A token of a part of a character (byte-level BPE) has the bytes of the character.

        Args:
            columns: the texts of the rows, [B] each; two columns for pairs.
        """
        *firsts, texts = columns
        # A context is tokenised once for all of its questions.
        distinct = list(dict.fromkeys(texts))
        located = {}
        encodings = self._untruncated.encode_batch(distinct, add_special_tokens=False)
        for text, encoding in zip(distinct, encodings, strict=True):
            bounds = byte_bounds(text)  # the host counts characters
            starts, ends = ([bounds[span[side]] for span in encoding.offsets] for side in (0, 1))
            is_text = [0] * len(starts)
            located[text] = (encoding.ids, *words.strip_offsets(text, starts, ends, is_text))
        if not firsts:
            return [self._divide([], *located[text]) for text in texts]
        encodings = self._untruncated.encode_batch(list(firsts[0]), add_special_tokens=False)
        return [
            self._divide(encoding.ids, *located[text])
            for encoding, text in zip(encodings, texts, strict=True)
        ]

    def _divide(
        self, first_ids: list[int], ids: list[int], starts: np.ndarray, ends: np.ndarray
    ) -> list[Window]:
        """Return the windows of a row.

        Args:
            first_ids: of the first text of a pair.
            ids: of the text that is divided, [L].
            starts: first byte of each of its tokens, int32 [L].
            ends: one after its last byte, int32 [L].
        """
        is_cut = len(first_ids) > self.windows.first
        first_ids = first_ids[: self.windows.first]
        bounds = self.windows.bounds(len(ids), len(first_ids))
        result = []
        for (first, end), (own_first, own_end) in zip(
            bounds, own_tokens(bounds, self.pair), strict=True
        ):
            is_last_cut = end == bounds[-1][1] < len(ids)
            window = Window([], [], [], [], [], is_cut or is_last_cut)
            for part in self._template:
                if part.text == ("B" if self.pair else "A"):
                    positions = range(own_first - first, own_end - first)
                    window.add(
                        ids[first:end], part.segment, starts[first:end], ends[first:end], positions
                    )
                else:
                    window.add(first_ids if part.text else [part.token_id], part.segment)
            result.append(window)
        return result

    def located_batch(
        self, *columns: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Tokenise and pad the windows of rows, and locate their tokens.

        Args:
            columns: the texts of the rows, [B] each; two columns for pairs.

        Returns:
            The inputs of the E windows, as `batch` returns those of rows; and where their tokens
            are: `own` bool [E, T], the tokens that a window answers for; `starts` and `ends` int32
            [E, T], their bytes in the last text of the row, without white space, 0 for others;
            `row` int32 [E], the row of each window; `text`, the last texts as bytes [B]; and for
            single texts `first`, which of the `own` tokens begin a word, bool [E, T].
        """
        rows = self.windows_of(*columns)
        all_windows = [window for row in rows for window in row]
        shape = (len(all_windows), max((len(window.ids) for window in all_windows), default=0))
        arrays = empty_batch(*shape, self.pad_id)
        starts, ends = np.zeros((2, *shape), np.int32)
        is_own = np.zeros(shape, bool)
        for index, window in enumerate(all_windows):
            length = len(window.ids)
            arrays["token_ids"][index, :length] = window.ids
            arrays["segment_ids"][index, :length] = window.segments
            arrays["padding_mask"][index, :length] = 1
            starts[index, :length], ends[index, :length] = window.starts, window.ends
            is_own[index, :length] = window.is_own
        texts = columns[-1]
        tokens = {
            "own": is_own,
            "starts": starts,
            "ends": ends,
            "row": np.repeat(np.arange(len(rows), dtype=np.int32), list(map(len, rows))),
            "text": np.array([text.encode() for text in texts], object),
        }
        if not self.pair:
            first = np.zeros(shape, bool)
            ends_of_rows = np.cumsum(list(map(len, rows)))
            for text, row, end in zip(texts, rows, ends_of_rows, strict=True):
                # All windows at once: a word may begin in one and end in the next.
                part = slice(end - len(row), end)
                place = is_own[part]
                first[part][place] = words.first_tokens(
                    starts[part][place],
                    ends[part][place],
                    np.zeros(place.sum()),
                    words.word_starts(text),
                )
            tokens["first"] = first
        return arrays, tokens

    def lengths(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[int]:
        """Return the number of tokens of each row without truncation, special tokens included."""
        # A second tokenizer, because `self._host` truncates.
        tokenizer = Tokenizer.from_str(self.spec)
        rows = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        return [len(encoding.ids) for encoding in tokenizer.encode_batch(rows)]

    def batch(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Tokenise and pad: `{token_ids, padding_mask, segment_ids}`, int32 [B, T].

        T is the length of the longest row.
        """
        rows = self.encode(texts, pairs)
        width = max((len(ids) for ids, _, _ in rows), default=0)
        arrays = empty_batch(len(rows), width, self.pad_id)
        for index, (ids, segments, _) in enumerate(rows):
            arrays["token_ids"][index, : len(ids)] = ids
            arrays["segment_ids"][index, : len(ids)] = segments
            arrays["padding_mask"][index, : len(ids)] = 1
        return arrays

    def graph(self) -> "GraphTokenizer":
        """Return what computes `batch` as TensorFlow ops.

        Raises:
            UserError: a part of the tokenizer has no counterpart in the graph.
        """
        from tfft.preprocess.graph import GraphTokenizer

        with library_errors("tokenizer: it has no in-graph form"):
            return GraphTokenizer(self.spec, self.max_length, self.pad_id, self.windows)

    def input_specs(self) -> dict[str, "tf.TensorSpec"]:
        """Return the specs of the prepared inputs by name, as a signature takes them."""
        import tensorflow as tf

        names = ("token_ids", "padding_mask", "segment_ids")
        return {name: tf.TensorSpec([None, None], tf.int32, name) for name in names}

    @property
    def settings(self) -> dict[str, Any]:
        """What `restore` needs besides the tokenizer, as plain data."""
        # The padding id follows from the tokenizer.
        return {
            "max_length": self.max_length,
            "pair": self.pair,
            "columns": self.columns,
            "windows": None if self.windows is None else self.windows.settings,
        }

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `inputs.json`; `restore` reads them."""
        write_atomic(folder / "tokenizer.json", self.spec)
        write_atomic(folder / "inputs.json", json.dumps(self.settings))

    @classmethod
    def restore(cls, folder: Path) -> "TextInputs":
        """Load what `save` wrote to a folder."""
        settings, path = read_json(folder / "inputs.json"), folder / "tokenizer.json"
        settings.pop("image_spec", None)  # of the image beside the text
        if settings.get("windows") is not None:
            settings["windows"] = WindowSettings(*settings["windows"])
        return cls(read_text(path, 256 * MIB), **settings, where=str(path))


def empty_batch(rows: int, width: int, pad_id: int) -> dict[str, np.ndarray]:
    """Return a batch that consists of padding."""
    return {
        "token_ids": np.full((rows, width), pad_id, np.int32),
        "padding_mask": np.zeros((rows, width), np.int32),
        "segment_ids": np.zeros((rows, width), np.int32),
    }
