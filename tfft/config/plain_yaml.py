"""YAML of plain values alone: text, numbers, booleans, lists, mappings; read as it is written.

A file is bounded: neither aliases, which may refer to themselves or multiply, nor its depth or size
can fill the memory.
"""

import re
from typing import Any, ClassVar

import yaml

from tfft.utils.errors import UserError
from tfft.utils.reading import is_unicode

LARGEST = 16 << 20  # characters
_MOST_VALUES = 1 << 20  # with every alias replaced by what it stands for
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_TAG = "tag:yaml.org,2002:"
_FLOAT = (
    f"{_TAG}float",
    re.compile(r"^[-+]?\d[\d_]*(?:\.\d*)?[eE][-+]?\d+$"),  # 5e-5, which YAML 1.1 takes for a text
    list("-+0123456789"),
)


class _Loader(yaml.SafeLoader):
    """Refuses what is no plain value, a key that is there twice, and endless aliases."""

    # Dates, sets and binary values have no place in a config: 2020-01-01 is a text.
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in _PLAIN
    }
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [pair for pair in pairs if pair[0].removeprefix(_TAG) not in ("timestamp", "value")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError):  # !!int "abc", !!bool "abc", 5,000 digits
            kind = node.tag.removeprefix(_TAG)
            raise _problem(f"{str(node.value)[:80]!r} is not a valid {kind}", node) from None
        if isinstance(value, str) and not is_unicode(value):
            raise _problem("a text holds a lone surrogate", node)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool):
                raise _problem(f"key {key!r} is not a plain value", key_node)
            if key in seen:
                raise _problem(f"key {key!r} stands here twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would take for numbers."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # In any other style PyYAML reads U+0085 and its like back as spaces.
    return dumper.represent_scalar(f"{_TAG}str", text, None if text.isprintable() else '"')


_Dumper.add_representer(str, _text)
for _end in (_Loader, _Dumper):
    _end.add_implicit_resolver(*_FLOAT)


def loads(text: str, where: str) -> Any:
    """Read YAML; `where` names it in the errors.

    Raises:
        UserError: it is not valid, not plain, or too large.
    """
    if len(text) > LARGEST:
        raise UserError(f"{where}: {len(text):,} characters; a config has at most {LARGEST:,}")
    try:
        return yaml.load(text, _Loader)  # a SafeLoader subclass
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        problem = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise UserError(f"{place}: not valid YAML: {problem}") from None
    except RecursionError:
        raise UserError(f"{where}: not valid YAML: nested too deep") from None


def dumps(value: Any) -> str:
    """Write plain values as YAML, which `loads` reads back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """Count the values below a node, every alias replaced by what it stands for."""
    known = counts.get(id(node))
    if known == 0:
        raise _problem("an alias contains itself", node)
    if known is not None:
        return known
    counts[id(node)] = 0
    parts = node.value if isinstance(node, yaml.CollectionNode) else ()
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in parts for part in pair]
    total = 1 + sum(_count(part, counts) for part in parts)
    if total > _MOST_VALUES:
        raise _problem(f"more than {_MOST_VALUES:,} values, those of aliases included", node)
    counts[id(node)] = total
    return total


def _problem(text: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)
