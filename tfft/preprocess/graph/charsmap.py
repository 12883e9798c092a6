"""SentencePiece's precompiled character map as a string op.

Only the SentencePiece op can read the map (usually NFKC with a few exceptions). So it is applied by
tokenizing with a model that has no pieces: the complete text is one unknown piece, and that piece
is the normalized text. The model is written here in protobuf's wire format.
"""

import struct

import tensorflow as tf
import tensorflow_text as tf_text

from tfft.preprocess.graph import codepoints, ragged
from tfft.preprocess.graph.aligned import AlignedText, decode

_NORMAL, _UNKNOWN = 1, 2  # SentencePiece.Type
_UNIGRAM = 1  # TrainerSpec.ModelType


# Characters that continue a grapheme cluster: marks, joiners, skin tones, halfwidth voicing marks
# (Unicode Standard Annex 29, GB9 and GB9a). Vowel and final jamo do too (GB6 to GB8), but any
# two jamo are six bytes, so each of them is mapped separately.
_MARKS = r"\p{M}\x{200C}\x{200D}\x{1F3FB}-\x{1F3FF}\x{FF9E}\x{FF9F}"
_JAMO = r"\x{1160}-\x{11FF}\x{D7B0}-\x{D7FF}"
# Characters that nothing continues (GB4).
_CONTROLS = (
    r"\p{Cc}\p{Zl}\p{Zp}\x{AD}\x{61C}\x{180E}\x{200B}\x{200E}\x{200F}\x{202A}-\x{202E}"
    r"\x{2060}-\x{206F}\x{FEFF}\x{FFF0}-\x{FFFB}" + codepoints.NUL
)
_CLUSTER = f"[^{_MARKS}{_CONTROLS}{_JAMO}]?[{_MARKS}]+|[{_JAMO}][{_MARKS}]*"
_HOST_LIMIT = 6  # bytes: the host looks up only shorter clusters as a unit


class CharacterMap(tf.Module):
    """A serialised character map as an op, strings [N] -> strings [N], equal to the host's.

    SentencePiece replaces the longest match at each position. The host differs on a cluster of a
    character and its marks: from six bytes on it maps character by character, and below that it
    takes the *shortest* match and drops the rest of the cluster. So clusters are split off and
    mapped separately.
    """

    def __init__(self, charsmap: bytes):
        super().__init__()
        self._op = tf_text.SentencepieceTokenizer(_model(charsmap), out_type=tf.string)

    def __call__(self, text: tf.Tensor) -> tf.Tensor:
        """Return the normalized texts."""
        parts = ragged.regex_split(text, _CLUSTER, _CLUSTER)
        is_cluster = tf.strings.regex_full_match(parts.flat_values, _CLUSTER)
        clusters = tf.boolean_mask(parts.flat_values, is_cluster)
        # The other parts are mapped undivided, which is safe: no match spans two clusters.
        rest = self._map(tf.where(is_cluster, "", parts.flat_values))
        mapped = tf.tensor_scatter_nd_update(
            rest, tf.where(is_cluster), self._map_clusters(clusters)
        )
        return tf.strings.reduce_join(parts.with_flat_values(mapped), axis=-1)

    def _map(self, text: tf.Tensor) -> tf.Tensor:
        return tf.strings.reduce_join(self._op.tokenize(text), axis=-1)

    def _map_characters(self, text: tf.Tensor) -> tf.Tensor:
        """Map each character separately."""
        separated = tf.strings.regex_replace(text, "(?s:(.))", rf"\1{codepoints.SEPARATOR}")
        return tf.strings.regex_replace(self._map(separated), codepoints.SEPARATOR, "")

    def _map_clusters(self, clusters: tf.Tensor) -> tf.Tensor:
        """Map each cluster as the host does."""
        result = self._map_characters(clusters)
        for matches, mapped in self._matches(clusters):
            result = tf.where(matches, mapped, result)
        return result

    def _matches(self, clusters: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """Return where a beginning of a cluster is in the map, and its form, both [N].

        The shortest match is the last one and wins.
        """
        first, second, third = (
            tf.strings.substr(clusters, 0, n, unit="UTF8_CHAR") for n in (1, 2, 3)
        )
        short = tf.strings.length(clusters) < _HOST_LIMIT
        result = []
        for prefix in (third, second, first):
            mapped = self._map(prefix)
            matches = (
                (mapped != self._map_characters(prefix))
                if prefix is not first
                else mapped != prefix
            )
            result.append((short & matches, mapped))
        return result

    def aligned(self, text: AlignedText) -> AlignedText:
        """Return the aligned texts after this step.

        The host replaces units: clusters that the map holds, else single characters. The n-th
        character of a form comes from the n-th character of its unit; surplus characters come from
        the last. In two cases the host assigns the next raw character instead: to the last of
        surplus characters before a unit that is dropped, and, where a text begins with units that
        are dropped, to none of these, so that all others move to the front.
        """
        units = self._units(text.strings())  # [N, units]
        unique, index = tf.unique(units.flat_values)
        forms = tf.gather(decode(self._map_clusters(unique)), index)
        size = tf.gather(tf.strings.length(unique, unit="UTF8_CHAR"), index)
        form_size = tf.cast(forms.row_lengths(), tf.int32)
        begin = tf.cumsum(size, exclusive=True)
        first = tf.where(form_size > 0, begin, tf.int32.max)
        dropped = tf.reduce_min(units.with_flat_values(first), axis=1) - tf.cast(
            tf.gather(text.characters.row_splits, tf.range(units.nrows())), tf.int32
        )
        begin -= tf.gather(dropped, ragged.row_ids(units))
        before_dropped = tf.pad(form_size == 0, [[0, 1]])[1:]
        rows, position = ragged.row_ids(forms), ragged.positions(forms).flat_values
        size, form_size = tf.gather(size, rows), tf.gather(form_size, rows)
        is_moved = (position >= size) & (position == form_size - 1)
        is_moved &= tf.gather(before_dropped & ~_is_last(units), rows)
        origin = tf.gather(begin, rows) + tf.minimum(position, size - 1)
        return text.regroup(forms, units.row_splits, origin + tf.cast(is_moved, tf.int32))

    def _units(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Split strings [N] into what the host replaces at once, ragged [N, units]."""
        parts = ragged.regex_split(text, _CLUSTER, _CLUSTER)
        is_cluster = tf.strings.regex_full_match(parts.flat_values, _CLUSTER)
        clusters = tf.boolean_mask(parts.flat_values, is_cluster)
        is_unit = tf.zeros_like(clusters, tf.bool)
        for matches, _ in self._matches(clusters):
            is_unit |= matches
        is_unit = tf.tensor_scatter_nd_update(is_cluster, tf.where(is_cluster), is_unit)
        whole = tf.RaggedTensor.from_row_lengths(
            tf.boolean_mask(parts.flat_values, is_unit), tf.cast(is_unit, tf.int64), validate=False
        )
        characters = tf.strings.unicode_split(tf.where(is_unit, "", parts.flat_values), "UTF-8")
        # For each part one of the two is empty.
        units = ragged.concat([whole, characters])
        return ragged.merge_inner_axes(parts.with_flat_values(units))


def _is_last(values: tf.RaggedTensor) -> tf.Tensor:
    """Return which of all values is the last of its row, bool [all values]."""
    position = ragged.positions(values).flat_values
    length = tf.gather(values.row_lengths(), ragged.row_ids(values))
    return tf.cast(position, tf.int64) == length - 1


def _model(charsmap: bytes) -> bytes:
    """Return a sentencepiece.ModelProto in which all text is unknown and spaces are kept."""
    # ModelProto: 1 pieces, 2 trainer_spec, 3 normalizer_spec.
    score = b"\x15" + struct.pack("<f", 0.0)  # field 2, fixed32
    pieces = _field(1, _field(1, b"<unk>") + score + _field(3, _UNKNOWN))
    # The op refuses a model without a normal piece.
    pieces += _field(1, _field(1, codepoints.SEPARATOR.encode()) + score + _field(3, _NORMAL))
    # unk_id is 0; bos, eos and pad are disabled.
    trainer = _field(3, _UNIGRAM) + _field(40, 0)
    trainer += b"".join(_field(number, -1) for number in (41, 42, 43))
    # Disable add_dummy_prefix, remove_extra_whitespaces and escape_whitespaces.
    normalizer = _field(1, b"tfft") + _field(2, charsmap)
    normalizer += b"".join(_field(number, 0) for number in (3, 4, 5))
    return pieces + _field(2, trainer) + _field(3, normalizer)


def _field(number: int, value: int | bytes) -> bytes:
    # Wire type 2 is a length and that many bytes; 0 is a varint.
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    # Negative integers are sign-extended to 64 bits.
    return _varint(number << 3) + _varint(value % (1 << 64))


def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*result, value])
