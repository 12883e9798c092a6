"""KerasHub presets with random weights: saved here, loaded by tfft."""

import json

import keras
import numpy as np
import pytest

from tfft import backbones, preprocess
from tfft.config import DataConfig, ModelConfig
from tfft.config.tasks import TextClassification
from tfft.utils.errors import UserError

SIZES = {
    "vocabulary_size": 30,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 12,
    "max_sequence_length": 16,
}
DATA = DataConfig(train="x.csv", max_length=12)


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    import keras_hub

    folder = tmp_path_factory.mktemp("presets")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "sky", "un", "##red", "!", "好"]
    keras.utils.set_random_seed(0)
    bert = keras_hub.models.BertBackbone(**SIZES)
    bert.save_to_preset(folder / "bert")
    keras_hub.tokenizers.BertTokenizer(words, lowercase=True).save_to_preset(folder / "bert")
    roberta = keras_hub.models.RobertaBackbone(**SIZES)
    roberta.save_to_preset(folder / "roberta")
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "r", "e", "d", "Ġ", "re", "red", "Ġred"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = ["r e", "re d", "Ġ red"]
    keras_hub.tokenizers.RobertaTokenizer(vocabulary, merges).save_to_preset(folder / "roberta")
    return folder, {"bert": bert, "roberta": roberta}


def test_optional_preset_files_are_not_requested(presets, monkeypatch):
    """A downloaded preset must load without a network."""
    from keras_hub.src.utils import preset_utils

    folder, _ = presets
    requested, get_file = set(), preset_utils.get_file

    def offline(preset, file):
        requested.add(file)
        if not (folder / "bert" / file).exists():
            raise ConnectionError("no network")
        return get_file(preset, file)

    monkeypatch.setattr(preset_utils, "get_file", offline)
    model = ModelConfig(backbone=f"kerashub:{folder / 'bert'}")
    backbones.load(model)
    preprocess.load(model, DATA, TextClassification())
    assert requested == {"config.json", "model.weights.h5", "tokenizer.json"}
    for file in ("image_converter.json", "none.json"):
        assert preprocess.kerashub.read_settings(str(folder / "bert"), file, optional=True) == {}


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_features_equal_kerashub(presets, name):
    folder, originals = presets
    backbone = backbones.load(ModelConfig(backbone=f"kerashub:{folder / name}"))
    ids = np.array([[2, 5, 6, 3], [2, 7, 3, 0]], np.int32)
    inputs = {
        "token_ids": ids,
        "padding_mask": (ids != 0).astype(np.int32),
        "segment_ids": np.zeros_like(ids),
    }
    input_names = {tensor.name for tensor in originals[name].inputs}
    expected = originals[name]({k: v for k, v in inputs.items() if k in input_names})
    expected = expected["sequence_output"] if isinstance(expected, dict) else expected
    actual = backbone.model(inputs)
    np.testing.assert_allclose(actual["sequence"], expected, atol=1e-6)
    assert [s.name for s in backbone.stages][:3] == ["embeddings", "block_0", "block_1"]
    rebuilt = backbones.rebuild(json.loads(json.dumps(backbone.description)))
    assert [v.path for v in rebuilt.model.weights] == [v.path for v in backbone.model.weights]


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_tokenizer_encodes_equally_in_the_graph(presets, name):
    folder, _ = presets
    inputs = preprocess.load(
        ModelConfig(backbone=f"kerashub:{folder / name}"), DATA, TextClassification()
    )
    (ids, _, _), *_ = inputs.encode(["red Red" if name == "bert" else "red red"])
    assert ids == ([2, 5, 5, 3] if name == "bert" else [0, 10, 11, 2])
    in_graph = inputs.graph()(np.array(["red red", "sky 好!"]))
    host = inputs.batch(["red red", "sky 好!"])
    np.testing.assert_array_equal(in_graph["token_ids"], host["token_ids"])


def test_unknown_preset_is_refused():
    with pytest.raises(UserError, match="cannot be loaded"):
        backbones.load(ModelConfig(backbone="kerashub:./nowhere"))


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "adapter", "qlora", "bitfit", "norm"])
def test_methods_start_as_identity_and_merge_exactly(presets, name):
    """Methods also work on KerasHub's EinsumDense layers."""
    from pydantic import TypeAdapter

    from tfft.config import MethodConfig
    from tfft.methods import METHODS
    from tfft.model import assemble, masks, stages
    from tfft.tasks import TASKS

    backbone = backbones.load(ModelConfig(backbone=f"kerashub:{presets[0] / 'bert'}"))
    model = assemble(backbone, TASKS["text_classification"], TextClassification(), list("abc"))
    ids = np.array([[2, 5, 6, 3], [2, 7, 3, 4]], np.int32)
    inputs = {"token_ids": ids, "padding_mask": ids * 0 + 1, "segment_ids": ids * 0}
    initial = np.asarray(model(inputs, training=False))
    all_stages = stages(backbone, model)
    options = {"targets": "query|value|attention_output|feedforward"} if name in ("lora",) else {}
    config = TypeAdapter(MethodConfig).validate_python({"name": name, **options})
    (phase,) = METHODS[name].apply(model, all_stages, config)
    mask = masks.apply(model, all_stages, phase.rules)
    assert any(e.trainable and e.stage == "block_1" for e in mask.entries)
    adapted = np.asarray(model(inputs, training=False))
    np.testing.assert_allclose(adapted, initial, atol=1e-6 if METHODS[name].identity else 1e-2)
    if name not in ("lora", "dora", "ia3"):
        return
    for variable in model.weights:
        if f"/{name}/" in variable.path:
            variable.assign(variable + 0.5)
    trained = np.asarray(model(inputs, training=False))
    assert np.abs(trained - initial).max() > 1e-7
    with model.merged() as layers:
        assert layers
        np.testing.assert_allclose(model(inputs, training=False), trained, atol=1e-5)


def test_prefix_and_prompt_are_refused(presets):
    from pydantic import TypeAdapter

    from tfft.config import MethodConfig
    from tfft.methods import METHODS

    backbone = backbones.load(ModelConfig(backbone=f"kerashub:{presets[0] / 'bert'}"))
    for name in ("prefix", "prompt"):
        config = TypeAdapter(MethodConfig).validate_python({"name": name})
        with pytest.raises(UserError, match=rf"^method: {name} needs a .* loaded with hf:$"):
            METHODS[name].apply(backbone.model, backbone.stages, config)
