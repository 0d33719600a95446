"""Writes a model's folder. Run by `models.py` with the engine's interpreter, which has torch and transformers.

convert.py smollm2 FILE.gguf FOLDER    with `gguf` on the path too
convert.py tiny FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Tensors of a layer: their names in GGUF, and in the Llama of transformers."""

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def llama(**shape: Any) -> dict[str, Any]:
    """A config.json of transformers. The rest of `shape` is in its words."""
    common = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    return {**common, "tie_word_embeddings": True, "torch_dtype": "bfloat16", **shape}


def write(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokens = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(tokens) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)


def smollm2(source: Path, folder: Path) -> None:
    """SmolLM2 from GGUF. Its embedding is also its output layer, so the file has no `output.weight`."""
    from gguf import GGUFReader  # noqa: PLC0415 - not in the engine's environment; only this model needs it
    from gguf.quants import dequantize  # noqa: PLC0415

    reader = GGUFReader(source)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert "output.weight" not in tensors

    def value(name: str) -> Any:
        return reader.fields[name].contents()

    def weight(name: str) -> torch.Tensor:
        return torch.from_numpy(dequantize(tensors[name].data, tensors[name].tensor_type).astype("float32"))

    heads = {"attn_q": value("llama.attention.head_count"), "attn_k": value("llama.attention.head_count_kv")}
    weights = {
        "model.embed_tokens.weight": weight("token_embd.weight"),
        "model.norm.weight": weight("output_norm.weight"),
    }
    for layer in range(value("llama.block_count")):
        for short, name in NAMES.items():
            tensor = weight(f"blk.{layer}.{short}.weight")
            weights[f"model.layers.{layer}.{name}.weight"] = (
                unrotated(tensor, heads[short]) if short in heads else tensor
            )
    config = llama(
        hidden_size=value("llama.embedding_length"),
        intermediate_size=value("llama.feed_forward_length"),
        num_hidden_layers=value("llama.block_count"),
        num_attention_heads=heads["attn_q"],
        num_key_value_heads=heads["attn_k"],
        vocab_size=weights["model.embed_tokens.weight"].shape[0],
        max_position_embeddings=value("llama.context_length"),
        rms_norm_eps=value("llama.attention.layer_norm_rms_epsilon"),
        rope_theta=value("llama.rope.freq_base"),
        bos_token_id=value("tokenizer.ggml.bos_token_id"),
        eos_token_id=value("tokenizer.ggml.eos_token_id"),
    )
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    write(folder, config, weights)


def unrotated(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo the order of rows that llama.cpp gives query and key weights: pairs of a rotary embedding side by side."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def tiny(folder: Path) -> None:
    """4.2 million random weights, the same at each making."""
    layers, hidden, head, inner = 4, 256, 64, 768
    generator = torch.Generator().manual_seed(0)
    vocabulary = tiny_tokenizer(folder)

    def random(rows: int, columns: int, scale: float = 0.05) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * scale

    weights = {"model.embed_tokens.weight": random(vocabulary, hidden, 1.0), "model.norm.weight": torch.ones(hidden)}
    for layer in range(layers):
        shapes = {
            "self_attn.q_proj": random(hidden, hidden),
            "self_attn.k_proj": random(hidden // 2, hidden),
            "self_attn.v_proj": random(hidden // 2, hidden),
            "self_attn.o_proj": random(hidden, hidden),
            "mlp.gate_proj": random(inner, hidden),
            "mlp.up_proj": random(inner, hidden),
            "mlp.down_proj": random(hidden, inner),
            "input_layernorm": torch.ones(hidden),
            "post_attention_layernorm": torch.ones(hidden),
        }
        weights |= {f"model.layers.{layer}.{name}.weight": tensor for name, tensor in shapes.items()}
    config = llama(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=hidden // head,
        num_key_value_heads=hidden // head // 2,
        head_dim=head,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        bos_token_id=0,
        eos_token_id=1,
    )
    write(folder, config, weights)


def tiny_tokenizer(folder: Path) -> int:
    """A byte-level BPE learned from torch's own sources: any text will do. Returns the size of its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    sources = sorted(str(path) for path in (Path(torch.__file__).parent / "nn" / "modules").glob("*.py"))
    tokenizer.train(sources, trainers.BpeTrainer(vocab_size=4096, special_tokens=special, initial_alphabet=alphabet))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192, "chat_template": CHAT_TEMPLATE}
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **names}, indent=1) + "\n")
    return int(tokenizer.get_vocab_size())


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["smollm2", source, folder]:
            smollm2(Path(source), Path(folder))
        case ["tiny", folder]:
            tiny(Path(folder))
        case _:
            sys.exit(__doc__)
