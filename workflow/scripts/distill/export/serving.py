"""Command lines that serve an exported model."""

import json
import shlex
from pathlib import Path

from distill.common.errors import InputError
from distill.common.variants import FULL, VARIANTS, Variant
from distill.models.fingerprint import WEIGHTS, list_model_files

HOST = "127.0.0.1"


def find_variant(folder: str) -> Variant:
    """The variant whose format a folder has; FULL for a folder with weights in any other format.

    Raises:
        InputError: the folder is not a model folder.
    """
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"{folder}: expected a model folder, found no config.json in it; see output/export")
    formats = {Path(variant.weights_file).suffix: variant for variant in reversed(VARIANTS.values())}
    found = {path.suffix for path in list_model_files(folder) if path.suffix in WEIGHTS}
    return formats.get(found.pop(), VARIANTS[FULL]) if len(found) == 1 else VARIANTS[FULL]


def build_command(folder: str, port: int) -> list[str]:
    """`transformers serve` for a folder, on this machine only."""
    return ["transformers", "serve", folder, "--host", HOST, "--port", str(port)]


def list_servers(variant: Variant, folder: str, port: int) -> list[str]:
    """Shell commands of the variant's servers other than `transformers serve`."""
    weights = f"{folder}/{variant.weights_file}"
    fields = {
        "folder": shlex.quote(folder),
        "weights": shlex.quote(weights),
        "modelfile": shlex.quote(f"FROM {weights}"),  # text of Ollama's Modelfile
        "name": "-".join(Path(folder).parts[-3:-1]).lower() or "student",
        "port": port,
    }
    return [server.format_map(fields) for server in variant.servers]


def build_request(folder: str, port: int) -> str:
    """A curl command that sends a request to the server."""
    body = json.dumps({"model": folder, "messages": [{"role": "user", "content": "Hello"}]})
    address = f"http://{HOST}:{port}/v1/chat/completions"
    return f"curl {address} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
