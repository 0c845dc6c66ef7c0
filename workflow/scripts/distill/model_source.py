"""A model as it is named on a command line: loaded on demand, and told apart by content."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from distill.generation import Sampling
from distill.models import digest_of, fingerprint_model, load_model, select_device, select_dtype


@dataclass(frozen=True)
class ModelSource:
    """Which model, and how it is loaded; names and values as in config/README.md."""

    model: str
    adapter: str | None = None
    dtype: str = "bfloat16"
    quantization: str = "none"
    device: str = "auto"

    def load(self) -> Any:
        """The model on its device, for inference."""
        device = select_device(self.device)
        return load_model(self.model, device, select_dtype(self.dtype, device), self.quantization, self.adapter)

    def fingerprint(self, tokenizer: Any, sampling: Sampling) -> str:
        """Digest of everything that decides an answer to a prompt."""
        commit = None if Path(self.model).is_dir() else AutoConfig.from_pretrained(self.model)._commit_hash
        return digest_of(
            {
                "model": fingerprint_model(self.model, self.adapter, commit),
                "dtype": str(select_dtype(self.dtype, select_device(self.device))),
                "quantization": self.quantization,
                "template": tokenizer.chat_template,
                "sampling": sampling.digest_parts(),
            }
        )
