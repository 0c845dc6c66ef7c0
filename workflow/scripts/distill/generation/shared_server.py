"""A vLLM server that all jobs of a run on this machine share: serve_teacher.py starts it, the jobs read where it is."""

import argparse
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from distill.common.errors import InputError
from distill.generation.options import COMPARED_TOP, VllmOptions, get_result_arguments
from distill.generation.vllm_server import (
    BASE_NAME,
    SECONDS_BETWEEN_LOOKS,
    VllmServer,
    build_command,
)
from distill.models.final_layers import count_layers
from distill.models.load import select_device, select_dtype

logger = logging.getLogger(__name__)


def name_adapters(adapters: Sequence[str]) -> dict[str, str]:
    """Return the adapters by served name."""
    return {f"adapter_{number}": adapter for number, adapter in enumerate(adapters, start=1)}


def open_server(args: argparse.Namespace, options: VllmOptions, folder: Path) -> VllmServer:
    """Return the server of a parsed command line of serve_teacher.py; it starts where it is entered.

    Args:
        args: the command line.
        options: of vLLM.
        folder: where hidden states are written.
    """
    device = select_device(args.device)
    dtype = str(select_dtype(args.dtype, device)).removeprefix("torch.")
    layers = count_layers(args.model) if args.hidden_states else None
    top = max(args.top_logprobs, COMPARED_TOP)
    command = build_command(args.model, dtype, device.type, name_adapters(args.adapters), options, top, layers, folder)
    return VllmServer(command, options, Path("logs/vllm") / f"{args.out.stem}.log", device.type)


def describe_server(args: argparse.Namespace, options: VllmOptions, server: VllmServer, folder: str) -> dict[str, Any]:
    """Return what jobs need to know of a running server."""
    return {
        "pid": os.getpid(),
        "base_url": server.base_url,
        "model": args.model,
        "dtype": args.dtype,
        "arguments": get_result_arguments(options.arguments),
        "adapters": {path: name for name, path in name_adapters(args.adapters).items()},
        "hidden_states": folder if args.hidden_states else None,
    }


class SharedServer:
    """A server that another process has started, and takes down.

    Args:
        path: the file of serve_teacher.py.
        model, dtype, adapter, arguments: the model that is expected, and the options of vLLM that decide its results.
        needs_states: whether it must extract hidden states.
    """

    def __init__(
        self,
        path: Path,
        model: str,
        dtype: str,
        adapter: str | None,
        arguments: dict[str, Any],
        needs_states: bool = False,
    ):
        self.path, self.adapter, self.needs_states = path, adapter, needs_states
        self.wanted = {"model": model, "dtype": dtype, "arguments": arguments}
        self.base_url = self.name = ""

    def start(self) -> None:
        """Wait until the server is ready.

        Raises:
            InputError: it has ended, or serves something else.
        """
        started = time.monotonic()
        while "base_url" not in (found := self.read()):
            if not self.is_running():
                raise InputError(self.explain())
            time.sleep(SECONDS_BETWEEN_LOOKS)
        logger.info("the shared vLLM server is ready after %.0f s", time.monotonic() - started)
        served = {name: found[name] for name in self.wanted}
        names = {None: BASE_NAME, **found["adapters"]}
        has_states = found["hidden_states"] is not None
        if served != self.wanted or self.adapter not in names or has_states < self.needs_states:
            raise InputError(
                f"{self.path}: expected a server of {self.wanted} with adapter {self.adapter}, found one of {served} "
                f"with adapters {', '.join(map(str, names))}"
            )
        self.base_url, self.name = found["base_url"], names[self.adapter]

    def read(self) -> dict[str, Any]:
        """Read the file.

        Raises:
            InputError: it is not one of serve_teacher.py.
        """
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if not isinstance(found["pid"], int):
                raise ValueError("pid")
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"{self.path}: expected the file of a running vLLM server ({error!r})") from None
        return dict(found)

    def stop(self) -> None:
        """Do nothing: other jobs use the server."""

    def is_running(self) -> bool:
        """Whether the process that started the server, and ends with it, runs."""
        return psutil.pid_exists(self.read()["pid"])

    def explain(self) -> str:
        """Return that the server has ended, and where to look."""
        name = self.path.stem
        return f"the shared vLLM server has ended; see logs/serve_teacher/{name}.log and logs/vllm/{name}.log"
