"""Check that a SavedModel's graph only computes, holds variables and tables, draws random numbers.

A SavedModel is a program from an untrusted author. Operations with side effects are allowed by
name; all others are refused, in every function and before anything is loaded. A table's file must
be an asset of the SavedModel.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from google.protobuf.message import DecodeError
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.framework.op_def_pb2 import OpDef
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

from tfft.utils import keras_internals
from tfft.utils.errors import UserError
from tfft.utils.reading import regular_file

_GRAPH_LIMIT = 2**31 - 1  # bytes; the largest message that protobuf reads
_FILE_LIMIT = 64 << 30
_TABLE_FROM_FILE = "InitializeTableFromTextFileV2"
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")

# Stateful operations that models need.
_STATEFUL_NAMES = """
    Assert CheckNumerics CheckNumericsV2
    Case If StatefulPartitionedCall While
    AssignAddVariableOp AssignSubVariableOp AssignVariableOp DestroyResourceOp DisableCopyOnRead
    ReadVariableOp ResourceGather ResourceGatherNd ResourceScatterAdd ResourceScatterNdAdd
    ResourceScatterNdUpdate ResourceScatterUpdate ResourceStridedSliceAssign VarHandleOp
    VarIsInitializedOp VariableShape
    AnonymousHashTable AnonymousMutableDenseHashTable AnonymousMutableHashTable
    AnonymousMutableHashTableOfTensors HashTableV2 InitializeTableFromTextFileV2 InitializeTableV2
    LookupTableExportV2 LookupTableFindV2 LookupTableImportV2 LookupTableInsertV2
    LookupTableRemoveV2 LookupTableSizeV2 MutableDenseHashTableV2 MutableHashTableOfTensorsV2
    MutableHashTableV2
    Multinomial NonDeterministicInts RandomGamma RandomPoissonV2 RandomShuffle RandomStandardNormal
    RandomUniform RandomUniformInt RngReadAndSkip RngSkip StatefulStandardNormalV2
    StatefulTruncatedNormal StatefulUniform StatefulUniformFullInt StatefulUniformInt
    StatelessRandomGetAlg TruncatedNormal
    TensorArrayCloseV3 TensorArrayConcatV3 TensorArrayGatherV3 TensorArrayGradV3 TensorArrayReadV3
    TensorArrayScatterV3 TensorArraySizeV3 TensorArraySplitV3 TensorArrayV3 TensorArrayWriteV3
    CudnnRNN CudnnRNNBackprop CudnnRNNBackpropV2 CudnnRNNBackpropV3 CudnnRNNV2 CudnnRNNV3
    SentencepieceDetokenizeOp SentencepieceIdToStringOp SentencepieceOp SentencepieceStringToIdOp
    SentencepieceTokenizeOp SentencepieceTokenizeWithOffsetsOp SentencepieceVocabSizeOp
    WordpieceTokenizeWithOffsets
"""
_STATEFUL = frozenset(_STATEFUL_NAMES.split())
# Operations in the functions that `tf.saved_model.save` adds for saving; tfft never calls them.
_SAVER_OPERATIONS = frozenset({"MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename"})
# TensorFlow declares some operations stateless though they read or write files, or call code
# outside of the graph. Words in their names, or in the names of their inputs, outputs and
# attributes, identify them. `Abort` ends the process.
_EXTERNAL = re.compile(
    r"^_|^Abort$|CustomCall|Dataset|Debug|Iterator|Mlir|PyFunc|Reader|Remote|Snapshot|Summary"
)
_EXTERNAL_ARGUMENT = re.compile(
    r"(?:^|_)(?:address|datasets?|debug|descriptor|file|filenames?|filespec|memory|path"
    r"|token_input_output|urls?)(?:_|$)"
)


def check(folder: Path, where: str) -> None:
    """Refuse a SavedModel that may do more than compute.

    Args:
        folder: the SavedModel.
        where: prefix of error messages.

    Raises:
        UserError: Its graph holds a refused operation, one of its files is not a regular file
            inside of it, or it is not a SavedModel in TF2's format.
    """
    path = folder / "saved_model.pb"
    if not path.exists():
        raise UserError(f"{where}: {folder} holds no SavedModel (saved_model.pb)")
    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString(regular_file(path, _GRAPH_LIMIT).read_bytes())
    except (OSError, DecodeError) as error:
        raise UserError(f"{where}: {path} cannot be read: {error}") from None
    # For a SavedModel of any other form, TensorFlow's loader runs the whole main graph.
    if len(saved.meta_graphs) != 1 or not saved.meta_graphs[0].HasField("object_graph_def"):
        raise UserError(
            f"{where}: is not in TF2's reusable format (callable, with `variables`): a SavedModel "
            "of signatures alone, as TF1's are, cannot be fine-tuned"
        )
    graph = saved.meta_graphs[0]
    _check_files(folder, graph, where)
    _check_operations(graph, where)
    _check_tables(graph, where)


def is_allowed(operation: OpDef | None) -> bool:
    """Return whether an operation only computes, or is a stateful one that models need."""
    if operation is None:
        return False
    if operation.is_stateful:
        return operation.name in _STATEFUL
    arguments = (*operation.input_arg, *operation.output_arg, *operation.attr)
    return not _EXTERNAL.search(operation.name) and not any(
        _EXTERNAL_ARGUMENT.search(argument.name) for argument in arguments
    )


def _check_files(folder: Path, graph: MetaGraphDef, where: str) -> None:
    for asset in graph.asset_file_def:
        name = PurePosixPath(asset.filename)
        if name.is_absolute() or ".." in name.parts:
            raise UserError(
                f"{where}: an asset must be inside of the SavedModel. Received: {asset.filename!r}"
            )
        regular_file(folder / "assets" / name, _FILE_LIMIT)
    for path in sorted((folder / "variables").glob("variables*")):
        regular_file(path, _FILE_LIMIT)


def _check_operations(graph: MetaGraphDef, where: str) -> None:
    saver_functions = _saver_functions(graph)
    operations = {node.op for _, node in _nodes(graph)}
    refused = {op for op in operations if not is_allowed(keras_internals.op_definition(op))}
    for name, node in _nodes(graph):
        if node.op in refused and not (node.op in _SAVER_OPERATIONS and name in saver_functions):
            raise UserError(
                f"{where}: the function {name or 'main'!r} of its graph holds the operation "
                f"{node.op}, which tfft never runs"
            )


def _nodes(graph: MetaGraphDef) -> Iterator[tuple[str, NodeDef]]:
    """Yield (function, node) for all nodes; the function is "" for nodes of the main graph."""
    yield from (("", node) for node in graph.graph_def.node)
    for function in graph.graph_def.library.function:
        yield from ((function.signature.name, node) for node in function.node_def)


def _callers(graph: MetaGraphDef) -> dict[str, list[tuple[str, NodeDef]]]:
    """Return, for each function, the (function, node) pairs whose attributes refer to it."""
    callers: dict[str, list[tuple[str, NodeDef]]] = {}
    for name, node in _nodes(graph):
        functions = [a.func for a in node.attr.values() if a.HasField("func")]
        functions += [f for a in node.attr.values() for f in a.list.func]
        for function in {f.name for f in functions}:
            callers.setdefault(function, []).append((name, node))
    return callers


def _entries(graph: MetaGraphDef) -> set[str]:
    """Return the functions that are called from outside of the graph.

    The loader, the model's user and gradients call them.
    """
    library = graph.graph_def.library
    return {
        *graph.object_graph_def.concrete_functions,
        *(gradient.gradient_func for gradient in library.gradient),
        *(gradient.gradient_func for gradient in library.registered_gradients),
    }


def _saver_functions(graph: MetaGraphDef) -> set[str]:
    """Return the functions whose only callers are the saver's nodes in the main graph.

    The loader does not run that graph, so these functions are never called.
    """
    saver = graph.saver_def
    nodes = {name.partition(":")[0] for name in (saver.save_tensor_name, saver.restore_op_name)}
    callers = _callers(graph)
    exclusive = set(callers) - _entries(graph)

    def has_other_caller(function: str) -> bool:
        return any(
            name not in exclusive if name else node.name not in nodes
            for name, node in callers[function]
        )

    # Repeat until nothing changes: a function is exclusive only if all of its callers are.
    while shared := set(filter(has_other_caller, exclusive)):
        exclusive -= shared
    return exclusive


def _check_tables(graph: MetaGraphDef, where: str) -> None:
    """Refuse tables whose file names are not assets.

    Each file name is traced from its use, through all callers, to a function that the loader calls.
    There it must be a captured asset.

    Raises:
        UserError: A file name is computed in the graph or passed by the model's user.
    """
    library = {f.signature.name: f for f in graph.graph_def.library.function}
    callers, entries = _callers(graph), _entries(graph)
    pending = [(name, node, 1) for name, node in _nodes(graph) if node.op == _TABLE_FROM_FILE]
    visited = set()
    while pending:
        name, node, position = pending.pop()
        argument = node.input[position] if position < len(node.input) else ""
        if (name, argument) in visited:
            continue
        visited.add((name, argument))
        position = _argument_position(library.get(name), argument)
        # The loader does not run the main graph.
        calls = [(caller, node) for caller, node in callers.get(name, ()) if caller]
        if (
            position is None
            or (name in entries and not _is_asset(graph, library[name], position))
            or not all(node.op in _CALLS for _, node in calls)
        ):
            raise UserError(
                f"{where}: the function {name or 'main'!r} of its graph reads a table from a file "
                "that is not an asset, which tfft never does"
            )
        pending += [(caller, node, position) for caller, node in calls]


def _argument_position(function: FunctionDef | None, argument: str) -> int | None:
    """Return the position of an argument in a function's signature, or None if it is not there."""
    arguments = [] if function is None else list(function.signature.input_arg)
    # An argument that is a list takes several inputs of the caller, which shifts those after it.
    if any(a.number_attr or a.type_list_attr for a in arguments):
        return None
    names = [a.name for a in arguments]
    return names.index(argument) if argument in names else None


def _is_asset(graph: MetaGraphDef, function: FunctionDef, position: int) -> bool:
    """Return whether callers outside of the graph always pass an asset at this position."""
    objects = graph.object_graph_def
    if function.signature.name not in objects.concrete_functions:
        return False
    # Captured inputs come after the arguments that the caller passes.
    captures = objects.concrete_functions[function.signature.name].bound_inputs
    capture = position - (len(function.signature.input_arg) - len(captures))
    return (
        0 <= capture < len(captures)
        and 0 <= captures[capture] < len(objects.nodes)
        and objects.nodes[captures[capture]].WhichOneof("kind") == "asset"
    )
