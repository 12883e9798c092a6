"""Read and write JSON by the rules of RapidJSON 1.1, the library of TF Serving.

Its grammar is wider than JSON's: NaN and infinities are numbers, values may be nested to any
depth, strings may hold any bytes, and text behind the first value is ignored. Where a key occurs
twice, the first value counts.
"""

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NoReturn

from tfft.serve.failure import TooLarge, invalid

MEMORY = 256 << 20  # bytes that the values of one request may take, unless more is said
DEBUG_BYTES = 256  # of a value in an error message
INDENT = "    "

# `json` reads ten times as fast as the parser below, which takes 2 s for these bytes.
SLOW_BYTES = 1 << 20

# CPython's bytes per container, number, string and member, where they are short: what a body of n
# bytes becomes would otherwise be up to 60 n.
_COSTS = {b"[": 128, b"{": 168, b",": 32, b'"': 32, b":": 192}
_BASE = 4096
# Of a text in which one letter takes four bytes, each takes four; it is held as a whole and as the
# strings that were read, with room to grow.
_WIDE = 10
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_WHOLE = re.compile(  # other escapes, and pairs of surrogates
    rb"\\[^u]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_SPACE = re.compile(rb"[ \n\r\t]*")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
_NUMBER = re.compile(rb"(?:0|[1-9][0-9]*)(\.[0-9]*)?([eE][+-]?[0-9]*)?")
_HEX = re.compile(rb"[0-9a-fA-F]{4}")
_ESCAPES = dict(zip(b'"\\/bfnrt', b'"\\/\b\f\n\r\t', strict=True))
_WORDS = {b"t": (b"true", True), b"f": (b"false", False), b"n": (b"null", None)}
_END = (b"", b"\0")


def memory(body: bytes) -> int:
    """Return an upper bound of the bytes that it takes to read a body, besides the body."""
    width = 2 if body.isascii() and b"\\u" not in body else _WIDE
    values = sum(cost * body.count(sign) for sign, cost in _COSTS.items())
    return _BASE + width * len(body) + values


def parse(body: bytes, most_bytes: int = MEMORY) -> Any:
    """Return the first JSON value of a body.

    Strings are decoded with `surrogateescape`, so that they can be encoded to the bytes they were.

    Raises:
        Failure: the body holds no value, or values that take more than `most_bytes`; or it is
            larger than `SLOW_BYTES`, and `json` does not read it.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    if memory(body) > most_bytes:
        raise TooLarge(f"the JSON values of the request take more than {most_bytes:,} bytes")
    if not _lone_surrogate(body):
        try:  # reads most requests to the same values
            return json.loads(
                body.decode("utf-8", "surrogateescape"),
                object_pairs_hook=_unique,
                parse_int=_integer,
                parse_float=_float,
            )
        except (ValueError, RecursionError):
            pass
    if len(body) > SLOW_BYTES:  # a few such bodies would keep all others waiting
        raise invalid(
            "JSON Parse error: the document is malformed, or no JSON by RFC 8259, which is read up "
            f"to {SLOW_BYTES:,} bytes. Received: {len(body):,}"
        )
    return _Reader(body).document()


def _lone_surrogate(body: bytes) -> bool:
    """Return whether there may be half a pair, which `json` reads and RapidJSON does not."""
    return bool(_SURROGATE.search(body) and _SURROGATE.search(_WHOLE.sub(b"", body)))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else dict(reversed(pairs))


def _integer(text: str) -> int | float:
    """Return a 64-bit integer; as RapidJSON, a float where it has more bits."""
    value = int(text)  # ValueError: thousands of digits
    return value if -(2**63) <= value < 2**64 else _float(text)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(text)
    return value


class _Reader:
    """A parser without recursion, for what `json` does not read, and for RapidJSON's messages."""

    def __init__(self, body: bytes):
        self._body = body
        self._at = 3 if body.startswith(b"\xef\xbb\xbf") else 0

    def document(self) -> Any:
        self._skip()
        parents: list[tuple[Any, str]] = []  # open containers, each with the key of its next value
        while True:
            value = self._value(nested=bool(parents))
            if isinstance(value, list | dict):
                closing = b"]" if isinstance(value, list) else b"}"
                if self._peek() != closing:
                    parents.append((value, "" if isinstance(value, list) else self._key()))
                    continue
                self._at += 1
            while parents:
                parent, key = parents[-1]
                is_list = isinstance(parent, list)
                if is_list:
                    parent.append(value)
                else:
                    parent.setdefault(key, value)
                self._skip()
                if self._peek() == b",":
                    self._at += 1
                    self._skip()
                    if not is_list:
                        parents[-1] = (parent, self._key())
                    break
                if self._peek() != (b"]" if is_list else b"}"):
                    self._fail(
                        "Missing a comma or ']' after an array element."
                        if is_list
                        else "Missing a comma or '}' after an object member."
                    )
                self._at += 1
                value = parents.pop()[0]
            else:
                return value

    def _value(self, nested: bool) -> Any:
        """Read a scalar, or the bracket that opens a container, which is returned empty."""
        sign = self._peek()
        if sign in (b"[", b"{"):
            self._at += 1
            self._skip()
            return [] if sign == b"[" else {}
        if sign in _END or sign in (b"]", b"}", b",", b":"):
            self._fail("Invalid value." if nested else "The document is empty.")
        if sign == b'"':
            return self._string()
        if sign in _WORDS:
            word, value = _WORDS[sign]
            self._expect(word)
            return value
        return self._number()

    def _key(self) -> str:
        if self._peek() != b'"':
            self._fail("Missing a name for object member.")
        key = self._string()
        self._skip()
        if self._peek() != b":":
            self._fail("Missing a colon after a name of object member.")
        self._at += 1
        self._skip()
        return key

    def _string(self) -> str:
        self._at += 1
        text = bytearray()
        while True:
            plain = self._match(_PLAIN)
            text += plain[0]
            sign = self._peek()
            if sign == b'"':
                self._at += 1
                return text.decode("utf-8", "surrogateescape")
            if sign in _END:
                self._fail("Missing a closing quotation mark in string.")
            if sign != b"\\":
                self._fail("Invalid escape character in string.")
            text += self._escape()

    def _escape(self) -> bytes:
        start = self._at
        sign = self._body[start + 1 : start + 2]
        self._at += 2
        if sign and sign[0] in _ESCAPES:
            return bytes([_ESCAPES[sign[0]]])
        if sign != b"u":
            self._fail("Invalid escape character in string.", start)
        code = self._hex(start)
        if 0xD800 <= code <= 0xDBFF:
            if self._body[self._at : self._at + 2] != b"\\u":
                self._fail("The surrogate pair in string is invalid.", start)
            self._at += 2
            low = self._hex(start)
            if not 0xDC00 <= low <= 0xDFFF:
                self._fail("The surrogate pair in string is invalid.", start)
            code = 0x10000 + ((code - 0xD800) << 10 | (low - 0xDC00))
        return chr(code).encode("utf-8", "surrogatepass")

    def _hex(self, start: int) -> int:
        digits = _HEX.match(self._body, self._at)
        if digits is None:
            self._fail("Incorrect hex digit after \\u escape in string.", start)
        self._at += 4
        return int(digits[0], 16)

    def _number(self) -> int | float:
        start = self._at
        if minus := self._peek() == b"-":
            self._at += 1
        if self._peek() == b"N":
            self._expect(b"NaN")
            return math.nan
        if self._peek() == b"I":
            self._expect(b"Inf")
            if self._peek() == b"i":
                self._expect(b"inity")
            return -math.inf if minus else math.inf
        number = self._match(_NUMBER)
        fraction, exponent = number[1], number[2]
        if fraction == b".":
            self._fail("Miss fraction part in number.", number.end(1))
        if exponent and not exponent[-1:].isdigit():
            self._fail("Miss exponent in number.")
        text = self._body[start : self._at].decode()
        try:
            short = fraction is None and exponent is None and len(text) < 32
            return _integer(text) if short else _float(text)
        except ValueError:
            self._fail("Number too big to be stored in double.", start)

    def _peek(self) -> bytes:
        return self._body[self._at : self._at + 1]

    def _match(self, pattern: re.Pattern[bytes]) -> re.Match[bytes]:
        match = pattern.match(self._body, self._at)
        if match is None:
            self._fail("Invalid value.")
        self._at = match.end()
        return match

    def _skip(self) -> None:
        self._match(_SPACE)

    def _expect(self, word: bytes) -> None:
        for letter in word:
            if self._peek() != bytes([letter]):
                self._fail("Invalid value.")
            self._at += 1

    def _fail(self, message: str, at: int | None = None) -> NoReturn:
        offset = self._at if at is None else at
        raise invalid(f"JSON Parse error: {message} at offset: {offset}")


def shown(value: Any) -> str:
    """Return a value as an error message repeats it: indented, cut after `DEBUG_BYTES`."""
    text = ""
    for part in _parts(value, 0, ""):
        if part is None or len(text.encode("utf-8", "surrogateescape")) >= DEBUG_BYTES:
            break
        text += part
    return text


def _parts(value: Any, depth: int, prefix: str) -> Iterator[str | None]:
    """Yield the text of a value piece by piece; None where RapidJSON stops, at NaN and infinities.

    Arrays are on one line, members of objects on one each.
    """
    if isinstance(value, dict):
        yield prefix + "{"
        for number, (key, member) in enumerate(value.items()):
            yield ("," if number else "") + "\n" + INDENT * (depth + 1) + quoted(key)
            yield from _parts(member, depth + 1, ": ")
        yield ("\n" + INDENT * depth if value else "") + "}"
    elif isinstance(value, list):
        yield prefix + "["
        for number, element in enumerate(value):
            yield from _parts(element, depth + 1, ", " if number else "")
        yield "]"
    elif isinstance(value, float):
        yield prefix + (_double(value) if math.isfinite(value) else "")
        if not math.isfinite(value):
            yield None
    else:
        yield prefix + (quoted(value) if isinstance(value, str) else json.dumps(value))


def _double(value: float) -> str:
    """Return the shortest digits that give the number, as RapidJSON prints them."""
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    text = "".join(map(str, digits)).rstrip("0") or "0"
    point = len(digits) + int(exponent) if value else 1
    if 0 < point <= 21:
        whole = text.ljust(point, "0")
        text = f"{whole[:point]}.{whole[point:] or '0'}"
    elif -6 < point <= 0:
        text = f"0.{'0' * -point}{text}"
    else:
        text = f"{text[0]}{'.' if text[1:] else ''}{text[1:]}e{point - 1}"
    return f"-{text}" if sign else text


def quoted(text: str) -> str:
    """Return a JSON string; letters beyond ASCII are left as they are."""
    return json.dumps(text, ensure_ascii=False)
