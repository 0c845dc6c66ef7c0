"""Fixtures of the library's tests."""

import torch
from library_fixtures import models, options, prompts, records, tokenizer  # noqa: F401

# Models this small gain nothing from a second thread, and wait for it where the machine is busy.
torch.set_num_threads(1)
