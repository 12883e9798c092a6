"""Where pretrained files lie: a local folder as it is, or a hub repository, downloaded once.

Of Hugging Face repositories only data is fetched (JSON, safetensors, vocabularies), nothing that
could run; SavedModels are graphs, which `backbones.hub` looks through before it loads them.
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
JSON_LIMIT = 16 << 20  # bytes; as Python objects up to twenty times that
WEIGHTS_LIMIT = 64 << 30
MOST_TOKENS = 1 << 20  # of a vocabulary; the largest published ones have a quarter of it
_LONGEST_NAME = 255  # of a file, on all common file systems


def folder(name: str, revision: str | None = None) -> Path:
    """The local folder of a Hugging Face checkpoint, given its path or its repository.

    Raises:
        UserError: no such folder, or the repository cannot be had.
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
    except (errors.HfHubHTTPError, OSError) as e:
        reason = " ".join(str(e).split())[:160]
        raise UserError(
            f"model.backbone: no folder {name!r} here, and it cannot be downloaded: {reason}"
        ) from None


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """Return the JSON object in a file of a checkpoint.

    Raises:
        UserError: the file is missing, is no regular file of at most `limit` bytes, or holds
            something else.
    """
    if not path.exists():
        raise UserError(f"{path}: missing; is {path.parent} a checkpoint folder?")
    return reading.read_json(path, limit)


def shards(index: Path) -> list[str]:
    """The names of the files that an index of weights lists.

    Raises:
        UserError: it lists none, or one that is not a plain name: those lie beside the index.
    """
    table = read_json(index).get("weight_map")
    if not isinstance(table, Mapping) or not table:
        raise UserError(f"{index}: weight_map must be an object of tensor and file names")
    names: dict[str, None] = {}
    for value in table.values():
        for name in value if isinstance(value, list) else [value]:
            plain = isinstance(name, str) and Path(name).name == name != ".."
            if not plain or len(name) > _LONGEST_NAME:
                raise UserError(
                    f"{index}: weight_map must list names of files beside it. "
                    f"Received: {name!r:.60}"
                )
            names[name] = None
    return list(names)


def saved_model(handle: str) -> Path:
    """The local folder of a SavedModel: given as it is, or a TF Hub or Kaggle handle.

    A handle is downloaded once, to $TFHUB_CACHE_DIR or the cache, under TF Hub's own names, so that
    what tensorflow_hub fetched before is found.

    Raises:
        UserError: no such folder, or it cannot be downloaded.
    """
    local = expanded(handle)
    if local.is_dir():
        return local
    if not handle.startswith(("http://", "https://")):
        if handle.count("/") >= 4 and not handle.startswith((".", "/", "~")):
            return _from_kaggle(handle)
        raise UserError(
            f"model.backbone: no such folder: {handle} (or https://tfhub.dev/..., or a Kaggle "
            "handle: owner/model/tensorFlow2/variation/version)"
        )
    cache = os.environ.get("TFHUB_CACHE_DIR") or os.path.join(
        os.environ.get("TFFT_CACHE") or "~/.cache/tfft", "hub"
    )
    folder_ = expanded(cache) / hashlib.sha1(handle.encode("utf8")).hexdigest()
    if not (folder_ / "saved_model.pb").is_file():
        _unpacked(handle, folder_)
    return folder_


def _from_kaggle(handle: str) -> Path:
    import kagglehub

    try:
        return Path(kagglehub.model_download(handle))
    except Exception as error:  # kagglehub's own kinds of errors, and those of requests
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"model.backbone: no folder {handle!r} here, and Kaggle does not give it: {reason}"
        ) from None


def _unpacked(handle: str, target: Path) -> None:
    """Download TF Hub's archive of a model and unpack it; a torn one is never used."""
    address = f"{handle}{'&' if '?' in handle else '?'}tf-hub-format=compressed"
    try:
        with (
            temporary_folder(target.parent, "downloading") as temporary,
            urllib.request.urlopen(address, timeout=60) as answer,
            tarfile.open(fileobj=answer, mode="r|gz") as archive,
        ):
            # Nothing outside of the folder, no links out of it, no devices.
            archive.extractall(temporary, filter="data")
            _put(temporary, target)
    except (OSError, ValueError, http.client.HTTPException, tarfile.TarError, EOFError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"model.backbone: {handle} cannot be downloaded: {reason}") from None


def _put(temporary: Path, target: Path) -> None:
    """Rename a folder, unless another process has done as much; in place of an incomplete one."""
    while not (target / "saved_model.pb").is_file():
        try:
            return os.rename(temporary, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not (target / "saved_model.pb").is_file():
                shutil.rmtree(target)
