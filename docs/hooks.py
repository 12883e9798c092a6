"""MkDocs hooks that fill in `{{ file NAME }}` and generate pages from the config schema, the
recipes, the commands and the error messages: nothing is written twice.
"""

import ast
import html
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOB = "https://github.com/tfft/tfft/blob/main/"


def on_page_markdown(markdown, page, config, files):
    """Replace the placeholders of a page."""
    generators = {
        "file": root_file,
        "config": lambda _: config_keys(),
        "recipes": lambda _: recipes(),
        "commands": lambda _: commands(),
        "errors": lambda _: errors(),
    }
    markdown = markdown.replace("](../", f"]({BLOB}")  # files that are not in docs/
    return re.sub(
        r"^\{\{ (\w+) ?(.*?) \}\}$", lambda m: generators[m[1]](m[2]), markdown, flags=re.MULTILINE
    )


def root_file(name):
    """Return a Markdown file of the root folder, with its links to docs/ rewritten for the site."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


def config_keys():
    """Return a table for each section of the YAML, from the schema."""
    from tfft.config import schema

    root = schema()
    sections, parts, done = dict(root["properties"]), [], set()
    for name, value in sections.items():
        parts.append(f"## {name}\n\n{value.get('description', '')}")
        parts += section(value, name, root["$defs"], done)
    return "\n\n".join(parts)


def section(value, path, defs, done):
    """Return the tables of a section and of the sections within it, each once."""
    parts = []
    for key in references(value):
        if key in done or (key == "Search" and path != "tune"):
            continue
        done.add(key)
        part = full_form(defs[key])
        head = (
            f"**{path}**: {part['properties']['name']['const']}" if _named(part) else f"**{path}**"
        )
        parts.append(f"{head}. {part.get('description', '')}\n\n{table(part)}")
        for inner, inner_value in part.get("properties", {}).items():
            parts += section(inner_value, f"{path}.{inner}", defs, done)
    return parts


def full_form(part):
    """Return the mapping form of a section that also has a shorthand."""
    return next((p for p in part.get("anyOf", []) if "properties" in p), part)


def _named(part):
    return "const" in part.get("properties", {}).get("name", {})


def references(value):
    """Return the names of the sections that a value may be."""
    if isinstance(value, dict):
        names = [value["$ref"].rsplit("/", 1)[1]] if "$ref" in value else []
        inner = [v for k, v in value.items() if k not in ("discriminator", "default")]
    else:
        names, inner = [], value if isinstance(value, list) else []
    return names + [name for part in inner for name in references(part)]


def table(part):
    """Return a Markdown table of the keys of a section: type, default, meaning."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, value in part.get("properties", {}).items():
        default = f"`{json.dumps(value['default'])}`" if "default" in value else "required"
        if key not in part.get("required", []) and "default" not in value:
            default = ""
        cells = [f"`{key}`", kind(value), default, value.get("description", "")]
        rows.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(rows)


def _cell(text):
    """Return the text of a table's cell, in which `|` does not begin another cell."""
    code = re.sub(r"`([^`]*\|[^`]*)`", lambda m: f"<code>{html.escape(m[1])}</code>", text)
    return code.replace("|", "&#124;")


def kind(value):
    """Return the type of a key as text."""
    if "$ref" in value:
        return value["$ref"].rsplit("/", 1)[1]
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{option}`" for option in value["enum"])
    for union in ("anyOf", "oneOf"):
        if union in value:
            kinds = [kind(option) for option in value[union]]
            return " or ".join(dict.fromkeys(k for k in kinds if k != "Search"))
    if value.get("type") == "array":
        return f"list of {kind(value.get('items', {}))}"
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {value[name]}" for name, sign in limits.items() if name in value]
    examples = [f"`{example}`" for example in value.get("examples", [])]
    kinds = value.get("type", "anything")
    kinds = " or ".join(kinds) if isinstance(kinds, list) else kinds
    return " ".join([kinds, *bounds, *examples])


def recipes():
    """Return the recipes with their headers."""
    parts = []
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        head, body = text.split("\ndata:", 1)
        header = "\n".join(line.removeprefix("#").removeprefix(" ") for line in head.splitlines())
        name = path.relative_to(ROOT)
        parts.append(f"## {name}\n\n{header}\n\n```yaml\ndata:{body}```")
    return "\n\n".join(parts)


def commands():
    """Return the `--help` of each command."""
    from tfft.cli.__main__ import COMMANDS

    parts = []
    for name in COMMANDS:
        command = [sys.executable, "-m", "tfft.cli", name, "--help"]
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        parts.append(f"## tfft {name}\n\n```text\n{result.stdout.rstrip()}\n```")
    return "\n\n".join(parts)


def errors():
    """Return the messages of all UserErrors, by module."""
    parts = []
    for path in sorted((ROOT / "tfft").rglob("*.py")):
        lines = messages(ast.parse(path.read_text(encoding="utf-8")))
        if lines:
            name = path.relative_to(ROOT)
            bullets = "\n".join(f"- {message}" for message in lines)
            parts.append(f"### {name}\n\n{bullets}")
    return "\n\n".join(parts)


def messages(tree):
    """Return the texts of `UserError(...)`, with ... for the values."""
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError" and node.args:
            text = literal_text(node.args[0]).strip()
            if re.search(r"\w{3}", text.replace("...", "")):
                code = "``" if "`" in text else "`"
                texts.append(
                    f"{code}{' ' if '`' in text else ''}{text}{' ' if '`' in text else ''}{code}"
                )
    return list(dict.fromkeys(texts))


def literal_text(node):
    """Return a string literal of the source, with `...` for the values."""
    if isinstance(node, ast.Constant):
        return str(node.value).replace("\n", " ")
    if isinstance(node, ast.JoinedStr):
        return "".join(literal_text(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return literal_text(node.left) + literal_text(node.right)
    return "..."
