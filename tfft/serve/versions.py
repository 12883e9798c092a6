"""Load and serve the versions of a model in a folder, as TF Serving does.

The newest version is served. A newer one that appears replaces it once it is loaded. If the folder
has a `models.config`, as every export has, its version policy and labels apply.
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
from tfft.serve.loaded import LoadedVersion
from tfft.utils import console
from tfft.utils.errors import UserError

POLL_SECONDS = 2.0  # seconds between two scans of the folder
CONFIG = "models.config"
ModificationTimes = dict[str, int]  # path -> modification time in nanoseconds
# As in TF Serving, a folder's name may have white space, a sign and leading zeros.
_VERSION = re.compile(r"\s*([+-]?)0*([0-9]{1,19})\s*", re.ASCII)


@dataclass(frozen=True)
class ModelSpec:
    """The model that a request names.

    Attributes:
        name: name of the model.
        version: the version; None for the newest.
        label: a label to use instead of `version`.
    """

    name: str
    version: int | None = None
    label: str | None = None


@dataclass(frozen=True)
class Policy:
    """The version policy of a model: which versions to serve.

    Attributes:
        latest: number of newest versions to serve; None for all versions.
        specific: the versions to serve; overrides `latest`.
        labels: label -> version.
    """

    latest: int | None = 1
    specific: tuple[int, ...] | None = None
    labels: Mapping[str, int] = field(default_factory=dict)

    def select(self, versions: list[int]) -> list[int]:
        """Return the versions to serve.

        Args:
            versions: the versions on disk, in ascending order.
        """
        if self.specific is not None:
            return [version for version in versions if version in self.specific]
        return versions if self.latest is None else versions[-self.latest :]


@dataclass(frozen=True)
class VersionState:
    """The state of a version, as GetModelStatus reports it.

    Attributes:
        name: TF Serving's name of the state: LOADING, AVAILABLE or END.
        code: status code of the load.
        message: why loading failed.
    """

    name: str
    code: str = "OK"
    message: str = ""


class VersionManager:
    """Loads the versions of one model, and follows changes of their folder in a thread.

    Args:
        name: name of the model in requests.
        base: the folder of the numbered versions, or one version.
        prepare: called with each loaded version before it is served, for warm-up.

    Raises:
        UserError: no version can be served.
    """

    def __init__(
        self, name: str, base: Path, prepare: Callable[[LoadedVersion], None] = lambda _: None
    ):
        self.name, self._prepare = name, prepare
        self._base = base
        self._is_single = _has_model(base) and version_number(base.name) is not None
        self._loaded: dict[int, LoadedVersion] = {}
        self._states: dict[int, VersionState] = {}
        # `_lock` guards what requests read, and is held briefly. `_refresh_lock` is held while
        # versions load, so that two scans do not load the same version.
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._refresh_lock = threading.Lock()
        self._policy, self._config_was_sent = Policy(), False
        self._failed: dict[
            int, ModificationTimes
        ] = {}  # loading is retried once a file has another time
        self._logged_problems: dict[str, str] = {}  # subject -> its last logged problem
        self._load_first()
        self._thread = threading.Thread(target=self._poll, name="versions", daemon=True)
        self._thread.start()

    def find(self, model: ModelSpec) -> LoadedVersion:
        """Return the version that a request names.

        Raises:
            Failure: the version is not served.
        """
        if not model.name:
            raise invalid("ModelSpec has no name specified.")
        version, is_served = model.version, model.name == self.name
        with self._lock:
            if model.label is not None:
                if not is_served or model.label not in self._policy.labels:
                    raise invalid(f"Unrecognized servable version label: {model.label}")
                version = self._policy.labels[model.label]
            if is_served and version is None:
                return self._loaded[max(self._loaded)]
            if is_served and version in self._loaded:
                return self._loaded[version]
        kind = f"Latest({model.name})" if version is None else f"Specific({model.name}, {version})"
        raise Failure("NOT_FOUND", f"Servable not found for request: {kind}")

    def status(self, model: ModelSpec) -> Any:
        """Return the states of the versions as a GetModelStatusResponse, newest first.

        A label is ignored, as in TF Serving.

        Raises:
            Failure: the model or the version is unknown.
        """
        with self._lock:
            states = sorted(self._states.items(), reverse=True) if model.name == self.name else []
        if model.version is not None:
            states = [(version, state) for version, state in states if version == model.version]
        if not states:
            description = "any versions" if model.version is None else f"version {model.version}"
            raise Failure("NOT_FOUND", f"Could not find {description} of model {model.name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for version, state in states:
            entry = response.model_version_status.add(version=version, state=state.name)
            entry.status.error_code = error_codes_pb2.Code.Value(state.code)
            entry.status.error_message = state.message
        return response

    def reload(self, config: Any) -> None:
        """Replace the config by a ModelServerConfig message, and load the versions that it names.

        The file beside the versions is ignored from then on.

        Raises:
            Failure: the message has no model list, names another model, or moves a label to a
                version that is not loaded.
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
        with self._refresh_lock:
            self._follow(policy)
            self._config_was_sent = True
        self.refresh()

    def refresh(self) -> None:
        """Scan the folder, load new versions, and release those that are no longer served."""
        with self._refresh_lock:
            self._follow_config()
            folders = self._folders()
            selected = self._policy.select(sorted(folders))
            # Forget the failures of versions that were deleted.
            self._failed = {
                number: times for number, times in self._failed.items() if number in folders
            }
            # As TF Serving does by default, load before releasing: a version is always available.
            for version in selected:
                if version not in self._loaded:
                    self._load(version, folders[version])
            with self._lock:
                if self._loaded.keys().isdisjoint(selected):
                    return  # no selected version is available: keep serving the old ones
                for version in self._loaded.keys() - set(selected):
                    del self._loaded[version]
                    self._states[version] = VersionState("END")

    def close(self) -> None:
        """Stop scanning the folder."""
        self._stop.set()
        self._thread.join()

    def _load_first(self) -> None:
        """Load the first versions.

        Raises:
            UserError: no version can be loaded, or the folder or the config cannot be read.
        """
        try:
            versions = sorted(self._folders())
        except OSError as error:
            raise UserError(f"{self._base}: cannot be read: {error.strerror}") from None
        if not versions:
            raise UserError(
                f"{self._base}: must contain a version (a folder named by a number, with "
                "saved_model.pb)"
            )
        config = self._base / CONFIG
        if not self._is_single and os.path.isfile(config):
            self._policy = read_policy(config, self.name)  # a starting server accepts any label
        if not self._policy.select(versions):
            raise UserError(
                f"{config}: must name a version of the folder, {versions}. Received: "
                f"{list(self._policy.specific or ())}"
            )
        self.refresh()
        if not self._loaded:
            raise UserError(next(s.message for s in self._states.values() if s.message))

    def _load(self, version: int, folder: Path) -> None:
        """Load a version, unless it failed before and its files have not changed since."""
        # Read before loading, so that a change during the load leads to another attempt.
        times = _modification_times(folder)
        if self._failed.get(version) == times:
            return
        with self._lock:
            self._states[version] = VersionState("LOADING")
        try:
            loaded = LoadedVersion(folder, version)
            self._prepare(loaded)
        except Exception as error:  # a broken version must not stop the others
            message = f"{folder}: {type(error).__name__}: {error}"
            failure = error if isinstance(error, Failure) else Failure("UNKNOWN", message)
            self._failed[version] = times
            with self._lock:
                self._states[version] = VersionState("END", failure.code, failure.message)
            if self._loaded:
                console.log(f"{failure.message}; still serving the previous versions")
            return
        with self._lock:
            self._loaded[version] = loaded
            self._states[version] = VersionState("AVAILABLE")
        console.log(f"serving {self.name} version {version}")

    def _poll(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                self.refresh()
            except Exception as error:  # an unavailable folder, or a bug: scan again later
                self._report("folder", f"{self._base}: {type(error).__name__}: {error}")
            else:
                self._report("folder", "")

    def _report(self, subject: str, problem: str) -> None:
        """Log a problem of the folder or the config once, until it changes; "" clears it."""
        if problem and problem != self._logged_problems.get(subject):
            console.log(f"{problem}; still serving the previous versions")
        self._logged_problems[subject] = problem

    def _follow_config(self) -> None:
        """Apply the models.config of the folder; one that TF Serving rejects changes nothing."""
        path = self._base / CONFIG
        if self._is_single or self._config_was_sent or not os.path.isfile(path):
            return
        try:
            self._follow(read_policy(path, self.name))
        except UserError as error:
            self._report(CONFIG, str(error))
        except Failure as failure:
            self._report(CONFIG, f"{path}: {failure.message}")
        else:
            self._report(CONFIG, "")

    def _follow(self, policy: Policy) -> None:
        """Replace the policy, or leave it unchanged if a label cannot move.

        Raises:
            Failure: the policy moves a label to a version that is not loaded.
        """
        with self._lock:
            for label, version in policy.labels.items():
                # Only a label that exists is checked. A new one may name a version that is not
                # loaded yet (--allow_version_labels_for_unavailable_models of TF Serving).
                moves = self._policy.labels.get(label, version) != version
                if moves and version not in self._loaded:
                    raise Failure(
                        "FAILED_PRECONDITION",
                        f"Request to assign label to version {version} of model {self.name}, which "
                        "is not currently available for inference",
                    )
            self._policy = policy

    def _folders(self) -> dict[int, Path]:
        """Return the versions on disk, number -> folder."""
        if self._is_single:
            return {version_number(self._base.name) or 0: self._base}
        if not self._base.is_dir():
            return {}
        folders = {}
        for folder in sorted(self._base.iterdir()):
            version = version_number(folder.name)
            if version is not None and _has_model(folder):
                folders[version] = folder
        return folders


def version_number(text: str) -> int | None:
    """Return the 64-bit integer that a folder name such as 00000123 is, or None."""
    match = _VERSION.fullmatch(text)
    number = int(match[1] + match[2]) if match else None
    return number if number is not None and -(2**63) <= number < 2**63 else None


def read_policy(path: Path, name: str) -> Policy:
    """Return the version policy of a model in a models.config.

    Raises:
        UserError: the file is not a model_config_list, or does not name the model.
    """
    models = {model.name: model for model in _models(path)}
    if name not in models:
        raise UserError(
            f"{path}: the model must be one of {', '.join(models) or '(none)'}. Received: {name!r}"
        )
    return _policy(models[name])


def _policy(model: Any) -> Policy:
    policy, labels = model.model_version_policy, dict(model.version_labels)
    match policy.WhichOneof("policy_choice"):
        case "specific":
            return Policy(specific=tuple(policy.specific.versions), labels=labels)
        case "all":
            return Policy(latest=None, labels=labels)
        case _:
            return Policy(latest=max(policy.latest.num_versions, 1), labels=labels)  # unset is 0


def default_name(base: Path) -> str:
    """Return the model name in the `models.config` of a folder, or `model` without one."""
    path = base / CONFIG
    return next((m.name for m in _models(path)), "model") if os.path.isfile(path) else "model"


def _models(path: Path) -> list[Any]:
    config = model_server_config_pb2.ModelServerConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), config)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: must be a model_config_list: {error}") from None
    return list(config.model_config_list.config)


def _modification_times(folder: Path) -> ModificationTimes:
    """Return the modification times of a version's files.

    Files that vanish meanwhile, cannot be read or are dangling links are left out.
    """
    times = {}
    for root, _, files in os.walk(folder):
        # A folder's own time changes when a file is added or removed.
        for path in (root, *(os.path.join(root, name) for name in files)):
            with contextlib.suppress(OSError):
                times[path] = os.stat(path).st_mtime_ns
    return times


def _has_model(folder: Path) -> bool:
    try:
        return (folder / "saved_model.pb").is_file()
    except OSError:
        return True  # it cannot be read: loading it reports why
