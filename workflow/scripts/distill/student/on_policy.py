"""Answers sampled from the student while it trains, which the teacher scores (GKD, arXiv 2306.13649)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill.common.files import write_json
from distill.common.hashing import HASHES, hash_uid
from distill.generation.generate import Draw, decode_job, stop_ids
from distill.generation.rolling_batch import Job
from distill.generation.sampling import Sampling, record_uniforms
from distill.models.examples import Example
from distill.student.step_batches import StepBatches

FILE = "on_policy_buffer_{rank}.json"


@dataclass(frozen=True)
class OnPolicy:
    """Settings; names and values as in config/README.md, where they begin with `on_policy_`.

    Attributes:
        max_length: of prompt and answer together, in tokens, in either template.
        vocabulary: ids that student and teacher share; no other is sampled.
    """

    fraction: float
    steps: int
    max_new_tokens: int
    temperature: float
    seed: int
    max_length: int
    vocabulary: int


class PolicyBuffer:
    """Sampled answers of the optimizer steps to come; what is sampled at once serves `settings.steps` of them.

    A step is on-policy or not by the hash of its number, and an answer by the random stream of its step and record, so
    that a resumed run sees what an undisturbed one does. The buffer is kept with each checkpoint, since the student
    that filled it is gone when a run goes on.
    """

    def __init__(self, settings: OnPolicy, examples: Sequence[Example], batches: StepBatches, tokenizer: Any):
        self.settings, self.examples, self.batches, self.tokenizer = settings, examples, batches, tokenizer
        self.answers: dict[str, list[int]] = {}  # token ids by step and record

    def is_sampled(self, step: int) -> bool:
        """Whether an optimizer step, counted from 0, trains on the student's own answers."""
        return hash_uid("on_policy", self.settings.seed, str(step)) < self.settings.fraction * HASHES

    def take(self, model: Any, step: int, last_step: int, batch: Sequence[Example]) -> list[Example]:
        """The examples of a sampled step with the student's answers in place of the teacher's.

        Args:
            model: the student; sampled from where the buffer has nothing for this step.
            last_step: steps of the whole training.
        """
        if any(self.name(step, example["index"]) not in self.answers for example in batch):
            self.fill(model, step, min(step + self.settings.steps, last_step))
        return [
            example | {"completion": self.answers[self.name(step, example["index"])], "is_sampled": True}
            for example in batch
        ]

    @staticmethod
    def name(step: int, index: int) -> str:
        """Key of an answer."""
        return f"{step}:{index}"

    def fill(self, model: Any, first: int, end: int) -> None:
        """Sample answers to the prompts of all on-policy steps from `first` to before `end`."""
        steps = [step for step in range(first, end) if self.is_sampled(step)]
        wanted = [(step, index) for step in steps for index in self.batches.find_step(step)]
        prompts = [self.examples[index]["prompt"] for _, index in wanted]
        was_training = model.training
        model.eval()
        settings = self.settings
        examples = [self.examples[index] for _, index in wanted]
        room = [settings.max_length - max(len(one["prompt"]), len(one["teacher_prompt"])) for one in examples]

        def uniforms(place: int) -> Any:
            step, index = wanted[place]
            return record_uniforms(f"{self.examples[index]['uid']}@{step}", settings.seed, settings.max_new_tokens)

        stops = stop_ids(model, self.tokenizer)
        job = Job(
            prompts,
            [max(1, min(settings.max_new_tokens, most)) for most in room],
            stops,
            uniforms,
            Draw(Sampling(settings.max_new_tokens, settings.temperature), settings.vocabulary),
        )
        found: dict[int, list[int]] = {}
        with torch.no_grad():
            for ended in decode_job(model, self.tokenizer, job):
                for place, tokens in ended:
                    last = next((at for at, token in enumerate(tokens) if token in stops), len(tokens))
                    found[place] = list(tokens[: last + 1])
        self.answers = {self.name(*where): found[place] for place, where in enumerate(wanted)}
        model.train(was_training)

    def save(self, folder: Path, rank: int) -> None:
        """Keep the buffer beside a checkpoint's other files."""
        write_json(folder / FILE.format(rank=rank), self.answers)

    def load(self, folder: Path) -> None:
        """The buffers of a checkpoint, of all processes, however many they are now; empty where there was none."""
        self.answers = {}
        for path in folder.glob(FILE.format(rank="*")):
            self.answers |= json.loads(path.read_text())
