"""A model as lm-evaluation-harness asks it. Imports that package, so only functions import this module."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval.models.huggingface import HFLM

from distill.common.errors import InputError
from distill.common.progress import Progress
from distill.models.chat import ChatTemplate


class TaskModel(HFLM):
    """The harness's own model of transformers. It counts responses, and renders conversations as everywhere else.

    Args:
        model: model of transformers.
        chat: its chat template, with its tokenizer.
        batch_size: requests that are answered at a time, or `auto`.
    """

    def __init__(self, model: Any, chat: ChatTemplate, batch_size: int | str):
        super().__init__(model, tokenizer=chat.tokenizer, backend="causal", batch_size=batch_size)
        self.chat = chat
        self.progress: Progress | None = None

    @contextmanager
    def counting(self, requests: Sequence[Any], what: str) -> Iterator[None]:
        """Count the responses to these requests."""
        self.progress = Progress(len(requests), what, unit="requests")
        try:
            yield
        finally:
            self.progress.close()
            self.progress = None

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Count each response when it is stored."""
        super().set_cache_hook(CountingHook(cache_hook, self))

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Measure the likelihood of each continuation."""
        with self.counting(requests, "likelihoods"):
            return super().loglikelihood(requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Measure the likelihood of each text."""
        with self.counting(requests, "likelihoods of texts"):
            return super().loglikelihood_rolling(requests, disable_tqdm)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Answer each prompt."""
        with self.counting(requests, "answers"):
            return super().generate_until(requests, disable_tqdm)

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        """Render a conversation up to the start of the answer.

        Raises:
            InputError: the task itself begins the answer.
        """
        if not add_generation_prompt:
            text = "expected false, since a task begins the answers itself (gen_prefix), found true"
            raise InputError(f"evaluation.tasks_chat_template: {text}")
        return self.chat.render(chat_history, add_generation_prompt=True)


class CountingHook:
    """Stores responses with another hook, and counts them.

    Args:
        hook: the hook of the harness's cache.
        model: the model whose progress counts.
    """

    def __init__(self, hook: Any, model: TaskModel):
        self.hook, self.model = hook, model

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        """Store the response to a request."""
        self.hook.add_partial(attr, req, res)
        if self.model.progress is not None:
            self.model.progress.add(1)
