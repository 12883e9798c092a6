"""YAML of plain values alone: text, numbers, booleans, lists and mappings.

What a file can allocate is bounded: its size, its depth, and its values after the expansion of
aliases, which may refer to themselves or multiply.
"""

import re
from typing import Any, ClassVar

import yaml

from tfft.utils.errors import UserError
from tfft.utils.reading import is_unicode

LARGEST = 16 << 20  # characters
_MAX_VALUES = 1 << 20  # after the expansion of aliases
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_TAG = "tag:yaml.org,2002:"
_FLOAT = (
    f"{_TAG}float",
    re.compile(r"^[-+]?\d[\d_]*(?:\.\d*)?[eE][-+]?\d+$"),  # 5e-5 is a string in YAML 1.1
    list("-+0123456789"),
)


class _Loader(yaml.SafeLoader):
    """Safe loader that refuses other than plain values, duplicate keys and exploding aliases."""

    # A config has no dates, sets or binary values: 2020-01-01 is a string.
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
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool):
                raise _problem(f"key {key!r} is not a plain value", key_node)
            if key in keys:
                raise _problem(f"key {key!r} is here twice", key_node)
            keys.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Safe dumper that quotes the strings that `_Loader` would read as numbers."""


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # In any but the double-quoted style PyYAML reads U+0085 and similar line breaks as spaces.
    return dumper.represent_scalar(f"{_TAG}str", text, None if text.isprintable() else '"')


_Dumper.add_representer(str, _represent_str)
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(*_FLOAT)


def loads(text: str, where: str) -> Any:
    """Parse YAML.

    Args:
        text: the YAML.
        where: names it in error messages, such as the path of the file.

    Raises:
        UserError: it is not valid, holds other than plain values, or is too large.
    """
    if len(text) > LARGEST:
        raise UserError(f"{where}: {len(text):,} characters; a config has at most {LARGEST:,}")
    try:
        return yaml.load(text, _Loader)  # a SafeLoader subclass
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        position = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        problem = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise UserError(f"{position}: not valid YAML: {problem}") from None
    except RecursionError:
        raise UserError(f"{where}: not valid YAML: nested too deep") from None


def dumps(value: Any) -> str:
    """Return plain values as YAML, which `loads` reads back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def inline(value: Any) -> str:
    """Return plain values as one line of YAML, such as `{fraction: 0.1}`, which `loads` reads."""
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=True,
        width=float("inf"),
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """Return the number of values below a node after the expansion of aliases.

    Args:
        node: a node of the graph.
        counts: id of a node -> its count; 0 while it is being counted.
    """
    count = counts.get(id(node))
    if count == 0:  # the node is reached from within itself
        raise _problem("an alias contains itself", node)
    if count is not None:
        return count
    counts[id(node)] = 0
    parts = node.value if isinstance(node, yaml.CollectionNode) else ()
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in parts for part in pair]
    total = 1 + sum(_count(part, counts) for part in parts)
    if total > _MAX_VALUES:
        raise _problem(f"more than {_MAX_VALUES:,} values, those of aliases included", node)
    counts[id(node)] = total
    return total


def _problem(text: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)
