"""SavedModels that may do more than compute are refused before they are loaded."""

from pathlib import Path

import pytest

from tests.backbones.test_malformed import check_refused, load, make_fifo, write_file
from tfft.backbones import saved_graph


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a folder with a SavedModel (asset, tables, dropout, assertion) and its re-export."""
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
    tf.saved_model.save(tf.saved_model.load(str(folder / "first")), str(folder / "reexported"))
    return folder


def copy_with(saved: Path, folder: Path, change, name="first") -> Path:
    """Copy a SavedModel; `change` edits its protocol buffer in place."""
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    model.ParseFromString((saved / name / "saved_model.pb").read_bytes())
    change(model)
    for part in ("assets", "variables"):
        (folder / part).mkdir()
        for path in (saved / name / part).iterdir():
            (folder / part / path.name).symlink_to(path)
    return write_file(folder, "saved_model.pb", model.SerializeToString())


def functions(model, part: str):
    library = model.meta_graphs[0].graph_def.library
    return [f for f in library.function if part in f.signature.name]


@pytest.mark.parametrize("name", ["first", "reexported"])
def test_saved_models_that_only_compute_are_allowed(saved, name):
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
def test_operations_with_effects_are_refused(saved, where, tmp_path):
    for operation in _OPERATIONS.split():

        def add(model, operation=operation):
            graph = model.meta_graphs[0].graph_def
            node = (graph.node if where == "main" else functions(model, where)[0].node_def).add()
            node.name, node.op = "added", operation

        folder = tmp_path / operation
        folder.mkdir()
        copy_with(saved, folder, add)
        words = f"holds the operation {operation}, which tfft never runs"
        check_refused(lambda f=folder: saved_graph.check(f, "here"), words, where)


def test_allowed_operations_exist_in_tensorflow():
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


def test_saver_functions_must_have_no_other_caller(saved, tmp_path):
    def call_save(model):
        name = functions(model, "traced_save")[0].signature.name
        call(functions(model, "__call__")[0].node_def.add(), name)

    def expose_restore(model):
        name = functions(model, "traced_restore")[0].signature.name
        model.meta_graphs[0].object_graph_def.concrete_functions[name].SetInParent()

    for i, (change, word) in enumerate(
        ((call_save, "ShardedFilename"), (expose_restore, "RestoreV2"))
    ):
        (tmp_path / str(i)).mkdir()
        folder = copy_with(saved, tmp_path / str(i), change)
        check_refused(lambda f=folder: saved_graph.check(f, "here"), "traced", word)


@pytest.mark.parametrize("name", ["first", "reexported"])
@pytest.mark.parametrize("change", ["constant", "argument", "captured", "caller", "branch"])
def test_tables_are_read_only_from_assets(saved, name, change, tmp_path):
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
        elif change == "argument":  # the file name comes from a user
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

    folder = copy_with(saved, tmp_path, edit, name)
    check_refused(lambda: saved_graph.check(folder, "here"), "that is not an asset")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "name", ["saved_model.pb", "assets/words.txt", "variables/variables.index"]
)
def test_irregular_files_are_refused(saved, name, tmp_path):
    copy_with(saved, tmp_path, lambda model: None)
    make_fifo(tmp_path / name)
    check_refused(lambda: load(tmp_path, "hub"), name, "not a regular file")


def rename_asset(name: str):
    return lambda model: setattr(model.meta_graphs[0].asset_file_def[0], "filename", name)


def replace_trainable_list(model) -> None:
    objects = model.meta_graphs[0].object_graph_def.nodes
    children = {child.local_name: child for child in objects[0].children}
    children["trainable_variables"].node_id = children["asset"].node_id


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replace_trainable_list, "TF2's reusable"),
        (rename_asset("../../../etc/passwd"), "an asset must be inside of the SavedModel"),
        (rename_asset("/etc/passwd"), "an asset must be inside of the SavedModel"),
        (lambda model: model.meta_graphs[0].ClearField("object_graph_def"), "TF2's reusable"),
        (lambda model: model.meta_graphs.add().CopyFrom(model.meta_graphs[0]), "TF2's reusable"),
        (lambda model: model.Clear(), "TF2's reusable"),
        # TensorFlow's loader raises a KeyError for this.
        (
            lambda model: model.meta_graphs[0].graph_def.library.ClearField("function"),
            "the SavedModel cannot be loaded",
        ),
    ],
)
def test_unsupported_saved_models_are_refused(saved, change, words, tmp_path):
    check_refused(lambda: load(copy_with(saved, tmp_path, change), "hub"), "hub:", words)


def test_truncated_saved_model_is_refused(saved, tmp_path):
    copy_with(saved, tmp_path, lambda model: None)
    write_file(tmp_path, "saved_model.pb", (saved / "first" / "saved_model.pb").read_bytes()[:1000])
    check_refused(lambda: load(tmp_path, "hub"), "saved_model.pb cannot be read")
