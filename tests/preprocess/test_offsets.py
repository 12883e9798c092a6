"""Host and graph locate each token at the same bytes of the raw text."""

import itertools
import json
import random
import unicodedata
from bisect import bisect_left

import numpy as np
import pytest
import tensorflow as tf
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from tests.preprocess.test_parity import (
    HARD,
    KINDS,
    random_texts,
    real_lines,
    real_specs,
    trained,
)
from tfft.preprocess import TextInputs, offsets, words
from tfft.preprocess.graph import offsets as graph_offsets
from tfft.preprocess.graph.codepoints import NUL, SEPARATOR
from tfft.preprocess.windows import WindowSettings, own_tokens
from tfft.utils.errors import UserError

TEXTS = [
    *HARD,
    "  caf\u00e9 cafe\u0301  \u00c5ngstr\u00f6m A\u030angstro\u0308m   ",
    "\u1e69 s\u0323\u0307 s\u0307\u0323 \u00e1\u0323 \u302e\u0323\u302fx \u0301 first",
    "\u6771\u4eac\u90fd2020\u5e74 \uff8a\uff9f\uff90\uff9f \ud55c\u1112\u1161\u11ab",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd\U0001f1e9\U0001f1ea",
    "a\tb\n\nc\r\nd\x00e\x01f\x7fg\u200bh\ufeffi\u00adj",
    "\u200b\u200dleading controls \ufb01\u200bx \u00bd\u200b \u3392\u200b",
    "[SEP] x [SEP]y</s><s> <mask> z[MASK]",
    "\u03a3\u039f\u03a6\u039f\u03a3 \u0130stanbul STRASSE stra\u00dfe \u1e9e",
]


def inputs_of(spec, max_length, is_pair=False):
    """Return a tokenizer that divides a text into 8 windows at most."""
    settings = WindowSettings(most=8, first=max_length // 4 if is_pair else 0)
    return TextInputs(spec, max_length, is_pair, windows=settings)


def library_tokens(spec, *columns):
    """Return ids, starts and ends in bytes of all tokens of the last text of each row.

    They are those of the tokenizers library, and of the raw text: white space is not stripped.
    """
    tokenizer = Tokenizer.from_str(spec)
    tokenizer.no_truncation()
    rows = list(zip(*columns, strict=True))
    encodings = tokenizer.encode_batch(rows if len(columns) > 1 else columns[0])
    result = []
    for row, encoding in zip(rows, encodings, strict=True):
        # The library counts characters.
        bounds = offsets.byte_bounds(row[-1])
        tokens = [i for i, n in enumerate(encoding.sequence_ids) if n == len(row) - 1]
        starts, ends = ([bounds[encoding.offsets[i][side]] for i in tokens] for side in (0, 1))
        result.append(([encoding.ids[i] for i in tokens], starts, ends))
    return result


def located_and_raw(*all_inputs):
    """Return a function of texts in the graph: what `located` returns, and ids and raw offsets.

    The raw offsets are those that `located` strips of white space, which could hide a difference.

    Args:
        all_inputs: tokenizers of one vocabulary; the tokens of the last text, which are the same
            for all, are computed and traced once.
    """
    graphs = [inputs.graph() for inputs in all_inputs]
    compute = graphs[0]._ids_and_offsets
    num_columns = [len(inputs.columns) for inputs in all_inputs]

    def located(*columns):
        tokens = compute(columns[-1])
        for graph in graphs:
            graph._ids_and_offsets = lambda _: tokens
        pairs = zip(graphs, num_columns, strict=True)
        return [graph.located(*columns[-count:]) for graph, count in pairs], tokens

    signature = [tf.TensorSpec([None], tf.string)] * max(num_columns)
    return tf.function(located, signature, autograph=False)


def assert_windows_equal(inputs, row, windows, tokens, first_length, encoded):
    """Assert that the windows of a row are the tokens of the library, without white space.

    Args:
        inputs: the tokenizer.
        row: the texts.
        windows: of the row.
        tokens: ids, starts and ends of its last text, untruncated.
        first_length: tokens of the first text of a pair.
        encoded: what `inputs.encode` returns of the row.
    """
    ids, starts, ends = tokens
    starts, ends = words.strip_offsets(row[-1], starts, ends, np.zeros(len(ids)))
    bounds = inputs.windows.bounds(len(ids), min(first_length, inputs.windows.first))
    spans = own_tokens(bounds, inputs.pair)
    for window, (first, end) in zip(windows, spans, strict=True):
        is_own = np.array(window.is_own, bool)
        for values, expected in (
            (window.ids, ids),
            (window.starts, starts.tolist()),
            (window.ends, ends.tolist()),
        ):
            assert np.array(values)[is_own].tolist() == expected[first:end], ascii(row)
        # Special tokens, and what a neighbour answers for.
        assert not np.array([window.starts, window.ends])[:, ~is_own].any(), ascii(row)
    is_first_cut, is_last_cut = first_length > inputs.windows.first, bounds[-1][1] < len(ids)
    flags = [is_first_cut] * (len(windows) - 1) + [is_first_cut or is_last_cut]
    assert [window.truncated for window in windows] == flags, ascii(row)
    is_cut = len(windows) > 1 or windows[0].truncated
    assert is_cut >= encoded[2], ascii(row)
    if not (inputs.pair and is_cut):
        assert (windows[0].ids, windows[0].segments, is_cut) == encoded, ascii(row)


def assert_equal(spec, max_length, texts, pair_length=None):
    """Assert that host, graph and tokenizers library give equal tokens and offsets, row for row.

    The first texts are a batch by themselves: all words of a batch take as many rounds as the
    longest.

    Args:
        spec: the description of the tokenizer.
        max_length: of a window of a text alone.
        texts: also the second texts of the pairs, whose first ones are the same in reverse order.
        pair_length: of a window of a pair; None: no pairs.
    """
    all_inputs = [inputs_of(spec, max_length)]
    if pair_length is not None:
        all_inputs.append(inputs_of(spec, pair_length, True))
    columns = [texts] if pair_length is None else [texts[::-1], texts]
    run = located_and_raw(*all_inputs)
    bounds = sorted({0, *range(len(TEXTS), len(texts), 500), len(texts)})
    for start, end in itertools.pairwise(bounds):
        rows = [column[start:end] for column in columns]
        outputs, (ids, raw) = run(*map(tf.constant, rows))
        in_graph = list(zip(*(values.to_list() for values in (ids, *raw)), strict=True))
        for inputs, graph in zip(all_inputs, outputs, strict=True):
            graph = {name: t.numpy() for name, t in graph.items()}
            assert_rows_equal(inputs, rows[-len(inputs.columns) :], graph, in_graph)


def assert_rows_equal(inputs, rows, graph, in_graph):
    """Assert that host, graph and tokenizers library give equal tokens and offsets.

    Args:
        inputs: the tokenizer.
        rows: the columns of texts.
        graph: what `located` returns in the graph.
        in_graph: ids, starts and ends of all tokens of each last text.
    """
    tokens = library_tokens(inputs.spec, *rows)
    for row, expected, actual in zip(zip(*rows, strict=True), tokens, in_graph, strict=True):
        assert actual == expected, ascii(row)

    all_windows = inputs.windows_of(*rows)
    first_lengths = [0] * len(tokens)
    if inputs.pair:
        first_lengths = [len(ids) for ids, _, _ in library_tokens(inputs.spec, rows[0])]
    arguments = (all_windows, tokens, first_lengths, inputs.encode(*rows))
    for row, *others in zip(zip(*rows, strict=True), *arguments, strict=True):
        assert_windows_equal(inputs, row, *others)

    batch, located = inputs.located_batch(*rows)
    # The graph cuts a text after its last token.
    window_ends = [
        inputs.windows.bounds(len(t[0]), min(n, inputs.windows.first))[-1][1]
        for t, n in zip(tokens, first_lengths, strict=True)
    ]
    sizes = [max(t[2][:n], default=0) for t, n in zip(tokens, window_ends, strict=True)]
    cut = [text[:size] for text, size in zip(located.pop("text"), sizes, strict=True)]
    assert graph.pop("text").tolist() == cut
    host = {**batch, **located}
    assert host.keys() == graph.keys()
    for name, values in host.items():  # padding included
        assert values.shape == graph[name].shape, name
        differs = (values != graph[name]).reshape(len(values), -1).any(axis=1)
        wrong = located["row"][differs]
        assert not differs.any(), (name, ascii([column[wrong[0]] for column in rows]))


def unicode_texts(count: int, seed: int, unicode=unicodedata) -> list[str]:
    """Return random strings over all of Unicode, most of them of what normalizers change.

    In `unicodedata.ucd_3_2_0` are characters whose Unicode forms both sides know.
    """
    generator = random.Random(seed)
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    if unicode is not unicodedata:
        characters = [c for c in characters if unicode.category(c) != "Cn"]
    pools = [
        characters,
        characters[:0x3400],
        [c for c in characters if unicodedata.category(c)[0] == "M"],
        [c for c in characters if unicodedata.decomposition(c)],
        list("abcdefghij .,!  \n\r\t"),
        ["\u200b", "\u200d", "\x00", "\r\n", "\x7f", "\ufeff", "[SEP]", "</s>", "<|endoftext|>"],
    ]
    texts = []
    for _ in range(count):
        selection = generator.sample(pools, generator.randint(1, 4))
        length = generator.randint(0, 25)
        text = "".join(generator.choice(generator.choice(selection)) for _ in range(length))
        # The graph reserves these two.
        texts.append(text.replace(SEPARATOR, "").replace(NUL, ""))
    return texts


def character_tokenizer(normalizer, **options) -> str:
    """Return a byte-level tokenizer whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    host_tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    host_tokenizer.normalizer = normalizer
    host_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**options)
    return host_tokenizer.to_str()


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.slow if k != "wordpiece" else ()) for k in KINDS],
)
def test_single_texts_and_pairs(kind):
    spec = trained(kind)
    texts = TEXTS + random_texts(60, 3) + unicode_texts(140, 4, unicodedata.ucd_3_2_0)
    assert_equal(spec, 512, texts, pair_length=17)


@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.NFC(),
        normalizers.NFD(),
        normalizers.NFKC(),
        normalizers.NFKD(),
        normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()]),
        normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()]),
        normalizers.Strip(left=False),
        normalizers.Sequence([normalizers.Prepend("xy"), normalizers.Replace("a", "bcd")]),
        normalizers.Replace(Regex(" {2,}|[a-f]+"), "-"),
        normalizers.Replace(Regex("[a-f]"), ""),
    ],
    ids=str,
)
def test_steps_of_normalizers(normalizer):
    random_ones = unicode_texts(100, 6, unicodedata.ucd_3_2_0)
    texts = [" ab  caf\u00e9 ", "", "  ", *TEXTS[len(HARD) :], *random_ones]
    assert_equal(character_tokenizer(normalizer, add_prefix_space=False), 512, texts)


@pytest.mark.parametrize(
    ("kind", "adds_space"),
    [
        ("bytes", True),
        pytest.param("roberta", False, marks=pytest.mark.slow),
        pytest.param("bytes", False, marks=pytest.mark.slow),
        pytest.param("roberta", True, marks=pytest.mark.slow),
    ],
)
def test_spaces_are_trimmed_as_on_the_host(kind, adds_space):
    host_tokenizer = Tokenizer.from_str(trained("bpe_prefix" if adds_space else "bpe"))
    if kind == "bytes":
        host_tokenizer.post_processor = processors.ByteLevel(
            add_prefix_space=adds_space, trim_offsets=True
        )
    host_tokenizer.add_special_tokens([AddedToken("<cut>", lstrip=True, rstrip=True)])
    texts = [" a  b<cut> c", "a  <cut>  b", "  \u00e9", " ", "   ", "\u3000a \u00a0b", "", "x"]
    texts += TEXTS[len(HARD) :]
    spec = host_tokenizer.to_str()
    assert_equal(spec, 512, texts, pair_length=16)


def test_a_vocabulary_without_all_bytes_has_no_offsets():
    spec = json.loads(character_tokenizer(normalizers.NFD()))
    spec["model"]["vocab"].pop("a")
    graph = inputs_of(json.dumps(spec), 24).graph()
    with pytest.raises(UserError, match="all 256 bytes"):
        graph.located(tf.constant(["a"]))


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_offsets_into_any_bytes_are_ordered_and_inside(kind):
    """Check texts that are not UTF-8, and those with characters that the graph reserves."""
    generator = random.Random(9)
    pool = [b"\xff", b"\xe4\xb8", b"\xf0\x9f\x98\x80", b"\x80", b"a", b" ", b"\0", b"\xcc\x81"]
    pool += [SEPARATOR.encode(), NUL.encode()]
    texts = [b"\xff\xfe red", b"sky\xe4\xb8", b"caf\xc3\xa9 \xf0\x9f\x98"]
    texts += [b"".join(generator.choices(pool, k=generator.randint(0, 12))) for _ in range(200)]
    (outputs,), (_, raw) = located_and_raw(inputs_of(trained(kind), 128))(tf.constant(texts))
    assert outputs["row"].numpy().tolist() == list(range(len(texts)))  # a window each
    fields = (outputs[name].numpy() for name in ("starts", "ends", "own"))
    columns = zip(texts, *fields, *(values.to_list() for values in raw), strict=True)
    for text, starts, ends, is_own, raw_starts, raw_ends in columns:
        assert is_own.sum() == len(raw_starts)
        for bounds in ((starts[is_own], ends[is_own]), (raw_starts, raw_ends)):
            spans = list(zip(*bounds, strict=True))
            assert all(0 <= s <= e <= len(text) for s, e in spans), text
            for axis in (0, 1):
                assert [span[axis] for span in spans] == sorted(span[axis] for span in spans), text


def test_bytes_that_are_not_utf8_have_places():
    spec = character_tokenizer(None, add_prefix_space=False)
    (outputs,), (_, raw) = located_and_raw(inputs_of(spec, 24))(tf.constant([b"a\xff b"]))
    # U+FFFD is three tokens.
    starts, ends = [[0, 1, 1, 1, 2, 3]], [[1, 2, 2, 2, 3, 4]]
    assert [values.to_list() for values in raw] == [starts, ends]
    # Of the space remains an empty range before the b.
    starts[0][4] = 3
    assert [outputs[name].numpy().tolist() for name in ("starts", "ends")] == [starts, ends]


def test_bytes_to_characters():
    texts = ["", "plain", "caf\u00e9 \u597d\U0001f600!", "\x00a\u0301"]
    for text in texts:
        size = len(text.encode())
        bounds = list(offsets.byte_bounds(text))
        assert bounds == [len(text[:n].encode()) for n in range(len(text) + 1)]
        every = list(range(size + 1))
        # An offset within a character becomes that of its end.
        expected = [bisect_left(bounds, offset) for offset in every]
        graph = graph_offsets.to_characters(tf.constant([text, "padding \u00e9"]), [every, every])
        assert graph.numpy()[0].tolist() == expected
    # Each byte that is not UTF-8 is one character.
    graph = graph_offsets.to_characters(tf.constant([b"\xff\xffa"]), [[0, 1, 2, 3]])
    assert graph.numpy().tolist() == [[0, 1, 2, 3]]


def locate_by(graph):
    return lambda text: graph.located(text)


@pytest.mark.parametrize(
    "kind",
    [
        "wordpiece",
        pytest.param("bpe", marks=pytest.mark.slow),
        pytest.param("unigram", marks=pytest.mark.slow),
    ],
)
def test_offsets_survive_a_saved_model(kind, tmp_path):
    inputs = inputs_of(trained(kind), 24)
    module = tf.Module()
    module.graph = inputs.graph()
    signature = [tf.TensorSpec([None], tf.string)]
    module.run = tf.function(locate_by(module.graph), signature, autograph=False)
    tf.saved_model.save(module, str(tmp_path / kind))
    outputs = tf.saved_model.load(str(tmp_path / kind)).run(tf.constant(TEXTS))
    batch, located = inputs.located_batch(TEXTS)
    located.pop("text")  # which the graph cuts
    for name, values in {**batch, **located}.items():
        np.testing.assert_array_equal(outputs[name], values, name)


@pytest.mark.slow
def test_hard_texts_with_real_vocabularies(vocabularies, tmp_path):
    texts = TEXTS + unicode_texts(300, 10)
    for spec in real_specs(vocabularies, tmp_path).values():
        assert_equal(spec, 128, texts, pair_length=17)


@pytest.mark.slow
def test_sampled_lines_of_real_data(real_data, vocabularies, tmp_path):
    """Check every 97th line of all text files, for the vocabularies of BERT, GPT-2 and T5."""
    lines = real_lines(real_data)[::97]
    for spec in real_specs(vocabularies, tmp_path).values():
        assert_equal(spec, 128, lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_all_lines_of_real_data(name, real_data, vocabularies, tmp_path):
    assert_equal(real_specs(vocabularies, tmp_path)[name], 128, real_lines(real_data))
