"""SavedModels that may do more than compute are refused before they are loaded."""

from pathlib import Path

import pytest

from tests.backbones.test_malformed import fifo, load, refused, written
from tfft.backbones import saved_graph


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A SavedModel with an asset, tables, dropout and an assertion, and it exported again."""
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("saved")
    (folder / "words.txt").write_text("a\nb\n")

    class Model(tf.__internal__.tracking.AutoTrackable):
        def __init__(self):
            super().__init__()
            self.weight = tf.Variable(tf.ones([3, 2]))
            self.variables = self.trainable_variables = [self.weight]
            self.asset = tf.saved_model.Asset(str(folder / "words.txt"))
            lines = tf.lookup.TextFileIndex
            self.table = tf.lookup.StaticHashTable(
                tf.lookup.TextFileInitializer(
                    self.asset, tf.string, lines.WHOLE_LINE, tf.int64, lines.LINE_NUMBER
                ),
                2,
            )
            self.counts = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def __call__(self, x):
            y = tf.gather(self.weight, self.table.lookup(x))
            tf.debugging.Assert(tf.reduce_all(self.counts.lookup(x) < 0), [x])
            return tf.nn.dropout(y, 0.5)

    tf.saved_model.save(Model(), str(folder / "first"))
    tf.saved_model.save(tf.saved_model.load(str(folder / "first")), str(folder / "again"))
    return folder


def changed(saved: Path, folder: Path, change, name="first") -> Path:
    """Copy a SavedModel, its protocol buffer changed in place."""
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    model.ParseFromString((saved / name / "saved_model.pb").read_bytes())
    change(model)
    for part in ("assets", "variables"):
        (folder / part).mkdir()
        for path in (saved / name / part).iterdir():
            (folder / part / path.name).symlink_to(path)
    return written(folder, "saved_model.pb", model.SerializeToString())


def functions(model, part: str):
    library = model.meta_graphs[0].graph_def.library
    return [f for f in library.function if part in f.signature.name]


@pytest.mark.parametrize("name", ["first", "again"])
def test_savedmodels_that_only_compute_are_allowed(saved, name):
    saved_graph.check(saved / name, "here")


_OPERATIONS = """
    Abort AudioMicrofrontendX CacheDataset CacheDatasetV2 Copy CreateSummaryFileWriter
    DebugIdentity DebugIdentityV3 DecodeProtoV2 EagerPyFunc FileSystemSetConfiguration
    ImmutableConst LoadAndRemapMatrix MapDataset MatchingFiles MergeV2Checkpoints
    MlirPassthroughOp OneShotIterator Print PrintV2 PyFunc PyFuncStateless ReadFile RemoteCall
    RestoreV2 SaveV2 ShardedFilename SnapshotDatasetV2 TFRecordDataset TextLineDataset
    WholeFileReaderV2 WriteFile WriteSummary XlaCallModule XlaCustomCall _Send
    __inference_restore_fn
"""


@pytest.mark.parametrize("where", ["main", "__call__", "_initializer", "_destroyer"])
def test_operations_of_savedmodels(saved, where, tmp_path):
    for operation in _OPERATIONS.split():

        def add(model, operation=operation):
            graph = model.meta_graphs[0].graph_def
            node = (graph.node if where == "main" else functions(model, where)[0].node_def).add()
            node.name, node.op = "added", operation

        folder = tmp_path / operation
        folder.mkdir()
        changed(saved, folder, add)
        words = f"holds the operation {operation}, which tfft never runs"
        refused(lambda f=folder: saved_graph.check(f, "here"), words, where)


def test_allowed_operations_are_of_tensorflow():
    import tensorflow_text  # noqa: F401 -- registers its operations
    from tensorflow.python.framework import op_def_registry

    assert all(op_def_registry.get(name).is_stateful for name in saved_graph._STATEFUL)
    names = """
        Const Conv2D FusedBatchNormV3 MatMul PartitionedCall Placeholder
        FastBertNormalize FastWordpieceTokenizeWithOffsets SentencepieceTokenizeWithOffsetsOp
        UnicodeScriptTokenizeWithOffsets WhitespaceTokenizeWithOffsets WordpieceTokenizeWithOffsets
    """
    for name in names.split():
        assert saved_graph.is_allowed(op_def_registry.get(name)), name


def call(node, function: str) -> None:
    node.name, node.op = "added", "StatefulPartitionedCall"
    node.attr["f"].func.name = function


def test_the_savers_functions_are_for_the_saver_alone(saved, tmp_path):
    def called(model):
        name = functions(model, "traced_save")[0].signature.name
        call(functions(model, "__call__")[0].node_def.add(), name)

    def offered(model):
        name = functions(model, "traced_restore")[0].signature.name
        model.meta_graphs[0].object_graph_def.concrete_functions[name].SetInParent()

    for at, (change, word) in enumerate(((called, "ShardedFilename"), (offered, "RestoreV2"))):
        (tmp_path / str(at)).mkdir()
        folder = changed(saved, tmp_path / str(at), change)
        refused(lambda f=folder: saved_graph.check(f, "here"), "traced", word)


@pytest.mark.parametrize("name", ["first", "again"])
@pytest.mark.parametrize("change", ["constant", "argument", "captured", "caller", "branch"])
def test_tables_are_read_from_assets_alone(saved, name, change, tmp_path):
    def edit(model):
        graph = model.meta_graphs[0]
        (reader,) = (
            f
            for f in functions(model, "_initializer")
            if any(n.op == "InitializeTableFromTextFileV2" for n in f.node_def)
        )
        node = next(n for n in reader.node_def if n.op == "InitializeTableFromTextFileV2")
        if change == "constant":
            node.input[1] = "Const:output:0"
        elif change == "argument":  # what a user sends
            for function in graph.object_graph_def.concrete_functions.values():
                if len(function.bound_inputs) == 2:
                    del function.bound_inputs[:]
        elif change == "captured":
            objects = graph.object_graph_def
            constant = next(
                i for i, n in enumerate(objects.nodes) if n.WhichOneof("kind") == "constant"
            )
            for function in objects.concrete_functions.values():
                if len(function.bound_inputs) == 2:
                    function.bound_inputs[0] = constant
        else:
            node = functions(model, "__call__")[0].node_def.add()
            call(node, reader.signature.name)
            node.input.extend(["x", "x"])
            if change == "branch":
                node.op = "If"

    folder = changed(saved, tmp_path, edit, name)
    refused(lambda: saved_graph.check(folder, "here"), "that is not an asset")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "name", ["saved_model.pb", "assets/words.txt", "variables/variables.index"]
)
def test_files_of_savedmodels(saved, name, tmp_path):
    changed(saved, tmp_path, lambda model: None)
    fifo(tmp_path / name)
    refused(lambda: load(tmp_path, "hub"), name, "not a regular file")


def asset(name: str):
    return lambda model: setattr(model.meta_graphs[0].asset_file_def[0], "filename", name)


def trainable_is_no_list(model) -> None:
    objects = model.meta_graphs[0].object_graph_def.nodes
    children = {child.local_name: child for child in objects[0].children}
    children["trainable_variables"].node_id = children["asset"].node_id


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (trainable_is_no_list, "TF2's reusable"),
        (asset("../../../etc/passwd"), "an asset lies outside of the SavedModel"),
        (asset("/etc/passwd"), "an asset lies outside of the SavedModel"),
        (lambda model: model.meta_graphs[0].ClearField("object_graph_def"), "TF2's reusable"),
        (lambda model: model.meta_graphs.add().CopyFrom(model.meta_graphs[0]), "TF2's reusable"),
        (lambda model: model.Clear(), "TF2's reusable"),
        # What TensorFlow's loader raises for this is a KeyError from within.
        (
            lambda model: model.meta_graphs[0].graph_def.library.ClearField("function"),
            "not a SavedModel that loads",
        ),
    ],
)
def test_savedmodels_of_another_form(saved, change, words, tmp_path):
    refused(lambda: load(changed(saved, tmp_path, change), "hub"), "hub:", words)


def test_a_cut_savedmodel(saved, tmp_path):
    changed(saved, tmp_path, lambda model: None)
    written(tmp_path, "saved_model.pb", (saved / "first" / "saved_model.pb").read_bytes()[:1000])
    refused(lambda: load(tmp_path, "hub"), "saved_model.pb cannot be read")
