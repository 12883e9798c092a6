"""Read and write JSON by the rules of RapidJSON 1.1, the library of TF Serving.

Its grammar is wider than JSON's: NaN and infinities are numbers, values may be nested to any
depth, strings may contain any bytes, and text after the first value is ignored. If a key occurs
twice, its first value is used.
"""

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NoReturn

from tfft.serve.failure import TooLarge, invalid

DEFAULT_MAX_BYTES = 256 << 20  # memory that the values of one request may take
DEBUG_BYTES = 256  # largest size of a value in an error message
INDENT = "    "

# `json` is ten times as fast as the parser below, which takes 2 s for this size.
MAX_FALLBACK_BYTES = 1 << 20

# CPython's bytes per container, number, string and member. Short values take up to 60 times the
# bytes of their text, so the body's size alone is no bound.
_CHAR_COSTS = {b"[": 128, b"{": 168, b",": 32, b'"': 32, b":": 192}
_BASE_COST = 4096
# Python stores four bytes for each character of a text with one emoji. The text exists twice: as a
# whole and as the strings that were read, whose buffers have room to grow.
_WIDE_CHAR_COST = 10
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_ESCAPES_AND_PAIRS = re.compile(  # other escapes, and pairs of surrogates
    rb"\\[^u]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_SPACE = re.compile(rb"[ \n\r\t]*")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
_NUMBER = re.compile(rb"(?:0|[1-9][0-9]*)(\.[0-9]*)?([eE][+-]?[0-9]*)?")
_HEX = re.compile(rb"[0-9a-fA-F]{4}")
_ESCAPES = dict(zip(b'"\\/bfnrt', b'"\\/\b\f\n\r\t', strict=True))
_LITERALS = {b"t": (b"true", True), b"f": (b"false", False), b"n": (b"null", None)}
_END = (b"", b"\0")


def memory_bound(body: bytes) -> int:
    """Return an upper bound of the memory for parsing a body, in bytes, besides the body itself."""
    char_cost = 2 if body.isascii() and b"\\u" not in body else _WIDE_CHAR_COST
    value_cost = sum(cost * body.count(char) for char, cost in _CHAR_COSTS.items())
    return _BASE_COST + char_cost * len(body) + value_cost


def parse(body: bytes, max_bytes: int = DEFAULT_MAX_BYTES) -> Any:
    """Return the first JSON value of a body.

    Strings are decoded with `surrogateescape`, so that they encode to the original bytes.

    Raises:
        Failure: the body has no valid value; its values would take more than `max_bytes`; or it is
            larger than `MAX_FALLBACK_BYTES` and `json` cannot read it.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    if memory_bound(body) > max_bytes:
        raise TooLarge(f"the JSON values of the request take more than {max_bytes:,} bytes")
    if not _may_have_lone_surrogate(body):
        try:  # fast, and equal for most requests
            return json.loads(
                body.decode("utf-8", "surrogateescape"),
                object_pairs_hook=_object_of_first_values,
                parse_int=_integer,
                parse_float=_float,
            )
        except (ValueError, RecursionError):
            pass
    if len(body) > MAX_FALLBACK_BYTES:  # a few such bodies would block all other requests
        raise invalid(
            "JSON Parse error: the document is malformed, or no JSON by RFC 8259, which is read up "
            f"to {MAX_FALLBACK_BYTES:,} bytes. Received: {len(body):,}"
        )
    return _Parser(body).document()


def _may_have_lone_surrogate(body: bytes) -> bool:
    """Return whether a body may contain half a surrogate pair.

    `json` accepts it and RapidJSON does not.
    """
    return bool(_SURROGATE.search(body) and _SURROGATE.search(_ESCAPES_AND_PAIRS.sub(b"", body)))


def _object_of_first_values(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object in which the first value of a repeated key is used, as in RapidJSON."""
    value = dict(pairs)
    return value if len(value) == len(pairs) else dict(reversed(pairs))


def _integer(text: str) -> int | float:
    """Return an integer, or, as RapidJSON, a float if it does not fit in 64 bits."""
    value = int(text)  # ValueError: thousands of digits
    return value if -(2**63) <= value < 2**64 else _float(text)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(text)
    return value


class _Parser:
    """A parser without recursion that follows RapidJSON.

    It reads what `json` rejects, and reports RapidJSON's error messages.
    """

    def __init__(self, body: bytes):
        self._body = body
        self._position = 3 if body.startswith(b"\xef\xbb\xbf") else 0  # UTF-8 byte-order mark

    def document(self) -> Any:
        self._skip_space()
        parents: list[tuple[Any, str]] = []  # open containers, each with the key of its next value
        # Each pass reads one value or opens one container.
        while True:
            value = self._value(nested=bool(parents))
            if isinstance(value, list | dict):
                closing = b"]" if isinstance(value, list) else b"}"
                if self._peek() != closing:
                    parents.append((value, "" if isinstance(value, list) else self._key()))
                    continue
                self._position += 1
            # Put the value into its container, and close those that end after it.
            while parents:
                parent, key = parents[-1]
                is_list = isinstance(parent, list)
                if is_list:
                    parent.append(value)
                else:
                    parent.setdefault(key, value)
                self._skip_space()
                if self._peek() == b",":
                    self._position += 1
                    self._skip_space()
                    if not is_list:
                        parents[-1] = (parent, self._key())
                    break
                if self._peek() != (b"]" if is_list else b"}"):
                    self._fail(
                        "Missing a comma or ']' after an array element."
                        if is_list
                        else "Missing a comma or '}' after an object member."
                    )
                self._position += 1
                value = parents.pop()[0]
            else:
                return value

    def _value(self, nested: bool) -> Any:
        """Read a scalar, or an opening bracket, for which it returns an empty container."""
        char = self._peek()
        if char in (b"[", b"{"):
            self._position += 1
            self._skip_space()
            return [] if char == b"[" else {}
        if char in _END or char in (b"]", b"}", b",", b":"):
            self._fail("Invalid value." if nested else "The document is empty.")
        if char == b'"':
            return self._string()
        if char in _LITERALS:
            literal, value = _LITERALS[char]
            self._expect(literal)
            return value
        return self._number()

    def _key(self) -> str:
        if self._peek() != b'"':
            self._fail("Missing a name for object member.")
        key = self._string()
        self._skip_space()
        if self._peek() != b":":
            self._fail("Missing a colon after a name of object member.")
        self._position += 1
        self._skip_space()
        return key

    def _string(self) -> str:
        self._position += 1
        text = bytearray()
        while True:
            run = self._match(_PLAIN)
            text += run[0]
            char = self._peek()
            if char == b'"':
                self._position += 1
                return text.decode("utf-8", "surrogateescape")
            if char in _END:
                self._fail("Missing a closing quotation mark in string.")
            if char != b"\\":
                self._fail("Invalid escape character in string.")
            text += self._escape()

    def _escape(self) -> bytes:
        start = self._position
        char = self._body[start + 1 : start + 2]
        self._position += 2
        if char and char[0] in _ESCAPES:
            return bytes([_ESCAPES[char[0]]])
        if char != b"u":
            self._fail("Invalid escape character in string.", start)
        code = self._hex(start)
        if 0xD800 <= code <= 0xDBFF:
            if self._body[self._position : self._position + 2] != b"\\u":
                self._fail("The surrogate pair in string is invalid.", start)
            self._position += 2
            low = self._hex(start)
            if not 0xDC00 <= low <= 0xDFFF:
                self._fail("The surrogate pair in string is invalid.", start)
            code = 0x10000 + ((code - 0xD800) << 10 | (low - 0xDC00))
        return chr(code).encode("utf-8", "surrogatepass")

    def _hex(self, start: int) -> int:
        digits = _HEX.match(self._body, self._position)
        if digits is None:
            self._fail("Incorrect hex digit after \\u escape in string.", start)
        self._position += 4
        return int(digits[0], 16)

    def _number(self) -> int | float:
        start = self._position
        if negative := self._peek() == b"-":
            self._position += 1
        if self._peek() == b"N":
            self._expect(b"NaN")
            return math.nan
        if self._peek() == b"I":
            self._expect(b"Inf")
            if self._peek() == b"i":
                self._expect(b"inity")
            return -math.inf if negative else math.inf
        number = self._match(_NUMBER)
        fraction, exponent = number[1], number[2]
        if fraction == b".":
            self._fail("Miss fraction part in number.", number.end(1))
        if exponent and not exponent[-1:].isdigit():
            self._fail("Miss exponent in number.")
        text = self._body[start : self._position].decode()
        try:
            is_integer = fraction is None and exponent is None and len(text) < 32
            return _integer(text) if is_integer else _float(text)
        except ValueError:
            self._fail("Number too big to be stored in double.", start)

    def _peek(self) -> bytes:
        return self._body[self._position : self._position + 1]

    def _match(self, pattern: re.Pattern[bytes]) -> re.Match[bytes]:
        match = pattern.match(self._body, self._position)
        if match is None:
            self._fail("Invalid value.")
        self._position = match.end()
        return match

    def _skip_space(self) -> None:
        self._match(_SPACE)

    def _expect(self, literal: bytes) -> None:
        for byte in literal:
            if self._peek() != bytes([byte]):
                self._fail("Invalid value.")
            self._position += 1

    def _fail(self, message: str, position: int | None = None) -> NoReturn:
        offset = self._position if position is None else position
        raise invalid(f"JSON Parse error: {message} at offset: {offset}")


def debug_text(value: Any) -> str:
    """Return a value for an error message: indented, and cut after `DEBUG_BYTES`."""
    text = ""
    for part in _debug_parts(value, 0, ""):
        if part is None or len(text.encode("utf-8", "surrogateescape")) >= DEBUG_BYTES:
            break
        text += part
    return text


def _debug_parts(value: Any, depth: int, prefix: str) -> Iterator[str | None]:
    """Yield the text of a value in parts, and None where RapidJSON stops: at NaN and infinities.

    Arrays are on one line; each member of an object has its own line.
    """
    if isinstance(value, dict):
        yield prefix + "{"
        for index, (key, member) in enumerate(value.items()):
            yield ("," if index else "") + "\n" + INDENT * (depth + 1) + quoted(key)
            yield from _debug_parts(member, depth + 1, ": ")
        yield ("\n" + INDENT * depth if value else "") + "}"
    elif isinstance(value, list):
        yield prefix + "["
        for index, element in enumerate(value):
            yield from _debug_parts(element, depth + 1, ", " if index else "")
        yield "]"
    elif isinstance(value, float):
        yield prefix + (_double(value) if math.isfinite(value) else "")
        if not math.isfinite(value):
            yield None
    else:
        yield prefix + (quoted(value) if isinstance(value, str) else json.dumps(value))


def _double(value: float) -> str:
    """Return the shortest text that reads back as the number, in RapidJSON's notation."""
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    text = "".join(map(str, digits)).rstrip("0") or "0"
    # The limits of the notations are those of RapidJSON's Prettify (internal/dtoa.h).
    decimal_point = len(digits) + int(exponent) if value else 1
    if 0 < decimal_point <= 21:
        padded = text.ljust(decimal_point, "0")
        text = f"{padded[:decimal_point]}.{padded[decimal_point:] or '0'}"
    elif -6 < decimal_point <= 0:
        text = f"0.{'0' * -decimal_point}{text}"
    else:
        text = f"{text[0]}{'.' if text[1:] else ''}{text[1:]}e{decimal_point - 1}"
    return f"-{text}" if sign else text


def quoted(text: str) -> str:
    """Return text as a JSON string; characters beyond ASCII are not escaped."""
    return json.dumps(text, ensure_ascii=False)
