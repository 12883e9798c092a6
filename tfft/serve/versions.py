"""Keep the versions of a model in a folder loaded, as TF Serving does: the newest is served, and a
newer one that appears takes its place once it is loaded.

Where `models.config` lies beside the versions (an export writes one), its version policy and labels
are followed.
"""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tensorflow.core.protobuf import error_codes_pb2
from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.config import model_server_config_pb2

from tfft.serve.failure import Failure, invalid
from tfft.serve.loaded import Loaded
from tfft.utils import console
from tfft.utils.errors import UserError

POLL = 2.0  # seconds between two looks at the folder
CONFIG = "models.config"
Times = dict[str, int]  # path -> when it was changed, in nanoseconds
_VERSION = re.compile(r"\s*([+-]?)0*([0-9]{1,19})\s*", re.ASCII)


@dataclass(frozen=True)
class ModelSpec:
    """The model that a request names: a version, a label's version, or the newest."""

    name: str
    version: int | None = None
    label: str | None = None


@dataclass(frozen=True)
class Policy:
    """The versions to serve.

    Attributes:
        latest: the number of newest versions; None: all versions.
        specific: these versions instead.
        labels: label -> version.
    """

    latest: int | None = 1
    specific: tuple[int, ...] | None = None
    labels: Mapping[str, int] = field(default_factory=dict)

    def choose(self, versions: list[int]) -> list[int]:
        """Return those of some sorted versions that are to be served."""
        if self.specific is not None:
            return [version for version in versions if version in self.specific]
        return versions if self.latest is None else versions[-self.latest :]


@dataclass(frozen=True)
class State:
    """TF Serving's state of a version, and why it ended."""

    name: str
    code: str = "OK"
    message: str = ""


class Versions:
    """The loaded versions of one model.

    Args:
        name: by which clients ask for it.
        base: the folder of the numbered versions, or one of them.
        prepare: called with a version that was loaded, before it is served.

    Raises:
        UserError: there is nothing that can be served.
    """

    def __init__(self, name: str, base: Path, prepare: Callable[[Loaded], None] = lambda _: None):
        self.name, self._prepare = name, prepare
        self._base = base
        self._only = _holds_model(base) and version_number(base.name) is not None
        self._loaded: dict[int, Loaded] = {}
        self._states: dict[int, State] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._refreshing = threading.Lock()
        self._policy, self._reloaded = Policy(), False
        self._failed: dict[int, Times] = {}  # version -> its files' times; tried again if others
        self._problems: dict[str, str] = {}  # what -> what was last wrong with it
        self._start()
        self._thread = threading.Thread(target=self._poll, name="versions", daemon=True)
        self._thread.start()

    def find(self, model: ModelSpec) -> Loaded:
        """Return the version that a request names.

        Raises:
            Failure: it is not served.
        """
        if not model.name:
            raise invalid("ModelSpec has no name specified.")
        version, known = model.version, model.name == self.name
        with self._lock:
            if model.label is not None:
                if not known or model.label not in self._policy.labels:
                    raise invalid(f"Unrecognized servable version label: {model.label}")
                version = self._policy.labels[model.label]
            if known and version is None:
                return self._loaded[max(self._loaded)]
            if known and version in self._loaded:
                return self._loaded[version]
        kind = f"Latest({model.name})" if version is None else f"Specific({model.name}, {version})"
        raise Failure("NOT_FOUND", f"Servable not found for request: {kind}")

    def status(self, model: ModelSpec) -> Any:
        """Return the states of the versions, the newest first, as a GetModelStatusResponse.

        A label is not looked at, as in TF Serving.

        Raises:
            Failure: there are none.
        """
        with self._lock:
            states = sorted(self._states.items(), reverse=True) if model.name == self.name else []
        if model.version is not None:
            states = [(version, state) for version, state in states if version == model.version]
        if not states:
            which = "any versions" if model.version is None else f"version {model.version}"
            raise Failure("NOT_FOUND", f"Could not find {which} of model {model.name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for version, state in states:
            part = response.model_version_status.add(version=version, state=state.name)
            part.status.error_code = error_codes_pb2.Code.Value(state.code)
            part.status.error_message = state.message
        return response

    def reload(self, config: Any) -> None:
        """Follow another ModelServerConfig from now on, and load what it names.

        Raises:
            Failure: it is of another kind, names another model, or moves a label to a version that
                is not loaded.
        """
        if config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
                "ModelConfigList is currently supported"
            )
        models = list(config.model_config_list.config)
        if [model.name for model in models] != [self.name]:
            raise invalid(f"this server has one model, {self.name}, which the config must name")
        policy = _policy(models[0])
        with self._refreshing:
            self._follow(policy)
            self._reloaded = True
        self.refresh()

    def refresh(self) -> None:
        """Load new versions, and release those that are no longer to be served."""
        with self._refreshing:
            self._read_policy()
            folders = self._folders()
            chosen = self._policy.choose(sorted(folders))
            self._failed = {v: times for v, times in self._failed.items() if v in folders}
            for version in chosen:
                if version not in self._loaded:
                    self._load(version, folders[version])
            with self._lock:
                if self._loaded.keys().isdisjoint(chosen):
                    return  # what was served before is kept
                for version in self._loaded.keys() - set(chosen):
                    del self._loaded[version]
                    self._states[version] = State("END")

    def close(self) -> None:
        """Stop looking at the folder."""
        self._stop.set()
        self._thread.join()

    def _start(self) -> None:
        """Load the first versions.

        Raises:
            UserError: none can be loaded, or the folder or the configuration cannot be read.
        """
        try:
            versions = sorted(self._folders())
        except OSError as error:
            raise UserError(f"{self._base}: cannot be read: {error.strerror}") from None
        if not versions:
            raise UserError(
                f"{self._base}: holds no version (a folder with a number, saved_model.pb in it)"
            )
        config = self._base / CONFIG
        if not self._only and os.path.isfile(config):
            self._policy = configured(config, self.name)  # any label: nothing is served yet
        if not self._policy.choose(versions):
            raise UserError(
                f"{config}: none of its versions is in the folder. Received: "
                f"{list(self._policy.specific or ())}; there are {versions}"
            )
        self.refresh()
        if not self._loaded:
            raise UserError(next(s.message for s in self._states.values() if s.message))

    def _load(self, version: int, folder: Path) -> None:
        """Load a version, unless it failed and its files are the same since."""
        times = _times(folder)
        if self._failed.get(version) == times:
            return
        with self._lock:
            self._states[version] = State("LOADING")
        try:
            loaded = Loaded(folder, version)
            self._prepare(loaded)
        except Exception as error:  # whatever is wrong with one version, the others are served
            text = f"{folder}: {type(error).__name__}: {error}"
            failure = error if isinstance(error, Failure) else Failure("UNKNOWN", text)
            self._failed[version] = times
            with self._lock:
                self._states[version] = State("END", failure.code, failure.message)
            if self._loaded:
                console.log(f"{failure.message}; what was served before is kept")
            return
        with self._lock:
            self._loaded[version] = loaded
            self._states[version] = State("AVAILABLE")
        console.log(f"serving {self.name} version {version}")

    def _poll(self) -> None:
        while not self._stop.wait(POLL):
            try:
                self.refresh()
            except Exception as error:  # away for a moment, or a fault of this server: look again
                self._report("folder", f"{self._base}: {type(error).__name__}: {error}")
            else:
                self._report("folder", "")

    def _report(self, what: str, problem: str) -> None:
        """Log what is wrong with the folder or with its config, once until that changes."""
        if problem and problem != self._problems.get(what):
            console.log(f"{problem}; what was served before is kept")
        self._problems[what] = problem

    def _read_policy(self) -> None:
        """Follow the file beside the versions; what TF Serving would refuse changes nothing."""
        path = self._base / CONFIG
        if self._only or self._reloaded or not os.path.isfile(path):
            return
        try:
            self._follow(configured(path, self.name))
        except UserError as error:
            self._report(CONFIG, str(error))
        except Failure as failure:
            self._report(CONFIG, f"{path}: {failure.message}")
        else:
            self._report(CONFIG, "")

    def _follow(self, policy: Policy) -> None:
        """Take another policy, whole or not at all.

        Raises:
            Failure: it moves a label to a version that is not loaded.
        """
        with self._lock:
            for label, version in policy.labels.items():
                moves = self._policy.labels.get(label, version) != version
                if moves and version not in self._loaded:
                    raise Failure(
                        "FAILED_PRECONDITION",
                        f"Request to assign label to version {version} of model {self.name}, which "
                        "is not currently available for inference",
                    )
            self._policy = policy

    def _folders(self) -> dict[int, Path]:
        """Return the folder of each version on disk."""
        if self._only:
            return {version_number(self._base.name) or 0: self._base}
        if not self._base.is_dir():
            return {}
        folders = {}
        for folder in sorted(self._base.iterdir()):
            version = version_number(folder.name)
            if version is not None and _holds_model(folder):
                folders[version] = folder
        return folders


def version_number(text: str) -> int | None:
    """Return the 64-bit integer that a folder's name is, such as 00000123; None: it is none."""
    match = _VERSION.fullmatch(text)
    number = int(match[1] + match[2]) if match else None
    return number if number is not None and -(2**63) <= number < 2**63 else None


def configured(path: Path, name: str) -> Policy:
    """Return what TF Serving's model_config_list says of a model.

    Raises:
        UserError: it is none, or does not name the model.
    """
    models = {model.name: model for model in _models(path)}
    if name not in models:
        raise UserError(f"{path}: names {', '.join(models) or 'no model'}; received {name!r}")
    return _policy(models[name])


def _policy(model: Any) -> Policy:
    policy, labels = model.model_version_policy, dict(model.version_labels)
    match policy.WhichOneof("policy_choice"):
        case "specific":
            return Policy(specific=tuple(policy.specific.versions), labels=labels)
        case "all":
            return Policy(latest=None, labels=labels)
        case _:
            return Policy(latest=max(policy.latest.num_versions, 1), labels=labels)


def default_name(base: Path) -> str:
    """Return what `models.config` calls the model; `model` where there is none."""
    path = base / CONFIG
    return next((m.name for m in _models(path)), "model") if os.path.isfile(path) else "model"


def _models(path: Path) -> list[Any]:
    config = model_server_config_pb2.ModelServerConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), config)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no model_config_list: {error}") from None
    return list(config.model_config_list.config)


def _times(folder: Path) -> Times:
    """Return when each file of a version was changed; without those that vanish meanwhile, cannot
    be looked at, or are links to nothing.
    """
    times = {}
    for root, _, files in os.walk(folder):
        for path in (root, *(os.path.join(root, name) for name in files)):
            with contextlib.suppress(OSError):
                times[path] = os.stat(path).st_mtime_ns
    return times


def _holds_model(folder: Path) -> bool:
    try:
        return (folder / "saved_model.pb").is_file()
    except OSError:
        return True  # which cannot be read; loading it says why
