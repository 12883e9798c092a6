"""The versions of a model in a folder, as TF Serving keeps them: the newest is served, and a newer
one that appears takes its place once it is loaded.

Where `models.config` stands beside the versions (tfft's kit writes one), the versions and labels
that it names are served.
"""

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfft import log
from tfft.errors import UserError
from tfft.serve.failure import Failure, invalid
from tfft.serve.loaded import Loaded

POLL = 2.0  # seconds between two looks at the folder
CONFIG = "models.config"


@dataclass(frozen=True)
class Wanted:
    """The versions to serve; empty: the newest alone. Label -> version."""

    versions: tuple[int, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)


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
        self._only = int(base.name) if _holds_model(base) and base.name.isdigit() else None
        self._base = base.parent if self._only is not None else base
        self._loaded: dict[int, Loaded] = {}
        self.states: dict[int, str] = {}
        self._failed: set[int] = set()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._wanted = Wanted()
        if self._only is None and not _numbers(base):
            raise UserError(
                f"{base}: holds no version (a folder with a number, saved_model.pb in it)"
            )
        self.refresh(first=True)
        self._thread = threading.Thread(target=self._poll, name="versions", daemon=True)
        self._thread.start()

    def find(self, version: int | None = None, label: str | None = None) -> Loaded:
        """A version by its number or its label; the newest where neither is given.

        Raises:
            Failure: it is not served.
        """
        with self._lock:
            if label is not None:
                version = self._wanted.labels.get(label)
                if version is None:
                    raise invalid(f"Unrecognized servable version label: {label}")
            if version is None:
                return self._loaded[max(self._loaded)]
            if version in self._loaded:
                return self._loaded[version]
        raise Failure(
            "NOT_FOUND", f"Servable not found for request: Specific({self.name}, {version})"
        )

    def known(self) -> dict[int, str]:
        """Version -> TF Serving's state of it; the newest first."""
        with self._lock:
            return dict(sorted(self.states.items(), reverse=True))

    def labels(self) -> dict[str, int]:
        """Label -> version."""
        with self._lock:
            return dict(self._wanted.labels)

    def refresh(self, first: bool = False) -> None:
        """Load what is new, let go what is old.

        Raises:
            UserError: `first`, and what is wanted cannot be loaded.
        """
        wanted = self._look(first)
        numbers = self._numbers(wanted)
        for number in numbers:
            if number in self._loaded or number in self._failed:
                continue
            try:
                self._load(number)
            except UserError as error:
                self._failed.add(number)
                if first:
                    raise
                log.say(f"{error}; what was served before is served on")
        with self._lock:
            there = [n for n in numbers if n in self._loaded]
            if not there:
                return
            for number in set(self._loaded) - set(there):
                del self._loaded[number]
                self.states[number] = "END"
            self._wanted = Wanted(
                wanted.versions, {k: v for k, v in wanted.labels.items() if v in self._loaded}
            )

    def close(self) -> None:
        """Look no longer."""
        self._stop.set()
        self._thread.join()

    def _look(self, first: bool) -> Wanted:
        path = self._base / CONFIG
        if self._only is not None or not path.is_file():
            return Wanted()
        try:
            return configured(path, self.name)
        except UserError:
            if first:
                raise
            return self._wanted  # it is being written

    def _numbers(self, wanted: Wanted) -> list[int]:
        if self._only is not None:
            return [self._only]
        found = _numbers(self._base)
        chosen = [n for n in wanted.versions if n in found]
        return chosen or found[-1:]

    def _load(self, number: int) -> None:
        with self._lock:
            self.states[number] = "LOADING"
        try:
            loaded = Loaded(self._base / str(number), number)
            self._prepare(loaded)
        except UserError:
            with self._lock:
                self.states[number] = "END"
            raise
        with self._lock:
            self._loaded[number] = loaded
            self.states[number] = "AVAILABLE"
        log.say(f"serving {self.name} version {number}")

    def _poll(self) -> None:
        while not self._stop.wait(POLL):
            with contextlib.suppress(OSError):  # the folder is away for a moment
                self.refresh()


def configured(path: Path, name: str) -> Wanted:
    """What TF Serving's model_config_list says of a model.

    Raises:
        UserError: it is none, or does not name the model.
    """
    models = {one.name: one for one in _models(path)}
    if name not in models:
        raise UserError(f"{path}: names {', '.join(models) or 'no model'}; received {name!r}")
    one = models[name]
    versions = tuple(sorted(one.model_version_policy.specific.versions))
    return Wanted(versions, dict(one.version_labels))


def default_name(base: Path) -> str:
    """What `models.config` calls the model; `model` where there is none."""
    path = base / CONFIG
    return next((one.name for one in _models(path)), "model") if path.is_file() else "model"


def _models(path: Path) -> list[Any]:
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    config = model_server_config_pb2.ModelServerConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), config)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no model_config_list: {error}") from None
    return list(config.model_config_list.config)


def _numbers(base: Path) -> list[int]:
    if not base.is_dir():
        return []
    return sorted(int(p.name) for p in base.iterdir() if p.name.isdigit() and _holds_model(p))


def _holds_model(folder: Path) -> bool:
    return (folder / "saved_model.pb").is_file()
