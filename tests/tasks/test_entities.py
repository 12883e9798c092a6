"""Decoding of entities in the graph, against a plain loop over `data.tags.spans`."""

import random

import numpy as np
import pytest
import tensorflow as tf

from tfft.data import tags
from tfft.preprocess import words
from tfft.preprocess.graph import offsets
from tfft.tasks import entities

TYPES = ["LOC", "PER", "corp\u00e9", "work of art"]
NAMES = tags.names(TYPES)
SIZE = 5  # slots of entities
FIELDS = ("entity", "type", "start", "end", "start_byte", "end_byte", "score")


def expected_entities(tag_ids, scores, first, starts, ends, text):
    """Return the entities of a row as (bytes, type, start byte, end byte, score), all of them."""
    positions = [i for i, is_first in enumerate(first) if is_first]
    result = []
    for name, begin, end in tags.spans([NAMES[tag_ids[i]] for i in positions]):
        start_byte = starts[positions[begin]]
        stop = positions[end] if end < len(positions) else len(first)
        tokens = range(positions[end - 1], stop)  # of the last word
        end_byte = max(ends[i] for i in tokens if starts[i] < ends[i])
        score = np.mean([scores[i] for i in positions[begin:end]])
        result.append((text[start_byte:end_byte], name, start_byte, end_byte, score))
    return result


def assert_decoded(outputs, batch):
    """Assert that outputs are those of the loop, in slots, with offsets in characters as well."""
    outputs = {name: values.numpy() for name, values in outputs.items()}
    text = batch["text"]
    characters = [
        offsets.to_characters(tf.constant(text), outputs[side]).numpy()
        for side in ("start_byte", "end_byte")
    ]
    np.testing.assert_array_equal([outputs["start"], outputs["end"]], characters)
    for row in range(len(text)):
        columns = [batch[name][row] for name in ("tag_ids", "scores", "first", "starts", "ends")]
        expected = expected_entities(*(column.tolist() for column in columns), text[row])
        assert outputs["count"][row] == len(expected)
        number = min(len(expected), SIZE)
        for slot, (entity, name, start, end, score) in enumerate(expected[:SIZE]):
            actual = {field: outputs[field][row, slot] for field in FIELDS}
            assert actual["entity"] == entity
            assert actual["type"].decode() == name
            assert (actual["start_byte"], actual["end_byte"]) == (start, end)
            assert actual["score"] == pytest.approx(score, rel=1e-6)
            try:
                prefixes = [len(text[row][:bound].decode()) for bound in (start, end)]
            except UnicodeDecodeError:
                continue
            assert [actual["start"], actual["end"]] == prefixes
        for field in FIELDS:
            is_text = field in ("entity", "type")
            assert (outputs[field][row, number:] == (b"" if is_text else 0)).all()


PIECES = ["a", "bc", "New", "\u00e9", "\u6771\u4eac", "\U0001f600", "_", ".", "e\u0301", " ", "  "]
BROKEN = [b"\xff", b"\xe4\xb8", b"\xf0\x9f\x98", b"x", b" ", "\u00e9".encode(), b"\x80"]


def random_row(generator, width, pieces):
    """Return a text of random pieces, and tokens of one or two pieces or of a special token."""
    text, tokens = b"", []
    while len(tokens) < width and generator.random() < 0.97:
        if generator.random() < 0.15:
            tokens.append((0, 0))
            continue
        start = len(text)
        for _ in range(generator.randint(1, 2)):
            text += generator.choice(pieces)
        # Several tokens may be of one character.
        tokens += [(start, len(text))] * generator.choice((1, 1, 1, 2))
        if generator.random() < 0.1:  # white space that was stripped off a token
            text += b" "
            tokens.append((len(text), len(text)))
    tokens = tokens[:width]
    return text, tokens + [(0, 0)] * (width - len(tokens))


def random_batch(generator, rows, width, pieces, outside):
    """Return random arguments of `decode` but for the types; `outside` is the share of tags O."""
    drawn = [random_row(generator, width, pieces) for _ in range(rows)]
    ranges = np.array([tokens for _, tokens in drawn], np.int32).reshape(rows, width, 2)
    starts, ends = ranges[..., 0], ranges[..., 1]
    draws = np.random.default_rng(generator.randrange(2**32))
    return {
        "tag_ids": np.where(
            draws.random((rows, width)) < outside, 0, draws.integers(len(NAMES), size=(rows, width))
        ).astype(np.int32),
        "scores": draws.random((rows, width), np.float32),
        "first": (starts < ends) & (draws.random((rows, width)) < 0.7),
        "starts": starts,
        "ends": ends,
        "text": [text for text, _ in drawn],
    }


@tf.function(
    input_signature=[
        tf.TensorSpec([None, None], tf.int32, "tag_ids"),
        tf.TensorSpec([None, None], tf.float32, "scores"),
        tf.TensorSpec([None, None], tf.bool, "first"),
        tf.TensorSpec([None, None], tf.int32, "starts"),
        tf.TensorSpec([None, None], tf.int32, "ends"),
        tf.TensorSpec([None], tf.string, "text"),
    ]
)
def decode(tag_ids, scores, first, starts, ends, text):
    return entities.decode(tag_ids, scores, first, starts, ends, text, TYPES, SIZE)


def run(function, batch):
    return function(**{name: tf.constant(values) for name, values in batch.items()})


@pytest.mark.parametrize("pieces", [[p.encode() for p in PIECES], BROKEN], ids=["utf8", "bytes"])
@pytest.mark.parametrize("width", [1, 2, 9, 40])
def test_random_tags_have_the_entities_of_spans(width, pieces):
    generator = random.Random(width)
    cut = 0
    for outside in (0.0, 0.3, 0.8, 1.0):
        batch = random_batch(generator, 60, width, pieces, outside)
        outputs = run(decode, batch)
        assert_decoded(outputs, batch)
        cut += (outputs["count"].numpy() > SIZE).sum()
    assert (cut > 0) == (width > SIZE)


def test_every_short_chain_of_two_types():
    """Check all sequences of four tags, those of a row beside those of the next."""
    grid = np.stack(np.meshgrid(*[np.arange(5)] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    rows = len(grid)
    starts = np.tile(np.array([0, 2, 4, 6], np.int32), (rows, 1))
    batch = {
        "tag_ids": grid.astype(np.int32),
        "scores": np.full((rows, 4), 0.5, np.float32),
        "first": np.ones((rows, 4), bool),
        "starts": starts,
        "ends": starts + 1,
        "text": [b"a b c d"] * rows,
    }
    assert_decoded(run(decode, batch), batch)


def test_a_sentence():
    text = "Zo\u00eb flew to New York."
    bounds = [(0, 0), (0, 4), (5, 7), (7, 9), (10, 12), (13, 16), (17, 19), (19, 21), (21, 22)]
    starts, ends = np.array(bounds, np.int32).T
    sequence = [-1, *[0] * 8]
    first = words.first_tokens(starts, ends, sequence, words.word_starts(text))
    assert np.flatnonzero(first).tolist() == [1, 2, 4, 5, 6, 8]
    # Tokens that do not begin a word have tags that do not count.
    row_tags = ["O", "B-PER", "O", "B-LOC", "O", "I-LOC", "I-LOC", "B-PER", "O"]
    tag_ids = [NAMES.index(tag) for tag in row_tags]
    scores = np.array([0.1, 0.9, 0.8, 0.1, 0.7, 0.5, 1.0, 0.1, 0.6], np.float32)
    batch = {
        "tag_ids": np.array([tag_ids], np.int32),
        "scores": scores[None],
        "first": first[None],
        "starts": starts[None],
        "ends": ends[None],
        "text": [text.encode()],
    }
    outputs = {name: values.numpy().tolist()[0] for name, values in run(decode, batch).items()}
    assert [entity.decode() for entity in outputs["entity"]] == ["Zo\u00eb", "New York", "", "", ""]
    assert outputs["type"] == [b"PER", b"LOC", b"", b"", b""]
    assert outputs["start"] == [0, 12, 0, 0, 0]
    assert outputs["end"] == [3, 20, 0, 0, 0]
    assert outputs["start_byte"] == [0, 13, 0, 0, 0]
    assert outputs["end_byte"] == [4, 21, 0, 0, 0]
    assert outputs["score"] == pytest.approx([0.9, 0.75, 0, 0, 0])
    assert outputs["count"] == 2


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (2, 0), (2, 3)])
def test_rows_without_tokens_and_batches_without_rows(shape):
    batch = {
        "tag_ids": np.ones(shape, np.int32),
        "scores": np.ones(shape, np.float32),
        "first": np.zeros(shape, bool),
        "starts": np.zeros(shape, np.int32),
        "ends": np.zeros(shape, np.int32),
        "text": np.array([b""] * shape[0], object),
    }
    arguments = {name: tf.constant(x) for name, x in batch.items() if name != "text"}
    outputs = decode(**arguments, text=tf.constant(list(batch["text"]), tf.string, shape[:1]))
    assert {name: tuple(outputs[name].shape) for name in FIELDS} == dict.fromkeys(
        FIELDS, (shape[0], SIZE)
    )
    assert outputs["count"].numpy().tolist() == [0] * shape[0]
    assert_decoded(outputs, batch)


def test_shapes_are_static_and_survive_a_saved_model(tmp_path):
    concrete = decode.get_concrete_function()
    shapes = {name: shape.as_list() for name, shape in concrete.output_shapes.items()}
    assert shapes == {**{name: [None, SIZE] for name in FIELDS}, "count": [None]}
    module = tf.Module()
    module.run = decode
    tf.saved_model.save(module, str(tmp_path / "entities"))
    loaded = tf.saved_model.load(str(tmp_path / "entities"))
    batch = random_batch(random.Random(0), 50, 17, [p.encode() for p in PIECES], 0.3)
    assert_decoded(run(loaded.run, batch), batch)
