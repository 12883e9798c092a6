"""Train and serve each task: three clients and saved_model_cli get the live model's answers."""

import ast
import base64
import json
import re
import subprocess
import sys

import grpc
import numpy as np
import pytest
import requests
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

import tfft
from tests.serve.conftest import stop, tfft_server
from tests.tasks import samples
from tfft.export import signatures
from tfft.export.signatures import example

BOUND = 1e-5  # largest difference of a probability
NUM_ROWS = 4  # rows of each request


CASES = [
    *samples.SAMPLES.items(),
    ("text_classification", samples.text_pair_data),
    ("text_classification", samples.text_image_data),
    ("text_regression", samples.text_image_numbers),
]


@pytest.mark.slow  # tests/serve/test_clients.py serves a text classifier
@pytest.mark.parametrize(("task", "build_data"), CASES)
def test_clients_get_the_live_models_answers(task, build_data, tiny, tmp_path):
    data, backbone, *section = build_data(tiny, tmp_path)
    config = {
        "data": {**data, "validation": {"fraction": 0.25}},
        "model": samples.model_section(backbone),
        "task": {"name": task, **dict(*section)},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"epochs": 2, "batch_size": 8},
        "evaluate": {"bootstrap": 0, "baselines": False},
    }
    run = tfft.train(config, tmp_path / "run")
    raw = [run.inputs.request_row(run.datasets.train.raw_row(i)) for i in range(NUM_ROWS)]
    rows = [[v.encode() if isinstance(v, str) else v for v in row] for row in raw]
    train_rows = [run.datasets.train.raw_row(i) for i in range(NUM_ROWS)]
    answers = run.predict(train_rows)
    # The number that all clients must get: of a task of tokens that of its answers to raw texts.
    name = "score" if run.task.of_tokens else run.task.output
    live = run.task.activate(run.logits(train_rows), run.fitted)
    if task == "token_classification":
        live = np.zeros((NUM_ROWS, int(run.fitted["max_entities"][0])))
        for row, answer in zip(live, answers, strict=True):
            row[: len(answer["entities"])] = [entity["score"] for entity in answer["entities"]]
    elif task == "question_answering":
        live = [answer["score"] for answer in answers]
    columns = run.inputs.columns
    server = tfft_server(run.workdir / "export")
    try:
        for predict in (predict_by_curl, predict_by_requests, predict_by_grpc):
            outputs = predict(server, columns, rows, tmp_path)
            assert_close(outputs[name], live)
            if "answer" in outputs:
                assert outputs["answer"] == [answer["answer"] for answer in answers]
            if "entity" in outputs:
                texts = [[e["text"] for e in answer["entities"]] for answer in answers]
                assert [[t for t in row if t] for row in outputs["entity"]] == texts
            if "label" in outputs:
                assert outputs["label"] == [
                    answer.get("label", "|".join(answer.get("labels", []))) for answer in answers
                ]
        for signature in signatures.of_examples(run.task, run.labels, run.inputs):
            CALLS[signature](server, columns, rows, run.labels, live)
    finally:
        assert stop(server) == 0
    numbers = predict_by_saved_model_cli(run.workdir / "export" / "1", columns, raw, tmp_path, name)
    assert_close(numbers, live)


def assert_close(actual, live):
    """Compare within the bound, relative to numbers larger than 1."""
    np.testing.assert_allclose(actual, live, atol=BOUND, rtol=BOUND)


def instances(columns, rows):
    return [
        {c: {"b64": base64.b64encode(v).decode()} for c, v in zip(columns, row, strict=True)}
        for row in rows
    ]


def predict_by_curl(server, columns, rows, folder):
    (folder / "body").write_text(json.dumps({"instances": instances(columns, rows)}))
    command = ["curl", "-s", "--fail", "-d", f"@{folder / 'body'}", f"{server.model}:predict"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    predictions = json.loads(process.stdout)["predictions"]
    # An answer of one output has no names.
    if not isinstance(predictions[0], dict):
        return {"values": predictions}
    return {name: [row[name] for row in predictions] for name in predictions[0]}


def predict_by_requests(server, columns, rows, folder):
    inputs = {c: [row[c] for row in instances(columns, rows)] for c in columns}
    outputs = server.post(json={"inputs": inputs}).json()["outputs"]
    return outputs if isinstance(outputs, dict) else {"values": outputs}


def predict_by_grpc(server, columns, rows, folder):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = server.name
    for column, values in zip(columns, zip(*rows, strict=True), strict=True):
        request.inputs[column].CopyFrom(tf.make_tensor_proto(list(values)))
    with grpc.insecure_channel(server.grpc) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        outputs = stub.Predict(request, timeout=30).outputs
    arrays = {name: tf.make_ndarray(output) for name, output in outputs.items()}
    for name in {"label", "answer"} & set(arrays):
        arrays[name] = [text.decode() for text in arrays[name]]
    if "entity" in arrays:
        arrays["entity"] = [[text.decode() for text in row] for row in arrays["entity"]]
    return arrays


def classify(server, columns, rows, labels, live):
    """Compare the answers of TF Serving's Classify call."""
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name, request.model_spec.signature_name = server.name, "classify"
    for row in rows:
        request.input.example_list.examples.add().ParseFromString(example(columns, row))
    with grpc.insecure_channel(server.grpc) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        classifications = stub.Classify(request, timeout=30).result.classifications
    classes = [[entry.label for entry in row.classes] for row in classifications]
    assert classes == [labels] * NUM_ROWS
    assert_close([[entry.score for entry in row.classes] for row in classifications], live)


def regress(server, columns, rows, labels, live):
    """Compare the answers of TF Serving's Regress call, by gRPC and REST."""
    request = regression_pb2.RegressionRequest()
    request.model_spec.name, request.model_spec.signature_name = server.name, "regress"
    for row in rows:
        request.input.example_list.examples.add().ParseFromString(example(columns, row))
    with grpc.insecure_channel(server.grpc) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        regressions = stub.Regress(request, timeout=30).result.regressions
    assert_close([[regression.value] for regression in regressions], live)
    body = {"signature_name": "regress", "examples": instances(columns, rows)}
    response = requests.post(f"{server.model}:regress", json=body, timeout=30).json()
    assert_close([[value] for value in response["results"]], live)


CALLS = {"classify": classify, "regress": regress}


def predict_by_saved_model_cli(folder, columns, rows, folder_, output_name):
    """Return an output of TensorFlow's saved_model_cli, run as in the export's README."""
    readme = (folder.parent / "README.md").read_text()
    code = re.findall(r"python -c '(.*?)'", readme, re.S)[-1]
    by_column, arguments = dict(zip(columns, zip(*rows, strict=True), strict=True)), []
    if (images := by_column.pop("image", None)) is not None:
        assert "--inputs='image=image.npy'" in readme
        (folder_ / "image.jpg").write_bytes(images[0])
        save_code = re.search(r"python -c '(import numpy.*?)'", readme)[1]
        subprocess.run([sys.executable, "-c", save_code], cwd=folder_, check=True)
        (saved_image,) = np.load(folder_ / "image.npy")
        assert saved_image == images[0]
        np.save(folder_ / "image.npy", list(images))
        arguments.append(f"--inputs=image={folder_ / 'image.npy'}")
    if by_column:
        values = ";".join(f"{c}={list(values)!r}" for c, values in by_column.items())
        assert "--input_exprs='" in readme
        arguments.append(f"--input_exprs={values}")
    process = subprocess.run(
        [
            *(sys.executable, "-c", code, "run", f"--dir={folder}", "--tag_set=serve"),
            *("--signature_def=serving_default", *arguments),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    output = process.stdout.split(f"Result for output key {output_name}:\n")[1].split("Result")[0]
    return ast.literal_eval(re.sub(r"(?<=[\d.\]])\s+(?=[-\d\[])", ", ", output.strip()))
