"""Runs of the library on fake CUDA tensors: tiny models without values, trainings, quantized layers."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from divergence_formulas import give_parameters
from tiny import build_model
from torch._subclasses.fake_tensor import unset_fake_temporarily

from distill.memory_plan.fake_cuda import fake_cuda
from distill.memory_plan.fake_models import quantize
from distill.models.logits import IDENTITY
from distill.student.loss import Objective
from distill.student.options import TrainOptions
from distill.student.step_batches import StepBatches
from distill.student.trainer import DistillTrainer
from distill.student.trainer_arguments import make_trainer_arguments

CUDA = torch.device("cuda")
VOCABULARY = 320  # tokens that both models share
STEPS = StepBatches.steps


@contextmanager
def fake_gpu():
    """Fake CUDA tensors, and what training and loading ask a GPU for."""

    def steps(self, epoch):
        with unset_fake_temporarily():  # the order of the records is computed for real
            return STEPS(self, epoch)

    patches = [
        patch.object(torch.nn.Module, "_apply", convert),
        patch.object(StepBatches, "steps", steps),
        patch.object(torch.cuda, "set_device", lambda device: None),
        patch.object(torch.cuda, "max_memory_allocated", lambda *device: 0),
        patch.object(torch.cuda, "memory_reserved", lambda *device: 0),
        patch.object(torch.cuda, "memory_allocated", lambda *device: 0),
        patch.object(torch.cuda, "mem_get_info", lambda *device: (2**34, 2**34)),
        patch.object(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(is_integrated=False)),
        # transformers takes fake tensors for those of a compiler, and then does without values that it reads on a GPU.
        patch("transformers.masking_utils.is_tracing", lambda *tensor: False),
        patch("transformers.modeling_utils.is_tracing", lambda *tensor: False),
    ]
    with fake_cuda() as mode:
        for one in patches:
            one.start()
        try:
            yield mode
        finally:
            for one in patches:
                one.stop()


def convert(module, function, recurse=True):
    """`torch.nn.Module._apply` for fake weights, which can be neither swapped nor changed in place."""
    for child in module.children() if recurse else ():
        convert(child, function)
    for name, weight in module._parameters.items():
        if weight is None:
            continue
        new = function(weight)
        if (new.device, new.dtype) != (weight.device, weight.dtype):
            module._parameters[name] = torch.nn.Parameter(new.detach(), weight.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


def build_fake_model(device=CUDA, dtype=torch.float32, **settings):
    """A tiny Qwen2 model without values, in evaluation mode and frozen."""
    with torch.device(device):
        return build_model(**settings).to(dtype).requires_grad_(False)


def build_student(**settings):
    """The same, in training mode."""
    return build_fake_model(**settings).requires_grad_(True).train()


def make_examples(count=4, own_template=False):
    """Examples of different lengths; with `own_template` the teacher has other prompts."""
    return [
        {
            "uid": str(index),
            "index": index,
            "prompt": [3] * (5 + index % 3),
            "teacher_prompt": [3] * (5 + index % 3 + own_template),
            "completion": [4, 5, 6, 2][index % 2 :],
            "signal": (0, str(index)),
        }
        for index in range(count)
    ]


def make_trainer(folder, model, signal=None, method="seqkd", sampler=None, own_template=False, samples=None, **train):
    """A trainer of two optimizer steps of two micro-batches, with a log line for each and a validation at the end."""
    examples = make_examples(own_template=own_template)
    batches = StepBatches([len(one["prompt"]) + len(one["completion"]) for one in examples], 1, 2, seed=0)
    options = TrainOptions(epochs=1, batch_size=1, gradient_accumulation_steps=2, logging_steps=1, save_steps=1000)
    options = replace(options, **train)
    arguments = make_trainer_arguments(Path(folder), options, CUDA, batches, True)
    arguments.save_strategy = "no"  # there are no values to save
    return DistillTrainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=examples[:2],
        batches=batches,
        pad_id=0,
        signal=signal,
        objective=Objective(method, 2.0, 0.5, give_parameters(method), VOCABULARY),
        sampler=sampler(examples, batches) if sampler else None,
        samples=samples,
        row_length=options.row_length,
    )


def quantize_fake_model(model, quantization):
    """The model with the layers of bitsandbytes that transformers would load."""
    quantize(model, "cuda", quantization, model.dtype)
    return model


class FakeReader:
    """A `SignalReader` whose tensors are fake ones on the CPU.

    Args:
        width: size of the hidden states.
        examples: the records that it has signals of.
        tail_samples: number of tokens that are sampled.
    """

    temperatures = (2.0,)
    folder = Path("signal")
    transform = IDENTITY

    def __init__(self, width, examples, tail_samples=0):
        self.width, self.tail_samples = width, tail_samples
        self.rows = {one["signal"][1]: len(one["completion"]) for one in examples}

    def read(self, key):
        rows = self.rows[key]
        return {
            "hidden": torch.empty(rows, self.width, dtype=torch.bfloat16),
            "ids": torch.zeros(rows, 4, dtype=torch.int32),
            "logprobs": torch.empty(rows, 4, dtype=torch.float16),
            "log_tail": torch.empty(rows, 1, dtype=torch.float16),
        } | (
            {
                "tail_ids": torch.zeros(rows, 1, self.tail_samples, dtype=torch.int32),
                "tail_entropy": torch.empty(rows, 1, dtype=torch.float16),
            }
            if self.tail_samples
            else {}
        )

    def head(self, device, dtype=None):
        return torch.nn.Linear(self.width, 352, bias=False, device=device, dtype=dtype).requires_grad_(False)
