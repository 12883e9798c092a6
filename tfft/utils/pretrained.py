"""Pretrained files: a local folder, or a hub repository that is downloaded once.

From Hugging Face repositories only data is downloaded (JSON, safetensors, vocabularies), no code
and no pickles. SavedModels are graphs, which `backbones.hub` inspects before it loads them.
"""

import errno
import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfft.utils import reading
from tfft.utils.errors import UserError, nearest
from tfft.utils.files import temporary_folder
from tfft.utils.reading import expanded

PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/*")
JSON_LIMIT = 16 << 20  # bytes; parsed JSON takes up to twenty times as much memory
WEIGHTS_LIMIT = 64 << 30  # bytes
MOST_TOKENS = 1 << 20  # of a vocabulary; the largest published ones have a quarter of it
_MAX_NAME = 255  # bytes of a file name on all common file systems


def folder(name: str, revision: str | None = None) -> Path:
    """Return the local folder of a Hugging Face checkpoint; download it if it is a repository.

    Args:
        name: path of a folder, or a repository such as `owner/name`.
        revision: branch, tag or commit of the repository.

    Raises:
        UserError: the folder does not exist, or the repository cannot be downloaded.
    """
    local = expanded(name)
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
    except (errors.HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"model.backbone: no folder {name!r} here, and it cannot be downloaded: {reason}"
        ) from None


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """Return the JSON object in a file of a checkpoint.

    Raises:
        UserError: the file is missing, is not a regular file of at most `limit` bytes, or does not
            hold a JSON object.
    """
    if not path.exists():
        raise UserError(f"{path}: missing; is {path.parent} a checkpoint folder?")
    return reading.read_json(path, limit)


def shards(index: Path) -> list[str]:
    """Return the names of the files that an index of weights lists.

    Args:
        index: the index file, such as `model.safetensors.index.json`.

    Raises:
        UserError: it lists no file, or a name with a folder: a path could leave the checkpoint.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise UserError(f"{index}: weight_map must be an object of tensor and file names")
    names: dict[str, None] = {}  # a dict keeps the order
    for value in weight_map.values():
        for name in value if isinstance(value, list) else [value]:
            # Path("..").name is "..".
            is_plain = isinstance(name, str) and Path(name).name == name != ".."
            if not is_plain or len(name) > _MAX_NAME:
                raise UserError(
                    f"{index}: weight_map must list names of files beside it. "
                    f"Received: {name!r:.60}"
                )
            names[name] = None
    return list(names)


def saved_model(handle: str) -> Path:
    """Return the local folder of a SavedModel; download it if it is a TF Hub or Kaggle handle.

    A TF Hub handle is downloaded once, to $TFHUB_CACHE_DIR or the cache. The folders are named as
    by tensorflow_hub, whose downloads are used too.

    Args:
        handle: path of a folder, `https://tfhub.dev/...`, or
            `owner/model/tensorFlow2/variation/version` of Kaggle.

    Raises:
        UserError: the folder does not exist, or the handle cannot be downloaded.
    """
    local = expanded(handle)
    if local.is_dir():
        return local
    if not handle.startswith(("http://", "https://")):
        if handle.count("/") >= 4 and not handle.startswith((".", "/", "~")):
            return _download_from_kaggle(handle)
        raise UserError(
            f"model.backbone: no such folder: {handle} (or https://tfhub.dev/..., or a Kaggle "
            "handle: owner/model/tensorFlow2/variation/version)"
        )
    cache = os.environ.get("TFHUB_CACHE_DIR") or os.path.join(
        os.environ.get("TFFT_CACHE") or "~/.cache/tfft", "hub"
    )
    target = expanded(cache) / hashlib.sha1(handle.encode("utf8")).hexdigest()
    if not (target / "saved_model.pb").is_file():
        _download_archive(handle, target)
    return target


def _download_from_kaggle(handle: str) -> Path:
    import kagglehub

    try:
        return Path(kagglehub.model_download(handle))
    except Exception as error:  # kagglehub and requests have no common class of errors
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"model.backbone: no folder {handle!r} here, and it cannot be downloaded from Kaggle: "
            f"{reason}"
        ) from None


def _download_archive(handle: str, target: Path) -> None:
    """Download TF Hub's archive of a model and unpack it; an incomplete one is never used."""
    url = f"{handle}{'&' if '?' in handle else '?'}tf-hub-format=compressed"
    try:
        with (
            temporary_folder(target.parent, "downloading") as temporary,
            urllib.request.urlopen(url, timeout=60) as response,
            tarfile.open(fileobj=response, mode="r|gz") as archive,
        ):
            # This filter refuses paths and links that leave the folder, and devices.
            archive.extractall(temporary, filter="data")
            _publish(temporary, target)
    except (OSError, ValueError, http.client.HTTPException, tarfile.TarError, EOFError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"model.backbone: {handle} cannot be downloaded: {reason}") from None


def _publish(temporary: Path, target: Path) -> None:
    """Rename a folder to `target`, unless another process did; replace an incomplete one."""
    while not (target / "saved_model.pb").is_file():
        try:
            return os.rename(temporary, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not (target / "saved_model.pb").is_file():
                shutil.rmtree(target)
