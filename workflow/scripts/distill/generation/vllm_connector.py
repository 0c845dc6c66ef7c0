"""vLLM's connector for hidden states on a machine without CUDA. Runs in vLLM's environment, inside its server.

vLLM copies hidden states from the key/value cache to files with CUDA streams and events. On a CPU there is nothing to
wait for: the rows are copied at once, and written by the same threads.
"""

import os
from fcntl import LOCK_EX, flock
from functools import partial

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import (
    ExampleHiddenStatesConnector,
    PendingSave,
    extract_from_kv_cache,
)


class FinishedEvent:
    """Stands for a CUDA event that has happened."""

    def query(self) -> bool:
        """Whether the copy has ended."""
        return True

    def synchronize(self) -> None:
        """Wait for nothing."""


class CpuHiddenStatesConnector(ExampleHiddenStatesConnector):
    """Writes the hidden states of each request to a file, without CUDA."""

    def _submit_async_write(self, pending: PendingSave) -> None:
        """Copy a finished request's rows out of the cache and have a thread write them."""
        blocks = torch.tensor(pending.block_ids)
        slots = (blocks[:, None] * self._block_size + torch.arange(self._block_size)).flatten()
        tensors = {
            "hidden_states": extract_from_kv_cache(self._kv_cache, slots, len(pending.token_ids)).clone(),
            "token_ids": pending.token_ids.clone(),
        }
        lock = self._lock_fds.pop(pending.req_id, None)
        if lock is None and self.use_lock:
            lock = os.open(f"{pending.filename}.lock", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
            flock(lock, LOCK_EX)
        event = FinishedEvent()
        future = self._executor.submit(self._write_tensors, tensors, event, pending.filename, lock)
        self._req_copy_events[pending.req_id] = event
        self._req_futures[pending.req_id] = future
        future.add_done_callback(partial(self._on_write_done, pending.req_id))
