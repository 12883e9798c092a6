"""models.config: the versions that TF Serving loads, and their labels.

The rules of TF Serving that it follows (server_core.cc):

- A label moves to a loaded version only. A config that moves it elsewhere is refused as a whole, so
  that its new versions are never loaded. Hence an export moves no label: it adds its version, which
  is loaded, and whoever runs the server moves the label then. Whatever configs a server has missed,
  the next one is accepted. But a label whose version was deleted has to move: a server that has not
  loaded its new version refuses the file until it is restarted, or the label is moved by hand.
- A label can move back while the version that it had is still loaded. Hence that of `stable` stays.
"""

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STABLE = "stable"  # the label that clients ask for
MARK = "written by tfft export"  # in the first line: what lacks it is another's and is left alone
_HISTORY = rf"^# When this was written, {STABLE} was (\d+)(?:, and (\d+) before)?\.$"
_VERSION = r"\bversions: (\d+)"
_LABEL = r"""\bversion_labels { key: "([^"\\]*)" value: (\d+) }"""


@dataclass(frozen=True)
class Config:
    """The part of a models.config that changes.

    Attributes:
        versions: those that are loaded, ascending.
        labels: label -> version.
        former: the version that `stable` had before, to roll back to.
    """

    versions: Sequence[int] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    former: int | None = None

    @classmethod
    def read(cls, path: Path) -> "Config | None":
        """Read a models.config; an empty one where there is none.

        None where it is another's, or holds more than an export writes, which would be lost.
        """
        if not path.is_file():
            return cls()
        text = path.read_text(encoding="utf-8", errors="replace")
        name = re.search(r"""\bname\s*:\s*["']([a-z0-9-]+)["']""", text)
        parts = _parts(text)
        if not (may_write(path) and name and parts):
            return None
        versions, labels, rest = parts
        if _parts(cls().text(name[1])) != ([], {}, rest):
            return None
        versions, stable = sorted(set(versions)), labels.get(STABLE, 0)
        history = re.search(_HISTORY, text, re.MULTILINE)
        if history is None:  # of an older export
            lower = [number for number in versions if number < stable]
            return cls(versions, labels, max(lower, default=None))
        former = history[1] if int(history[1]) != stable else history[2]
        return cls(versions, labels, int(former) if former else None)

    def after_export(self, published: Sequence[int]) -> "Config":
        """Return the config that loads the newest version too.

        Loaded are the newest, those with a label, and the one that `stable` had before, to roll
        back to. No label moves but one whose version was deleted: to the newest that was loaded
        before.

        Args:
            published: the versions that there are, ascending.
        """
        loaded = [number for number in self.versions if number in published]
        fallback = loaded[-1] if loaded else published[-1]
        labels = {
            label: number if number in published else fallback
            for label, number in {STABLE: fallback, **self.labels}.items()
        }
        former = self.former if self.former in published else None
        kept = {*labels.values(), published[-1], former} - {None}
        return Config(sorted(number for number in published if number in kept), labels, former)

    def text(self, name: str) -> str:
        """The file for a model of this name, with a label on each line of its own."""
        versions = "\n".join(f"        versions: {number}" for number in self.versions)
        labels = "\n".join(
            f"    version_labels {{ key: {json.dumps(label, ensure_ascii=False)} value: {number} }}"
            for label, number in self.labels.items()
        )
        before = "" if self.former is None else f", and {self.former} before"
        return f"""\
# Clients ask for {name}/labels/{STABLE}, or for {name}: the newest version. An export adds its
# version and moves no label; README.md says how to move one. TF Serving reads this file again every
# 30 seconds. By the next line an export knows which version to keep loaded, to roll back to.
# When this was written, {STABLE} was {self.labels.get(STABLE)}{before}.
model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
    model_version_policy {{
      specific {{
{versions}
      }}
    }}
{labels}
  }}
}}
"""


def _parts(text: str) -> tuple[list[int], dict[str, int], Any] | None:
    """The versions and the labels of a models.config, and what it holds without them.

    None where it does not parse. Without tensorflow-serving-api, which has its grammar, versions
    and labels are read as an export writes them, and another form of them is a part of the rest.
    """
    if importlib.util.find_spec("tensorflow_serving") is None:
        text = re.sub(r"#.*", "", text)
        labels = {key: int(number) for key, number in re.findall(_LABEL, text)}
        rest = re.sub(_LABEL, "", re.sub(_VERSION, "", text)).split()
        return [int(number) for number in re.findall(_VERSION, text)], labels, rest

    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    config = model_server_config_pb2.ModelServerConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError:
        return None
    versions: list[int] = []
    labels = {}
    for model in config.model_config_list.config:
        if model.model_version_policy.HasField("specific"):
            versions += model.model_version_policy.specific.versions
            model.model_version_policy.specific.ClearField("versions")
        labels.update(model.version_labels)
        model.ClearField("version_labels")
    return versions, labels, config


def may_write(path: Path) -> bool:
    """Whether a file is not there, or begins as an export writes it."""
    if not path.is_file():
        return True
    return MARK in path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
