"""What stands beside the versions of an export, for TF Serving: which versions, in what batches, in
which container, and how to ask.

    models.config           the versions that are loaded, and their labels
    batching_params.pbtxt   how requests are joined and split: the same for every export
    docker-compose.yaml     TF Serving on this machine
    kubernetes.yaml         TF Serving on a cluster
    README.md               the calls, for these signatures; how to promote and to roll back

The rules of TF Serving that they follow (server_core.cc, bundle_factory_util.cc):

- A label moves to a loaded version only. A config that moves it elsewhere is refused as a whole, so
  that its new versions are never loaded. Hence an export moves no label: it adds its version, which
  is loaded, and whoever runs the server moves the label then. Whatever configs a server has missed,
  the next one is accepted.
- A label can move back while the version before it is still loaded. Hence that one stays.
- The batching parameters are read once, at the start. Hence they do not depend on an export.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tensorflow as tf

from tfft import log, markdown
from tfft.export import served
from tfft.export.signatures import METHODS, Servable, fixed
from tfft.files import write_atomic
from tfft.spec import Task

STABLE = "stable"  # the label that clients ask for
SIZES = (1, 2, 4, 8, 16, 32)  # rows that are computed at once
MAX_ROWS = 4096  # of a request, which is split into batches of the largest size
WAITING = 4  # requests of so many rows that may wait for each signature
GAIN = 1.1  # a batch of twice the size is worth its memory if it answers this much more a second
PORTS = {"grpc": 8500, "rest": 8501}
CONFIG = "models.config"
BATCHING = "batching_params.pbtxt"
MARK = "written by tfft export"  # in the first line: what lacks it is another's and is left alone


@dataclass(frozen=True)
class Config:
    """The part of a models.config that changes.

    Attributes:
        versions: those that are loaded, ascending.
        labels: label -> version.
    """

    versions: Sequence[int] = ()
    labels: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Config":
        """Read a models.config, as it was written or edited; an empty one where there is none."""
        if not path.is_file():
            return cls()
        text = re.sub(r"#.*", "", path.read_text(encoding="utf-8", errors="replace"))
        entry = r"""version_labels\s*:?\s*[{<]\s*key\s*:\s*["'](.*?)["'][\s,;]*value\s*:\s*(\d+)"""
        labels = re.findall(entry, text)
        lists = re.findall(r"\bversions\s*:\s*(\d+|\[[\d,\s]*\])", text)
        versions = [int(number) for one in lists for number in re.findall(r"\d+", one)]
        return cls(sorted(versions), {label: int(number) for label, number in labels})

    def after_export(self, published: Sequence[int]) -> "Config":
        """Return the config that loads the newest version too, and moves no label.

        Loaded are the newest, those with a label, and the one before `stable`, to roll back to. A
        label whose version was deleted gets the newest one that was loaded before.

        Args:
            published: the versions that there are, ascending.
        """
        loaded = [number for number in self.versions if number in published]
        fallback = loaded[-1] if loaded else published[-1]
        labels = {
            label: number if number in published else fallback
            for label, number in {STABLE: fallback, **self.labels}.items()
        }
        before = [number for number in loaded if number < labels[STABLE]][-1:]
        return Config(sorted({*labels.values(), *before, published[-1]}), labels)


def write(folder: Path, name: str, servable: Servable) -> None:
    """Write the files beside the versions; no label of models.config moves.

    Args:
        folder: of the numbered versions.
        name: of the model.
    """
    config = Config.read(folder / CONFIG)
    after = config.after_export(list(served.versions(folder)))
    for label, number in config.labels.items():
        if after.labels[label] != number:
            log.say(
                f"export: version {number} of the label {label} is gone; it is now version "
                f"{after.labels[label]}"
            )
    files = {
        BATCHING: batching(),
        "docker-compose.yaml": compose(name),
        "kubernetes.yaml": kubernetes(name),
        "README.md": readme(name, servable, after),
        CONFIG: models_config(name, after),
    }
    _put(folder, files)


def _put(folder: Path, files: Mapping[str, str]) -> None:
    for file, text in files.items():
        path = folder / file
        if path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
            log.say(f"export: {path} is not tfft's and stays as it is")
            continue
        mark = f"<!-- {MARK} -->" if file.endswith(".md") else f"# {MARK}"
        write_atomic(path, f"{mark}\n{text}")


def model_name(text: str) -> str:
    """A name that TF Serving's URLs and Kubernetes take: small letters, digits, dashes."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return plain[:50].strip("-") or "model"


def warm_up_sizes(rates: Mapping[int, float]) -> list[int]:
    """Return the batch sizes up to that from which twice as many rows a batch gain nothing more.

    Args:
        rates: batch size -> rows a second.
    """
    sizes = [size for size in SIZES if size in rates]
    last = 0
    for at in range(1, len(sizes)):
        if rates[sizes[at]] >= GAIN * rates[sizes[last]]:
            last = at
    return sizes[: last + 1] or [1]


def models_config(name: str, config: Config) -> str:
    """TF Serving's model_config_list, with a label on each line of its own."""
    versions = "\n".join(f"        versions: {number}" for number in config.versions)
    labels = "\n".join(
        f'    version_labels {{ key: "{label}" value: {number} }}'
        for label, number in config.labels.items()
    )
    return f"""\
# Clients ask for {name}/labels/{STABLE}, or for {name}: the newest version. An export adds its
# version and moves no label; README.md says how to move one. TF Serving reads this file again every
# 30 seconds.
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


def batching() -> str:
    """TF Serving's batching parameters, the same for every export."""
    allowed = "\n".join(f"allowed_batch_sizes: {size}" for size in (*SIZES, MAX_ROWS))
    return f"""\
# TF Serving reads this file when it starts, and not again. A batch waits this many microseconds for
# more requests, and is computed in one of the allowed sizes; requests with more rows than
# max_execution_batch_size are split. The last allowed size must be max_batch_size. Lower
# max_execution_batch_size, and leave out the sizes between it and the last, where a batch takes too
# long or too much memory.
max_batch_size {{ value: {MAX_ROWS} }}
enable_large_batch_splitting {{ value: true }}
max_execution_batch_size {{ value: {SIZES[-1]} }}
batch_timeout_micros {{ value: 1000 }}
max_enqueued_batches {{ value: {WAITING * MAX_ROWS // SIZES[-1]} }}
{allowed}
"""


def _flags(name: str) -> list[str]:
    return [
        f"--model_config_file=/models/{name}/{CONFIG}",
        "--model_config_file_poll_wait_seconds=30",
        "--allow_version_labels_for_unavailable_models=true",
        "--enable_batching=true",
        f"--batching_parameters_file=/models/{name}/{BATCHING}",
    ]


def _image() -> str:
    """TF Serving's first release of TensorFlow's version: not every patch of TensorFlow has one."""
    major, minor, *_ = tf.__version__.split(".")
    return f"tensorflow/serving:{major}.{minor}.0"


def compose(name: str) -> str:
    """One container over this folder."""
    flags = "\n".join(f"      - {flag}" for flag in _flags(name))
    return f"""\
# docker compose up: TF Serving over this folder. Its TensorFlow must not be older than the model's.
services:
  {name}:
    image: {_image()}
    command:
{flags}
    ports:
      - "{PORTS["grpc"]}:8500"
      - "{PORTS["rest"]}:8501"
    volumes:
      - .:/models/{name}:ro
    healthcheck:
      test: ["CMD", "bash", "-c", "exec 3<>/dev/tcp/localhost/8501"]
      interval: 10s
"""


def kubernetes(name: str) -> str:
    """A deployment over a volume that holds this folder, and a service."""
    flags = "\n".join(f"            - {flag}" for flag in _flags(name))
    return f"""\
# kubectl apply -f kubernetes.yaml, once the claim {name} holds the content of this folder.
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {name}
spec:
  replicas: 2
  selector:
    matchLabels: {{app: {name}}}
  template:
    metadata:
      labels: {{app: {name}}}
    spec:
      containers:
        - name: serving
          image: {_image()}
          args:
{flags}
          ports:
            - {{name: grpc, containerPort: 8500}}
            - {{name: rest, containerPort: 8501}}
          readinessProbe:
            httpGet: {{path: /v1/models/{name}, port: rest}}
          resources:
            requests: {{cpu: "1", memory: 1Gi}}
          volumeMounts:
            - {{name: models, mountPath: /models/{name}, readOnly: true}}
      volumes:
        - name: models
          persistentVolumeClaim: {{claimName: {name}, readOnly: true}}
---
apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  selector: {{app: {name}}}
  ports:
    - {{name: grpc, port: {PORTS["grpc"]}, targetPort: grpc}}
    - {{name: rest, port: {PORTS["rest"]}, targetPort: rest}}
"""


def readme(name: str, servable: Servable, config: Config) -> str:
    """How to serve it, how to ask, and how to promote a version and to roll back."""
    columns = servable.inputs.columns
    url = f"http://localhost:{PORTS['rest']}/v1/models/{name}"
    row = ", ".join(f'"{column}": {_json_of(column)}' for column in columns)
    python = ", ".join(f'"{column}": {_python_of(column)}' for column in columns)
    before, given = _cli(columns)
    classes = markdown.text(", ".join(servable.labels))
    version, stable = config.versions[-1], config.labels[STABLE]
    former = max((number for number in config.versions if number < version), default=version)
    former = stable if stable != version else former
    return f"""\
# {name}

{servable.task.name}: {_answered(servable.task)} Classes: {classes}.

## Serve

```sh
docker compose up                                      # TF Serving, as docker-compose.yaml says
tfft serve --model_base_path=. --model_name={name}     # to try it out, without a container
```

TF Serving must not be older than {_image().rpartition(":")[2]}. Copy the folder of a version to a
server before models.config, which names it. {BATCHING} is read when a server starts. An export
writes the files beside the versions again, except one whose first line, "{MARK}", was
removed.

## Promote and roll back

Clients that ask for `{name}/labels/{STABLE}` get version {stable}, those that ask for `{name}` the
newest. An export moves no label: version {version} is loaded beside those that were. TF Serving
moves a label to a loaded version only, so look first, on every server:

```sh
curl {url}/versions/{version}     # until its state is AVAILABLE
```

Then promote it by its number in models.config, which a server reads again every 30 seconds:

```sh
sed -i 's/"{STABLE}" value: [0-9]*/"{STABLE}" value: {version}/' models.config
```

The version that was `{STABLE}` before is still loaded; roll back by its number:

```sh
sed -i 's/"{STABLE}" value: [0-9]*/"{STABLE}" value: {former}/' models.config
```

If a label was moved too early, TF Serving logs that the version "is not currently available for
inference", loads nothing, and serves what it served. Put the old number back, wait until the
version is loaded, and move the label again.

A label for some of the clients is one more line in models.config,
`version_labels {{ key: "canary" value: {version} }}`; exports leave it where it is, and its version
loaded.

## Ask

```sh
curl {url}
curl -d '{{"instances": [{{{row}}}]}}' {url}:predict
curl -d '{{"signature_name": "classify", "examples": [{{{row}}}]}}' {url}/labels/stable:classify
curl {url}/metadata
```

A request has 1 to {MAX_ROWS:,} rows; TF Serving does not answer one without rows.{_status(columns)}

```python
import base64, requests

row = {{{python}}}
answer = requests.post("{url}:predict", json={{"instances": [row]}}, timeout=10).json()
print(answer["predictions"][0])
```

```python
import grpc, tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

channel = grpc.insecure_channel("localhost:{PORTS["grpc"]}")
request = predict_pb2.PredictRequest()
request.model_spec.name = "{name}"
for column, value in {{{_grpc_row(columns)}}}.items():
    request.inputs[column].CopyFrom(tf.make_tensor_proto([value]))
stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
answer = stub.Predict(request, timeout=10)
print(tf.make_ndarray(answer.outputs["probabilities"]))
```

Without a server, `import tensorflow_text` first:

```sh
{before}python -c 'import sys, tensorflow_text
from tensorflow.python.tools.saved_model_cli import main
sys.exit(main())' run --dir={version} --tag_set=serve --signature_def=serving_default \\
  {given}
```

## Signatures

{_table(servable)}
"""


def _status(columns: Sequence[str]) -> str:
    if "image" not in columns:
        return ""
    return """

An image that cannot be decoded fails no other row: its `status` is the reason, and `ok` elsewhere.
Its probabilities are 0 and its label is empty; `classify` shows such a row by scores of 0."""


def _table(servable: Servable) -> str:
    columns, classes = servable.inputs.columns, len(servable.labels)
    rows = [
        ("signature", "takes", "answers"),
        ("---", "---", "---"),
        (
            "`serving_default`",
            ", ".join(f"`{column}`" for column in columns) + ": strings [B]",
            _outputs(servable.task),
        ),
        ("`tensors`", _prepared(servable), "the same"),
        (
            "`serialized`",
            f"`examples`: tf.Examples with the features {', '.join(columns)}",
            "the same",
        ),
        *(
            (f"`{m}`", "`inputs`: such tf.Examples", f"`classes`, `scores` [B, {classes}]")
            for m in METHODS
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _answered(task: Task) -> str:
    if task.several:
        return "the probability of each class; those from its threshold on are chosen."
    return "the probability of each class, and the most probable one."


def _outputs(task: Task) -> str:
    chosen = ", `chosen` [B, C]" if task.several else ""
    return f"`probabilities` float32 [B, C]{chosen}, `label` string [B]"


def _prepared(servable: Servable) -> str:
    specs = fixed(servable.inputs).items()
    shape = {
        name: ", ".join("B" if size is None else str(size) for size in spec.shape)
        for name, spec in specs
    }
    return ", ".join(f"`{name}` {spec.dtype.name} [{shape[name]}]" for name, spec in specs)


def _json_of(column: str) -> str:
    if column == "image":
        return """{"b64": "\'"$(base64 -w0 picture.jpg)"\'"}"""
    return '"an example"'


def _python_of(column: str) -> str:
    if column == "image":
        return '{"b64": base64.b64encode(open("picture.jpg", "rb").read()).decode()}'
    return '"an example"'


def _grpc_row(columns: Sequence[str]) -> str:
    values = {
        c: 'open("picture.jpg", "rb").read()' if c == "image" else '"an example"' for c in columns
    }
    return ", ".join(f'"{column}": {value}' for column, value in values.items())


def _cli(columns: Sequence[str]) -> tuple[str, str]:
    """What must be run before saved_model_cli, and its inputs: literals, or files of numpy's."""
    if "image" in columns:
        code = 'import numpy; numpy.save("picture.npy", [open("picture.jpg", "rb").read()])'
        return f"python -c '{code}'\n", "--inputs='image=picture.npy'"
    given = ";".join(f'{column}=["an example"]' for column in columns)
    return "", f"--input_exprs='{given}'"
