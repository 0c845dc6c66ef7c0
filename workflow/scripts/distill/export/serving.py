"""How an exported model is served, as command lines."""

import json
import shlex
from pathlib import Path

from distill.common.errors import InputError
from distill.common.names import get_weights_name
from distill.models.fingerprint import find_gguf

HOST = "127.0.0.1"


def build_command(folder: str, port: int) -> list[str] | None:
    """`transformers serve` of a folder, on this machine alone; None of a GGUF file, which it does not take (5.23).

    Raises:
        InputError: no model's folder.
    """
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"{folder}: expected a model's folder, found no config.json in it; see output/export")
    if find_gguf(folder):
        return None
    return ["transformers", "serve", folder, "--host", HOST, "--port", str(port)]


def list_alternatives(folder: str, port: int, is_gguf: bool) -> list[str]:
    """Command lines of other servers for the same folder."""
    if is_gguf:
        path = f"{folder}/{get_weights_name('gguf')}"
        name = "-".join(Path(folder).parts[-3:-1]).lower() or "student"
        return [
            f"llama-server --model {shlex.quote(path)} --jinja --port {port}",
            f"echo {shlex.quote(f'FROM {path}')} > Modelfile && ollama create {name} && ollama run {name}",
        ]
    return [f"vllm serve {shlex.quote(folder)} --port {port}"]


def build_request(folder: str, port: int) -> str:
    """A request to try a server with, as a command line."""
    body = json.dumps({"model": folder, "messages": [{"role": "user", "content": "Hello"}]})
    address = f"http://{HOST}:{port}/v1/chat/completions"
    return f"curl {address} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
