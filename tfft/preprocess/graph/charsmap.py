"""SentencePiece's precompiled character map as a string op.

The map (NFKC with a few exceptions, usually) is known to the SentencePiece op alone, so it is
applied by tokenizing with a model that knows no piece: everything is one unknown piece, and
that piece is the normalised text. The model is written here in protobuf's wire format.
"""

import struct

import tensorflow as tf
import tensorflow_text as tf_text

from tfft.preprocess.graph import codepoints, ragged

_NORMAL, _UNKNOWN = 1, 2  # SentencePiece.Type
_UNIGRAM = 1  # TrainerSpec.ModelType


# What continues a grapheme cluster: marks, joiners, skin tones, halfwidth voicing marks
# (Unicode Standard Annex 29, GB9 and GB9a). Vowel and final jamo do too (GB6 to GB8), but any
# two jamo are six bytes, so each of them is mapped by itself.
_MARKS = r"\p{M}\x{200C}\x{200D}\x{1F3FB}-\x{1F3FF}\x{FF9E}\x{FF9F}"
_JAMO = r"\x{1160}-\x{11FF}\x{D7B0}-\x{D7FF}"
# Nothing continues these (GB4).
_CONTROLS = (
    r"\p{Cc}\p{Zl}\p{Zp}\x{AD}\x{61C}\x{180E}\x{200B}\x{200E}\x{200F}\x{202A}-\x{202E}"
    r"\x{2060}-\x{206F}\x{FEFF}\x{FFF0}-\x{FFFB}" + codepoints.NUL
)
_CLUSTER = f"[^{_MARKS}{_CONTROLS}{_JAMO}]?[{_MARKS}]+|[{_JAMO}][{_MARKS}]*"
_HOST_LIMIT = 6  # bytes: the host looks up whole clusters below this length only


class CharacterMap(tf.Module):
    """Strings [N] -> strings [N], by a serialised character map, as the host applies it.

    SentencePiece replaces the longest match at each place. The host differs on a cluster of a
    character and its marks: from six bytes on it maps character by character, and below that
    it takes the *shortest* match and drops the rest of the cluster. So clusters are cut out and
    treated apart.
    """

    def __init__(self, charsmap: bytes):
        super().__init__()
        self._op = tf_text.SentencepieceTokenizer(_model(charsmap), out_type=tf.string)

    def __call__(self, text: tf.Tensor) -> tf.Tensor:
        """The normalised texts."""
        parts = ragged.regex_split(text, _CLUSTER, _CLUSTER)
        cluster = tf.strings.regex_full_match(parts.flat_values, _CLUSTER)
        clusters = tf.boolean_mask(parts.flat_values, cluster)
        # The other parts keep their neighbours' company: nothing in the map spans two clusters.
        rest = self._map(tf.where(cluster, "", parts.flat_values))
        mapped = tf.tensor_scatter_nd_update(rest, tf.where(cluster), self._clusters(clusters))
        return tf.strings.reduce_join(parts.with_flat_values(mapped), axis=-1)

    def _map(self, text: tf.Tensor) -> tf.Tensor:
        return tf.strings.reduce_join(self._op.tokenize(text), axis=-1)

    def _singly(self, text: tf.Tensor) -> tf.Tensor:
        """Map each character by itself."""
        apart = tf.strings.regex_replace(text, "(?s:(.))", rf"\1{codepoints.CUT}")
        return tf.strings.regex_replace(self._map(apart), codepoints.CUT, "")

    def _clusters(self, clusters: tf.Tensor) -> tf.Tensor:
        first, second, third = (
            tf.strings.substr(clusters, 0, n, unit="UTF8_CHAR") for n in (1, 2, 3)
        )
        out = self._singly(clusters)
        short = tf.strings.length(clusters) < _HOST_LIMIT
        for prefix in (third, second, first):  # the last that applies, the shortest, stays
            whole = self._map(prefix)
            matches = (whole != self._singly(prefix)) if prefix is not first else whole != prefix
            out = tf.where(short & matches, whole, out)
        return out


def _model(charsmap: bytes) -> bytes:
    """A sentencepiece.ModelProto in which all text is unknown, and spaces stay as they are."""
    score = b"\x15" + struct.pack("<f", 0.0)  # field 2, fixed32
    pieces = _field(1, _field(1, b"<unk>") + score + _field(3, _UNKNOWN))
    # The op refuses a model without a piece.
    pieces += _field(1, _field(1, codepoints.CUT.encode()) + score + _field(3, _NORMAL))
    # unk_id 0; no bos, eos and pad.
    trainer = _field(3, _UNIGRAM) + _field(40, 0)
    trainer += b"".join(_field(number, -1) for number in (41, 42, 43))
    # No added prefix, no squeezing of spaces, no escaping of them.
    normalizer = _field(1, b"tfft") + _field(2, charsmap)
    normalizer += b"".join(_field(number, 0) for number in (3, 4, 5))
    return pieces + _field(2, trainer) + _field(3, normalizer)


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    return _varint(number << 3) + _varint(value % (1 << 64))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
