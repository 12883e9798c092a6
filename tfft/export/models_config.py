"""Read and write models.config: the versions that TF Serving loads, and their labels.

It follows two rules of TF Serving (server_core.cc):

- A label can move only to a loaded version. TF Serving rejects a config that moves it elsewhere as
  a whole and loads none of its new versions. An export therefore adds its version and moves no
  label; the operator moves the label once the version is loaded. So a server accepts the newest
  config even if it missed earlier ones. A label whose version was deleted is the exception: it has
  to move, and a server that has not loaded the new version rejects the file until it is restarted
  or the label is moved by hand.
- A label can move back only while its former version is loaded. The version that `stable` had
  before therefore stays in the config.
"""

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STABLE = "stable"  # the label that clients request
MARK = "written by tfft export"  # in the first line; files without it are never overwritten
_HISTORY_LINE = rf"^# When this was written, {STABLE} was (\d+)(?:, and (\d+) before)?\.$"
_VERSION = r"\bversions: (\d+)"
_LABEL = r"""\bversion_labels { key: "([^"\\]*)" value: (\d+) }"""


@dataclass(frozen=True)
class Config:
    """The versions and labels of a models.config.

    Attributes:
        versions: versions to load, in ascending order.
        labels: label -> version.
        former: the version that `stable` had before, to roll back to; None if there is none.
    """

    versions: Sequence[int] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    former: int | None = None

    @classmethod
    def read(cls, path: Path) -> "Config | None":
        """Read a models.config.

        Returns:
            The config; an empty one if the file does not exist; None if an export must not
            overwrite the file, because it lacks `MARK` or has settings that would be lost.
        """
        if not path.is_file():
            return cls()
        text = path.read_text(encoding="utf-8", errors="replace")
        name = re.search(r"""\bname\s*:\s*["']([a-z0-9-]+)["']""", text)
        split = _split_config(text)
        if not (may_write(path) and name and split):
            return None
        versions, labels, rest = split
        # The rest must equal that of an empty config, or an export would drop other settings.
        if _split_config(cls().text(name[1])) != ([], {}, rest):
            return None
        versions, stable = sorted(set(versions)), labels.get(STABLE, 0)
        history = re.search(_HISTORY_LINE, text, re.MULTILINE)
        if history is None:  # written by an export that did not write this line
            lower_versions = [number for number in versions if number < stable]
            return cls(versions, labels, max(lower_versions, default=None))
        # If `stable` was moved since this was written, its version then is the former one.
        former = history[1] if int(history[1]) != stable else history[2]
        return cls(versions, labels, int(former) if former else None)

    def after_export(self, published: Sequence[int]) -> "Config":
        """Return the config that also loads the newest version.

        It loads the newest version, the versions with a label, and the former version of `stable`.
        Labels stay where they are, except those whose version was deleted: they move to the newest
        version that was loaded before.

        Args:
            published: the versions on disk, in ascending order.
        """
        loaded = [number for number in self.versions if number in published]
        fallback = loaded[-1] if loaded else published[-1]
        labels = {
            label: number if number in published else fallback
            for label, number in {STABLE: fallback, **self.labels}.items()
        }
        former = self.former if self.former in published else None
        needed = {*labels.values(), published[-1], former} - {None}
        return Config(sorted(number for number in published if number in needed), labels, former)

    def text(self, name: str) -> str:
        """Return the text of the file for a model called `name`, without the first line.

        Each label has its own line, so that `sed` can move it.
        """
        versions = "\n".join(f"        versions: {number}" for number in self.versions)
        labels = "\n".join(
            f"    version_labels {{ key: {json.dumps(label, ensure_ascii=False)} value: {number} }}"
            for label, number in self.labels.items()
        )
        history = "" if self.former is None else f", and {self.former} before"
        return f"""\
# Clients ask for {name}/labels/{STABLE}, or for {name}: the newest version. An export adds its
# version and moves no label; README.md says how to move one. TF Serving reads this file again every
# 30 seconds. By the next line an export knows which version to keep loaded, to roll back to.
# When this was written, {STABLE} was {self.labels.get(STABLE)}{history}.
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


def _split_config(text: str) -> tuple[list[int], dict[str, int], Any] | None:
    """Split the text of a models.config into its versions, its labels and everything else.

    Without tensorflow-serving-api, which has the grammar, versions and labels are recognized only
    in the form that an export writes; any other form counts as something else.

    Returns:
        The versions, the labels and the rest, or None if the text does not parse.
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
    """Return whether a file is absent or has `MARK` in its first line."""
    if not path.is_file():
        return True
    return MARK in path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
