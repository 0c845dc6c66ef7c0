"""A model as it is named on a command line: loaded on demand, and told apart by content."""

from dataclasses import dataclass
from typing import Any

from distill.digest import digest_of
from distill.model_files import fingerprint_model
from distill.models import load_config, load_model, select_device, select_dtype
from distill.sampling import Sampling


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

    def config(self) -> Any:
        """The model's configuration.

        Raises:
            InputError: it is not there, or describes no model that transformers knows.
        """
        return load_config(self.model)

    def describe(self) -> dict[str, str | None]:
        """Names of what `fingerprint` digests."""
        parts = ("model", "adapter", "dtype", "quantization")
        return {name: getattr(self, name) for name in parts}

    def fingerprint(self, tokenizer: Any, sampling: Sampling) -> str:
        """Digest of everything that decides an answer to a prompt."""
        return digest_of(
            {
                "model": fingerprint_model(self.model, self.adapter),
                "dtype": str(select_dtype(self.dtype, select_device(self.device))),
                "quantization": self.quantization,
                "template": tokenizer.chat_template,
                "sampling": sampling.digest_parts(),
            }
        )
