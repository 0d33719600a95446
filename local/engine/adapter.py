"""Writes a LoRA adapter for a test model: small random weights in PEFT's format, the same for the same seed.

Standard library only. What such an adapter makes of a model is nonsense, but always the same nonsense: enough to see
that it is loaded. Called by tests and benchmarks.
"""

import json
import random
import struct
from array import array
from pathlib import Path

MODULES = ("q_proj", "v_proj")


def write(folder: Path, model: Path, *, seed: int, rank: int = 8, scale: float = 0.3) -> None:
    """Make `folder` an adapter of the model in the folder `model`. `scale`: standard deviation of its weights."""
    config = json.loads((model / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim", hidden // heads)
    outputs = {"q_proj": heads * head, "v_proj": config["num_key_value_heads"] * head}
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(config["num_hidden_layers"]):
        for module in MODULES:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            shapes[f"{name}.lora_A.weight"] = (rank, hidden)
            shapes[f"{name}.lora_B.weight"] = (outputs[module], rank)
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(_safetensors(shapes, random.Random(seed), scale))
    peft = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(MODULES),
        "base_model_name_or_path": model.name,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(peft, indent=1) + "\n")


def _safetensors(shapes: dict[str, tuple[int, int]], source: random.Random, scale: float) -> bytes:
    """A file in that format: length of the header, header, numbers."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    numbers = array("f")
    for name, (rows, columns) in shapes.items():
        begin = len(numbers) * numbers.itemsize
        numbers.extend(source.gauss(0.0, scale) for _ in range(rows * columns))
        end = len(numbers) * numbers.itemsize
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + numbers.tobytes()
