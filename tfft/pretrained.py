"""Where pretrained files lie: a local folder as it is, or a hub repository, downloaded once.

Only data is fetched (JSON, safetensors, vocabularies): nothing that could run.
"""

import json
import os
from pathlib import Path
from typing import Any

from tfft.errors import UserError, nearest

PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/*")


def folder(name: str, revision: str | None = None) -> Path:
    """The local folder of a Hugging Face checkpoint, given its path or its repository.

    Raises:
        UserError: no such folder, or the repository cannot be had.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        siblings = local.parent.iterdir() if local.parent.is_dir() else ()
        checkpoints = (p.name for p in siblings if os.path.isfile(p / "config.json"))
        hint = nearest(local.name, checkpoints)
        raise UserError(f"model.backbone: no such folder: {name}{hint}")
    return _download(name, revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=list(PATTERNS), ignore_patterns=["onnx/*"]
            )
        )
    except errors.RevisionNotFoundError:
        raise UserError(f"model.revision: {name} has no revision {revision!r}") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise UserError(
            f"model.backbone: no repository {name!r} on the hub, and no such folder here "
            "(a private one needs `hf auth login`)"
        ) from None
    except (errors.HfHubHTTPError, OSError) as e:
        reason = " ".join(str(e).split())[:160]
        raise UserError(
            f"model.backbone: no folder {name!r} here, and it cannot be downloaded: {reason}"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint.

    Raises:
        UserError: the file is missing or holds something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing; is {path.parent} a checkpoint folder?")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object. Received: {type(value).__name__}")
    return value
