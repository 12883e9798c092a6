"""Write tests/golden/methods: outputs of the `peft` package on the tiny golden BERT.

For each method: the random values of its variables, the features, and the gradients of a weighted
sum of the features, under the paths of tfft's variables. peft has no bottleneck adapters; forward
hooks add them to the PyTorch model here.

    pip install torch==2.13.0 transformers==5.24.0 peft==0.21.2
    python tests/reference/make_golden_methods.py
"""

from pathlib import Path

import numpy as np
import peft
import torch
import transformers as hf

ROOT = Path(__file__).parent.parent / "golden"
OUT = ROOT / "methods"
BERT = ROOT / "encoders" / "bert"
TFFT_NAMES = {
    "attention.self.query": "attention/query",
    "attention.self.key": "attention/key",
    "attention.self.value": "attention/value",
    "attention.output.dense": "attention/out",
    "intermediate.dense": "up",
    "output.dense": "down",
}
ALL_MODULES = [
    "query",
    "key",
    "value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]
LORA = {"r": 4, "lora_alpha": 6, "lora_dropout": 0.0, "target_modules": ["query", "value"]}
CASES = {
    "lora": peft.LoraConfig(**LORA),
    "lora_rank_stabilized": peft.LoraConfig(
        **{**LORA, "use_rslora": True, "target_modules": ALL_MODULES}
    ),
    "dora": peft.LoraConfig(**{**LORA, "use_dora": True}),
    "ia3": peft.IA3Config(
        target_modules=r".*(key|value|\d\.output\.dense)",
        feedforward_modules=r".*\d\.output\.dense",
    ),
}
LENGTH = 5  # of prefix and prompt


def inputs() -> dict[str, torch.Tensor]:
    values = np.load(BERT / "expected.npz")
    return {
        "input_ids": torch.tensor(values["token_ids"]).long(),
        "attention_mask": torch.tensor(values["padding_mask"]).long(),
        "token_type_ids": torch.tensor(values["segment_ids"]).long(),
    }


def model() -> hf.BertModel:
    return hf.BertModel.from_pretrained(BERT, attn_implementation="eager").eval()


def tfft_path(name: str) -> str:
    """Return tfft's path, `encoder.layer.0.attention.self.query.*` -> `block_0/attention/query`."""
    block, rest = name.split("encoder.layer.")[1].split(".", 1)
    for module in sorted(TFFT_NAMES, key=len, reverse=True):
        if rest.startswith(module + "."):
            return f"block_{block}/{TFFT_NAMES[module]}"
    raise KeyError(name)


def entries(name: str, parameter: torch.nn.Parameter) -> dict[str, tuple]:
    """Return tfft's paths -> conversion of the parameter, or of its gradient, to the variable."""
    if "prompt_encoder" in name:
        return (
            prefix_entries()
            if parameter.shape[1] > 16
            else {"embeddings/prompt/vectors": lambda v: v}
        )
    path = tfft_path(name)
    if ".lora_A." in name:
        return {f"{path}/lora/a": lambda v: v.T}
    if ".lora_B." in name:
        return {f"{path}/lora/b": lambda v: v.T}
    if ".lora_magnitude_vector." in name:
        return {f"{path}/lora/magnitude": lambda v: v}
    return {f"{path}/ia3/scale": lambda v: v.reshape(-1)}


def prefix_entries() -> dict[str, tuple]:
    """Return the conversions of a prefix, [P, layers * 2 * D], to keys and values, [H, P, d]."""

    def part(layer: int, offset: int):
        def convert(v: np.ndarray) -> np.ndarray:
            heads, size = 2, 8
            parts = v.reshape(LENGTH, 2 * 2, heads, size)  # layers * 2
            return parts[:, 2 * layer + offset].transpose(1, 0, 2)

        return convert

    return {
        f"block_{layer}/attention/prefix/{name}": part(layer, offset)
        for layer in range(2)
        for offset, name in enumerate(("key", "value"))
    }


def backward(features: torch.Tensor) -> dict[str, np.ndarray]:
    """Backpropagate a sum of the features of real tokens with random weights; return both."""
    weights = np.random.default_rng(11).normal(size=tuple(features.shape)).astype(np.float32)
    weights *= np.load(BERT / "expected.npz")["padding_mask"][:, :, None]
    (features * torch.tensor(weights)).sum().backward()
    return {"sequence": features.detach().numpy(), "weights": weights}


def save(name: str, features: torch.Tensor, parameters: dict[str, torch.nn.Parameter]) -> None:
    """Write features, and values and gradients of the parameters."""
    arrays = backward(features)
    for name_in_peft, parameter in parameters.items():
        for path, convert in entries(name_in_peft, parameter).items():
            arrays[f"value|{path}"] = np.ascontiguousarray(convert(parameter.detach().numpy()))
            arrays[f"gradient|{path}"] = np.ascontiguousarray(convert(parameter.grad.numpy()))
    if name == "dora":
        arrays = {k.replace("/lora/", "/dora/"): v for k, v in arrays.items()}
    np.savez_compressed(OUT / f"{name}.npz", **arrays)
    print(name, len(parameters), "parameters")


def randomize(parameters: dict[str, torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(parameters.items()):
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.1
        initial = 1.0 if "ia3" in name else (parameter.data if "magnitude" in name else 0.0)
        parameter.data = initial + scale * noise


def peft_case(name: str, config: peft.PeftConfig) -> None:
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model(), config).eval()
    parameters = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    randomize(parameters, 5)
    save(name, adapted(**inputs()).last_hidden_state, parameters)


def prefix() -> None:
    config = peft.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=LENGTH)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model(), config).eval()
    parameters = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    randomize(parameters, 6)
    # peft's forward drops segments and gives the prefix the first positions. A prefix has no
    # positions (Li & Liang 2021), so call the base model directly with its keys and values.
    batch = inputs()
    rows, tokens = batch["input_ids"].shape
    batch["position_ids"] = torch.arange(tokens)[None].expand(rows, -1)
    ones = torch.ones(rows, LENGTH, dtype=torch.long)
    batch["attention_mask"] = torch.cat([ones, batch["attention_mask"]], dim=1)
    features = adapted.base_model(
        **batch, past_key_values=adapted.get_prompt(rows)
    ).last_hidden_state
    save("prefix", features, parameters)


def prompt() -> None:
    config = peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=LENGTH)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model(), config).eval()
    parameters = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    randomize(parameters, 7)
    batch = inputs()
    batch["token_type_ids"] = torch.zeros_like(batch["token_type_ids"])
    features = adapted(**batch).last_hidden_state[:, LENGTH:]
    save("prompt", features, parameters)


def adapter(name: str, modules: list[str]) -> None:
    """Write Houlsby et al. 2019: y + up(gelu(down(y))) after the sublayers' projections."""
    base = model()
    for parameter in base.parameters():
        parameter.requires_grad = False
    generator = torch.Generator().manual_seed(8)
    adapters: dict[str, dict[str, torch.nn.Parameter]] = {}
    for i, layer in enumerate(base.encoder.layer):
        for module_name in modules:
            dense = layer.get_submodule(module_name)
            width = dense.out_features
            shapes = {"down": (width, 6), "down_bias": (6,), "up": (6, width), "up_bias": (width,)}
            weights = {
                n: torch.nn.Parameter(0.3 * torch.randn(s, generator=generator))
                for n, s in shapes.items()
            }
            adapters[f"block_{i}/{TFFT_NAMES[module_name]}"] = weights

            def hook(module, args, y, weights=weights):
                inner = torch.nn.functional.gelu(y @ weights["down"] + weights["down_bias"])
                return y + inner @ weights["up"] + weights["up_bias"]

            dense.register_forward_hook(hook)
    features = base(**inputs()).last_hidden_state
    arrays = backward(features)
    for path, weights in adapters.items():
        for key, parameter in weights.items():
            arrays[f"value|{path}/adapter/{key}"] = parameter.detach().numpy()
            arrays[f"gradient|{path}/adapter/{key}"] = parameter.grad.numpy()
    np.savez_compressed(OUT / f"{name}.npz", **arrays)
    print(name, len(adapters), "adapters")


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for name, config in CASES.items():
        peft_case(name, config)
    adapter("adapter_houlsby", ["attention.output.dense", "output.dense"])
    adapter("adapter_pfeiffer", ["output.dense"])
    prompt()
    prefix()


if __name__ == "__main__":
    main()
