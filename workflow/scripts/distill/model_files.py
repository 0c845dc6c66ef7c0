"""Which files of a model's or an adapter's folder decide its answers."""

from fnmatch import fnmatch
from pathlib import Path

DECIDING = (
    "*.safetensors",
    "*.index.json",
    "pytorch_model*.bin",
    "adapter_model.bin",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "chat_template*",
)


def list_model_files(folder: str | Path) -> list[Path]:
    """Weights, configurations, tokenizer and template of a folder, sorted; what a training left beside them is none."""
    return sorted(path for path in Path(folder).glob("*") if any(fnmatch(path.name, name) for name in DECIDING))
