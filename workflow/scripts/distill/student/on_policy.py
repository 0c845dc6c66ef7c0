"""On-policy steps: the student trains on its own answers, which the teacher scores (GKD, arXiv 2306.13649)."""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from distill.common.files import write_json
from distill.common.hashing import HASHES, hash_uid
from distill.generation.generate import Draw, decode_job, stop_ids
from distill.generation.rolling_batch import Job
from distill.generation.sampling import Sampling, record_uniforms
from distill.models.example_table import Example
from distill.models.vocabulary import find_unused_ids
from distill.student.options import OnPolicyOptions
from distill.student.step_batches import StepBatches

FILE = "on_policy_buffer_{rank}.json"


class SampleBuffer:
    """Answers sampled from the student for the next `options.steps` optimizer steps.

    The hash of a step's number decides whether it is on-policy, and step and record seed the answer, so a resumed run
    samples the same answers as an uninterrupted one. Each checkpoint includes the buffer, because a resumed run no
    longer has the weights that the answers were sampled from.

    Args:
        options: how often and how to sample.
        examples: the training examples.
        batches: the examples of each step.
        tokenizer: tokenizer of the student.
        seed: seed of steps and answers.
        max_length: maximum length of prompt and answer together in tokens, in the template of either model.
        vocabulary: number of token ids that student and teacher share; no others are sampled.
    """

    def __init__(
        self,
        options: OnPolicyOptions,
        examples: Sequence[Example],
        batches: StepBatches,
        tokenizer: Any,
        *,
        seed: int,
        max_length: int,
        vocabulary: int,
    ):
        self.options, self.examples, self.batches, self.tokenizer = options, examples, batches, tokenizer
        self.seed, self.max_length, self.vocabulary = seed, max_length, vocabulary
        self.answers: dict[str, list[int]] = {}  # token ids by `answer_key`
        self.end = 0  # answers have been sampled for the steps before this one, also if this rank has no records there

    def find_first_step(self, last_step: int) -> int:
        """The step, counted from 0, from which steps can be on-policy: `options.start` of all steps, rounded down.

        Args:
            last_step: number of steps of the whole training.
        """
        return int(Fraction(str(self.options.start)) * last_step)  # exact: with floats, int(0.29 * 100) is 28

    def is_on_policy(self, step: int, last_step: int) -> bool:
        """Whether an optimizer step, counted from 0, trains on the student's own answers; see `find_first_step`."""
        is_drawn = hash_uid("on_policy", self.seed, str(step)) < self.options.fraction * HASHES
        return is_drawn and step >= self.find_first_step(last_step)

    def count_steps(self, first: int, end: int, last_step: int) -> int:
        """Number of on-policy steps from `first` to before `end`."""
        return sum(self.is_on_policy(step, last_step) for step in range(first, end))

    def sample(self, model: Any, step: int, last_step: int, batch: Sequence[Example]) -> list[Example]:
        """The examples of an on-policy step, with the student's answers as completions.

        Args:
            model: the student, sampled from if the buffer ends before this step.
            step: optimizer step, counted from 0.
            last_step: number of steps of the whole training.
            batch: examples with the teacher's answers; may be empty on one of several ranks.
        """
        if step >= self.end:
            self.fill(model, step, last_step)
        return [
            example | {"completion": self.answers[answer_key(step, example["index"])], "is_sampled": True}
            for example in batch
        ]

    def fill(self, model: Any, first: int, last_step: int) -> None:
        """Sample answers for the on-policy steps among the next `options.steps` steps from `first`."""
        self.end = min(first + self.options.steps, last_step)
        steps = [step for step in range(first, self.end) if self.is_on_policy(step, last_step)]
        places = [(step, index) for step in steps for index in self.batches.find_step(step)]
        was_training = model.training
        model.eval()
        answers = self.generate(model, places)
        self.answers = {answer_key(*place): answer for place, answer in zip(places, answers, strict=True)}
        model.train(was_training)

    @torch.no_grad()
    def generate(self, model: Any, places: Sequence[tuple[int, int]]) -> list[list[int]]:
        """The answers of (step, example) pairs as token ids, each up to and including its stop token."""
        examples = [self.examples[index] for _, index in places]
        room = [self.max_length - max(len(one["prompt"]), len(one["teacher_prompt"])) for one in examples]
        limit = self.options.max_new_tokens

        def uniforms(place: int) -> Any:
            step, _ = places[place]
            return record_uniforms(f"{examples[place]['uid']}@{step}", self.seed, limit)

        stops = stop_ids(model.generation_config, self.tokenizer)
        job = Job(
            [one["prompt"] for one in examples],
            [max(1, min(limit, most)) for most in room],
            stops,
            uniforms,
            Draw(Sampling(limit, self.options.temperature), self.vocabulary, find_unused_ids(self.tokenizer)),
        )
        found: dict[int, list[int]] = {}
        for finished in decode_job(model, self.tokenizer, job):
            for place, tokens in finished:
                last = next((at for at, token in enumerate(tokens) if token in stops), len(tokens))
                found[place] = list(tokens[: last + 1])
        return [found[place] for place in range(len(places))]

    def save(self, folder: Path, rank: int) -> None:
        """Write the buffer of a rank to a checkpoint."""
        write_json(folder / FILE.format(rank=rank), {"end": self.end, "answers": self.answers})

    def load(self, folder: Path) -> None:
        """Read the buffers of all ranks from a checkpoint, however many ranks there are now."""
        self.answers = {}
        for path in folder.glob(FILE.format(rank="*")):
            saved = json.loads(path.read_text())
            self.answers |= saved["answers"]
            self.end = saved["end"]  # the same on all ranks


def answer_key(step: int, index: int) -> str:
    """Key of an answer in the buffer."""
    return f"{step}:{index}"
