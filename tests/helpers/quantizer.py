"""The Python that has LLM Compressor, for tests that run it."""

import os

from distill.common.errors import InputError
from distill.export.compress import find_quantizer


def find_python():
    """Return QUANTIZER_PYTHON, or that of `make setup-quantize`; None if there is neither."""
    try:
        return find_quantizer(os.environ.get("QUANTIZER_PYTHON"))
    except InputError:
        return None
