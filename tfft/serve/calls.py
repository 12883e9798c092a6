"""Answer the calls of PredictionService with one version of a model, for gRPC and for warm-up.

They follow servables/tensorflow/predict_util.cc and multi_inference.cc.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from tfft.serve import examples, tensor_protos
from tfft.serve.failure import Failure, invalid
from tfft.serve.loaded import DEFAULT, Arrays, LoadedVersion, Signature

Run = Callable[[Signature, Arrays], Arrays]


def predict(loaded: LoadedVersion, request: Any, run: Run, max_bytes: int) -> Any:
    """Answer a PredictRequest.

    Args:
        loaded: the version of the model.
        request: the message.
        run: computes a signature's outputs.
        max_bytes: largest memory of the inputs.

    Raises:
        Failure: the request does not fit the signature, or the graph rejects its inputs.
    """
    signature = loaded.signature(
        request.model_spec.signature_name,
        lambda n: Failure("FAILED_PRECONDITION", f'Serving signature key "{n}" not found.'),
    )
    signature.check_names(request.inputs)
    inputs = tensor_protos.arrays(request.inputs, max_bytes)
    output_names: list[str] = []
    for name in request.output_filter:
        if name not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} Outputs expected to be in the "
                f"set {{{','.join(sorted(signature.outputs))}}}."
            )
        if name in output_names:
            raise invalid(f"duplicate output tensor alias: {name}")
        output_names.append(name)
    outputs = run(signature, inputs)
    response = predict_pb2.PredictResponse(model_spec=_response_spec(loaded, request.model_spec))
    # Without a filter, all outputs are returned.
    for name in output_names or outputs:
        response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name]))
    return response


def classify(loaded: LoadedVersion, request: Any, run: Run, max_bytes: int) -> Any:
    """Answer a ClassificationRequest; see `predict`."""
    return classification_pb2.ClassificationResponse(
        model_spec=_response_spec(loaded, request.model_spec),
        result=_infer("classify", loaded, request, run, max_bytes),
    )


def regress(loaded: LoadedVersion, request: Any, run: Run, max_bytes: int) -> Any:
    """Answer a RegressionRequest; see `predict`."""
    return regression_pb2.RegressionResponse(
        model_spec=_response_spec(loaded, request.model_spec),
        result=_infer("regress", loaded, request, run, max_bytes),
    )


def _infer(method: str, loaded: LoadedVersion, request: Any, run: Run, max_bytes: int) -> Any:
    signature = examples.signature(loaded, request.model_spec.signature_name, method)
    inputs = examples.serialize(request.input, max_bytes)
    return examples.result(method, run(signature, inputs), inputs)


def multi_inference(loaded: LoadedVersion, request: Any, run: Run, max_bytes: int) -> Any:
    """Answer a MultiInferenceRequest: several signatures over the same examples; see `predict`."""
    methods = {name: method for method, name in examples.METHODS.items()}
    signatures: dict[str, Signature] = {}
    for task in request.tasks:
        spec = task.model_spec
        if not spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if spec.name != request.tasks[0].model_spec.name:
            raise invalid(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        name = spec.signature_name or DEFAULT
        if name in signatures:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        signatures[name] = loaded.signature(
            name, lambda n: invalid(f"Requested signature not found in model graph: {n}")
        )
        if task.method_name not in methods:
            raise Failure("UNIMPLEMENTED", f"Unsupported signature method_name: {task.method_name}")
        examples.check_signature(signatures[name], methods[task.method_name])
    inputs = examples.serialize(request.input, max_bytes)
    response = inference_pb2.MultiInferenceResponse()
    for task, signature in zip(request.tasks, signatures.values(), strict=True):
        method = methods[task.method_name]
        # Each signature runs by itself on the same examples.
        result = examples.result(method, run(signature, inputs), inputs)
        entry = response.results.add(model_spec=_response_spec(loaded, task.model_spec))
        if method == "classify":
            entry.classification_result.CopyFrom(result)
        else:
            entry.regression_result.CopyFrom(result)
    return response


def _response_spec(loaded: LoadedVersion, request_spec: Any) -> Any:
    """Return the name, signature and version that answered, as TF Serving reports them."""
    spec = model_pb2.ModelSpec(
        name=request_spec.name, signature_name=request_spec.signature_name or DEFAULT
    )
    spec.version.value = loaded.version
    return spec
