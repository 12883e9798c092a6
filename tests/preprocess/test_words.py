"""Words, and the tokens that begin them: host and graph agree with plain definitions."""

import itertools
import random
import unicodedata

import numpy as np
import pytest
import tensorflow as tf
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.preprocess.test_offsets import TEXTS, inputs_of, library_tokens, unicode_texts
from tests.preprocess.test_parity import random_texts, real_lines, real_specs, trained
from tfft.preprocess import words
from tfft.preprocess.graph import words as graph_words
from tfft.preprocess.tokenizer import byte_alphabet


def is_letter(character):
    if any(first <= ord(character) <= last for first, last in words._IDEOGRAPHS):
        return False
    return character in "_\u00ad\u200c\u200d" or unicodedata.category(character)[0] in "LMN"


def expected_starts(text: str) -> list[int]:
    """Return where words begin by going through the characters."""
    starts, size, previous = [], 0, " "
    for character in text:
        if is_letter(character):
            if not is_letter(previous):
                starts.append(size)
        elif not character.isspace():
            starts.append(size)
        size += len(character.encode())
        previous = character
    return starts


def expected_first(starts, ends, sequence, bounds) -> list[bool]:
    """Return which tokens are the first of their word by going through the tokens."""
    result, earlier = [], set()
    for start, end, number in zip(starts, ends, sequence, strict=True):
        word = max((i for i, bound in enumerate(bounds) if bound <= start), default=None)
        has_word = number == 0 and start < end and word is not None
        result.append(has_word and word not in earlier)
        if has_word:
            earlier.add(word)
    return result


def expected_range(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a range of bytes without the white space at its ends."""
    part = text.encode()[start:end].decode()
    start += len(part.encode()) - len(part.lstrip().encode())
    return start, start + len(part.strip().encode())


def words_of(text: str) -> list[str]:
    starts = words.word_starts(text)
    bounds = itertools.pairwise([*starts, len(text.encode())])
    return [text.encode()[start:end].decode().rstrip() for start, end in bounds]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (" \t\u3000\u2028\x1f", ""),
        ("U.S.", "U . S ."),
        (" don't  go_on2\u00a0now", "don ' t go_on2 now"),
        ("cafe\u0301 \u0ba8\u0bbf\u0bb2\u0bbe", "cafe\u0301 \u0ba8\u0bbf\u0bb2\u0bbe"),
        (
            "\u6771\u4eac2020\u5e74\u3001\u00bd\u2167",
            "\u6771 \u4eac 2020 \u5e74 \u3001 \u00bd\u2167",
        ),
        ("\u30ab\u30ca \ud55c\uad6d\uc5b4", "\u30ab \u30ca \ud55c\uad6d\uc5b4"),
        (
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        ),
        ("\U0001f1ea\U0001f1fa\U0001f600", "\U0001f1ea \U0001f1fa \U0001f600"),
        ("a\u200bb\ufeff", "a \u200b b \ufeff"),
    ],
    ids=ascii,
)
def test_words_of_texts(text, expected):
    assert words_of(text) == [word for word in expected.split(" ") if word]


def test_all_code_points_agree():
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    text = "".join(f"a{c}" for c in characters)
    host = words.word_starts(text)
    assert host == expected_starts(text)
    graph = graph_words.word_starts(tf.constant([text, "", "\ufeffa"]))
    np.testing.assert_array_equal(graph[0], host)
    assert graph[1:].to_list() == [[], [0, 3]]


def test_word_starts_of_difficult_texts():
    texts = [*TEXTS, *random_texts(300, 1), *unicode_texts(300, 2)]
    expected = [expected_starts(text) for text in texts]
    assert [words.word_starts(text) for text in texts] == expected
    assert graph_words.word_starts(tf.constant(texts)).to_list() == expected


def test_bytes_that_are_not_utf8_are_words():
    texts = [b"a\xffb c", b"\xff\xfe", b"\xc3\xa9\xe4\xb8 x", b"", b"a\0b"]
    starts = graph_words.word_starts(tf.constant(texts)).to_list()
    assert starts == [[0, 1, 2, 4], [0, 1], [0, 2, 5], [], [0, 1, 2]]
    # The ranges from space to space.
    offsets = [[[2, 4], [3, 5]], [[0, 1], [0, 2]], [[2, 5], [4, 6]], [[0, 0]] * 2, [[0, 1], [1, 3]]]
    begin, end = np.moveaxis(np.array(offsets, np.int32), 2, 0)
    begin, end = graph_words.strip_offsets(tf.constant(texts), begin, end, tf.zeros_like(begin))
    offsets[0], offsets[2] = [[2, 3], [4, 5]], [[2, 4], [5, 6]]
    assert tf.stack([begin, end], axis=2).numpy().tolist() == offsets


def test_a_lone_surrogate_has_no_bytes():
    with pytest.raises(UnicodeEncodeError):
        words.word_starts("a \ud800")
    with pytest.raises(UnicodeEncodeError):
        words.strip_offsets("a \ud800", [0], [1], [0])


@pytest.mark.parametrize("seed", range(4))
def test_first_tokens_of_random_offsets(seed):
    generator = random.Random(seed)
    rows, width = 80, (1, 7, 20, 0)[seed]
    shape = (rows, width)
    starts = np.array(generator.choices(range(30), k=rows * width), np.int32).reshape(shape)
    starts[::2].sort(axis=1)  # tokens are ordered; the definition does not depend on it
    ends = starts + np.array(generator.choices(range(4), k=rows * width), np.int32).reshape(shape)
    sequence = np.array(generator.choices((-1, 0, 0, 0, 1), k=rows * width), np.int32)
    sequence = sequence.reshape(shape)
    bounds = [sorted(generator.sample(range(30), generator.randint(0, 9))) for _ in range(rows)]
    columns = list(zip(starts.tolist(), ends.tolist(), sequence.tolist(), bounds, strict=True))
    expected = [expected_first(*row) for row in columns]
    assert [words.first_tokens(*row).tolist() for row in columns] == expected
    ragged = tf.ragged.constant(bounds, tf.int32)
    assert graph_words.first_tokens(starts, ends, sequence, ragged).numpy().tolist() == expected


def test_words_under_a_token_of_an_earlier_word_belong_to_it():
    """In `a.b c`, `.` and b are under the second token of the word a, and c is cut off."""
    starts, ends = [0, 0, 1, 0], [0, 1, 4, 0]
    tokens = words.tokens_of_words(starts, ends, [-1, 0, 0, -1], [0, 2, 3, 5])
    assert tokens.tolist() == [1, -3, -3, -1]
    assert words.words_of_tokens(starts, ends, [-1, 0, 0, -1], [0, 2, 3, 5]).tolist() == [
        -1,
        0,
        0,
        -1,
    ]


def test_rows_without_words_have_no_first_token():
    zeros = tf.zeros([2, 3], tf.int32)
    starts = graph_words.word_starts(tf.constant(["", " \n"]))
    assert not graph_words.first_tokens(zeros, zeros + 1, zeros, starts).numpy().any()
    assert not words.first_tokens([0, 1], [1, 2], [0, 0], []).any()
    for shape in ((0, 3), (0, 0)):  # no row
        none, text = tf.zeros(shape, tf.int32), tf.constant([], tf.string)
        outputs = graph_words.strip_offsets(text, none, none, none)
        outputs += (graph_words.first_tokens(*outputs, none, graph_words.word_starts(text)),)
        assert [output.shape for output in outputs] == [shape] * 3


def test_white_space_is_stripped():
    generator = random.Random(3)
    texts = [*TEXTS, *random_texts(200, 4), *unicode_texts(100, 5)]
    width = 12
    starts, ends, sequence = (np.zeros((len(texts), width), np.int32) for _ in range(3))
    for row, text in enumerate(texts):
        sizes = np.cumsum([0, *(len(c.encode()) for c in text)])
        for column in range(width):
            starts[row, column], ends[row, column] = sorted(generator.choices(sizes, k=2))
            sequence[row, column] = generator.choice((-1, 0, 0, 0, 1))
    graph = graph_words.strip_offsets(tf.constant(texts), starts, ends, sequence)
    for row, text in enumerate(texts):
        host = words.strip_offsets(text, starts[row], ends[row], sequence[row])
        expected = [
            expected_range(text, start, end) if number == 0 else (0, 0)
            for start, end, number in zip(starts[row], ends[row], sequence[row], strict=True)
        ]
        assert np.stack(host, axis=1).tolist() == [list(pair) for pair in expected], ascii(text)
        assert [x.dtype for x in host] == [np.int32, np.int32]
        np.testing.assert_array_equal(host, [x[row] for x in graph])


def library_words(spec, texts):
    """Return the tokens of the tokenizers library without white space, for each text.

    Returns:
        The first byte of each token, one after its last, and which tokens begin a word.
    """
    result = []
    for text, (_, starts, ends) in zip(texts, library_tokens(spec, texts), strict=True):
        zeros = np.zeros(len(starts))
        begin, end = words.strip_offsets(text, starts, ends, zeros)
        first = words.first_tokens(begin, end, zeros, words.word_starts(text))
        result.append((begin, end, first))
    return result


def assert_equal(inputs, run, texts):
    """Assert that `located` in the graph equals the host and the library, row by row."""
    graph = {name: t.numpy() for name, t in run(tf.constant(texts)).items()}
    _, host = inputs.located_batch(texts)
    for name in ("row", "own", "starts", "ends", "first"):
        np.testing.assert_array_equal(graph[name], host[name], name)
    assert not graph["first"][~graph["own"]].any()
    all_windows = inputs.windows_of(texts)
    expected = library_words(inputs.spec, texts)
    for row, (text, windows) in enumerate(zip(texts, all_windows, strict=True)):
        # The tokens of all windows, each in the window that answers for it.
        is_own = graph["own"] & (graph["row"] == row)[:, None]
        length = is_own.sum()
        assert length == len(expected[row][0]) or windows[-1].truncated, ascii(text)
        for name, values in zip(("starts", "ends", "first"), expected[row], strict=True):
            np.testing.assert_array_equal(graph[name][is_own], values[:length], ascii(text))


def in_graph(graph):
    """Return what locates the first tokens of texts, tokenizer included."""
    signature = [tf.TensorSpec([None], tf.string)]
    return tf.function(lambda text: graph.located(text), signature, autograph=False)


def spaced() -> str:
    """Return a tokenizer whose tokens include the space before a word, as those of GPT-2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = byte_alphabet()[ord(" ")]
    vocabulary = [*alphabet, f"{space}s", "is"]
    model = models.BPE({c: i for i, c in enumerate(vocabulary)}, [(space, "s"), ("i", "s")])
    host_tokenizer = Tokenizer(model)
    host_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return host_tokenizer.to_str()


def test_tokens_with_spaces_begin_words_also_in_a_saved_model(tmp_path):
    text = "  red sky,\tis\u3000it "
    ((_, raw_starts, raw_ends),) = library_tokens(spaced(), [text])
    assert " s" in [text[start:end] for start, end in zip(raw_starts, raw_ends, strict=True)]
    ((begin, end, first),) = library_words(spaced(), [text])
    starts = words.word_starts(text)
    assert begin[first].tolist() == starts  # each word has one

    inputs, module = inputs_of(spaced(), 64), tf.Module()
    module.graph = inputs.graph()
    module.run = in_graph(module.graph)
    tf.saved_model.save(module, str(tmp_path / "words"))
    assert_equal(inputs, tf.saved_model.load(str(tmp_path / "words")).run, [text])
    ((window,),) = inputs.windows_of([text])
    assert (window.starts, window.ends) == (begin.tolist(), end.tolist())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wordpiece", "bpe_prefix", "spaced", "unigram", "unigram_spaces"])
def test_first_tokens_of_tokenizers_in_the_graph(kind):
    inputs = inputs_of(spaced() if kind == "spaced" else trained(kind), 64)
    texts = [*TEXTS, *random_texts(200, 6), *unicode_texts(200, 7, unicodedata.ucd_3_2_0)]
    assert_equal(inputs, in_graph(inputs.graph()), texts)


@pytest.mark.slow
def test_words_of_all_lines_of_real_data(real_data):
    lines = real_lines(real_data)
    signature = [tf.TensorSpec([None], tf.string)]
    run = tf.function(graph_words.word_starts, signature, autograph=False)
    for start in range(0, len(lines), 2000):
        part = lines[start : start + 2000]
        host = [words.word_starts(line) for line in part]
        assert run(tf.constant(part)).to_list() == host
        assert host[::50] == [expected_starts(line) for line in part[::50]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_first_tokens_of_real_data(name, real_data, vocabularies, tmp_path):
    """Check every 97th line of all text files."""
    inputs = inputs_of(real_specs(vocabularies, tmp_path)[name], 128)
    lines, run = real_lines(real_data)[::97], in_graph(inputs.graph())
    for start in range(0, len(lines), 500):
        assert_equal(inputs, run, lines[start : start + 500])
