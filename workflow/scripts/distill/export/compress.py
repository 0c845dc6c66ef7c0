"""Weights that LLM Compressor quantizes, in an environment of its own."""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from distill.common.errors import InputError
from distill.export import compress_program

logger = logging.getLogger(__name__)

PROGRAM = Path(compress_program.__file__)
OWN_ENVIRONMENT = PROGRAM.parents[4] / ".venv-quantize/bin/python"
SETUP = "run `make setup-quantize`"


def find_quantizer(named: str | None) -> str:
    """Return the Python that has LLM Compressor: the named one, or that of `make setup-quantize`.

    Raises:
        InputError: there is none.
    """
    if named:
        found = shutil.which(os.path.expanduser(named))
        if found is None:
            raise InputError(f"export.quantizer: expected a Python with llmcompressor, found no program at {named!r}")
        return found
    if OWN_ENVIRONMENT.exists():
        return str(OWN_ENVIRONMENT)
    raise InputError(
        f"export.variants: expected LLM Compressor in .venv-quantize, found none; {SETUP}, or name a Python that has "
        "it in export.quantizer"
    )


def compress(
    student: str, variant: str, dtype: str, samples: Sequence[Sequence[int]], quantizer: str | None, out: Path
) -> None:
    """Write quantized weights and a config.json that describes them.

    Args:
        student: folder of the student.
        variant: `gptq` or `fp8`.
        dtype: data type of the weights that are not quantized.
        samples: token ids of the calibration texts.
        quantizer: Python that has LLM Compressor; see `find_quantizer`.
        out: folder to write to.

    Raises:
        InputError: LLM Compressor is missing or fails; its last line says why.
    """
    python = find_quantizer(quantizer)
    settings = {"student": student, "variant": variant, "dtype": dtype, "samples": samples, "out": str(out)}
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(settings, file)
        file.flush()
        logger.info("%s: LLM Compressor quantizes %s with %d texts", variant, student, len(samples))
        # Packages of this process's environment must not be found by another Python.
        variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        command = [python, str(PROGRAM), file.name]
        done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    sys.stderr.write(done.stdout)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()] or ["no output"]
        raise InputError(f"{student}: variant {variant}: LLM Compressor failed ({done.returncode}): {lines[-1]}")
