"""The JSON Schema of the YAML, for editors."""

from typing import Any

from tfft.config import tasks
from tfft.config.load import DEFAULT_TASK, Config


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the YAML, for editors; any value may be a search space."""
    json_schema = Config.model_json_schema()
    for name, part in json_schema["$defs"].items():
        if name not in ("TuneConfig", "Halving", "Search"):
            _allow_search(part)
    for name, section in tasks.TASK_SECTIONS.items():
        if name != DEFAULT_TASK:  # otherwise a section without a name would fit all of them
            json_schema["$defs"][section.__name__]["required"] = ["name"]
    tune = json_schema["properties"].pop("tune")
    _allow_search(json_schema)
    json_schema["properties"]["tune"] = tune
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **json_schema}


def _allow_search(part: dict[str, Any]) -> None:
    """Allow a search space for each property of an object's schema."""
    for key, value in part.get("properties", {}).items():
        if "const" in value:  # the name that identifies a section
            continue
        # Editors show the annotations of a property, not those of its alternatives.
        annotations = {k: value.pop(k) for k in ("title", "description", "default") if k in value}
        part["properties"][key] = {"anyOf": [value, {"$ref": "#/$defs/Search"}], **annotations}
