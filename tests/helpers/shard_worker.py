"""A process of two: the gradients of a step under FSDP, to a file.

Arguments: student, teacher, examples (JSON), out.
"""

import json
import sys
import types

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from distill.batching import StepBatches
from distill.losses import Objective
from distill.padding import collate
from distill.teachers import OnlineTeacher
from distill.training import score_completions

OBJECTIVE = Objective("forward_kl", 2.0, 0.5, vocabulary=300)


def add_gradients(model, teacher, examples, tokens, processes=1):
    """The share of a micro-batch, as DistillTrainer scales it."""
    prompts, completions = ([one[name] for one in examples] for name in ("prompt", "completion"))
    batch = collate(prompts, completions, 0)
    terms = model(**batch, teacher=teacher(examples, batch, torch.device("cpu")), objective=OBJECTIVE)
    (terms[0] * processes / tokens).backward()


def prepare(student, teacher):
    model = AutoModelForCausalLM.from_pretrained(student)
    model.forward = types.MethodType(score_completions, model)
    return model, OnlineTeacher(AutoModelForCausalLM.from_pretrained(teacher).eval().requires_grad_(False), 0)


def main(student, teacher, path, out):
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    with open(path) as file:
        examples = json.load(file)
    model, online = prepare(student, teacher)
    mesh = torch.distributed.init_device_mesh("cpu", (processes,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(weight, DTensor) for weight in model.parameters())
    lengths = [len(one["prompt"]) + len(one["completion"]) for one in examples]
    batches = StepBatches(lengths, 2, len(examples) // 2, 0, rank, processes)
    tokens = sum(len(one["completion"]) for one in examples)
    for indices in batches:
        add_gradients(model, online, [examples[index] for index in indices], tokens, processes)
    gradients = {name: weight.grad.full_tensor() for name, weight in model.named_parameters()}
    if rank == 0:
        torch.save(gradients, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
