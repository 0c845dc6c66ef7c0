"""The product's vLLM engine with the stand-in for vLLM in its place."""

import json
import os

import psutil
import torch
from peft import LoraConfig, get_peft_model
from tiny import build_model, build_tokenizer, save_model
from vllm_stand_in import VARIABLE, write_executable

from distill.generation.options import VllmOptions
from distill.generation.sampling import Request, Sampling
from distill.generation.transformers_engine import ModelSource
from distill.generation.vllm_engine import VllmEngine, VllmSource

SETTINGS = {"vocabulary": 352, "hidden": 32, "seed": 1, "scale": 4.0}
REQUESTS = [
    Request(number, f"uid{number}", "You estimate.", f"Record {number} of the bank", 0) for number in range(1, 7)
]


def make_models(folder):
    """Save a tiny model, and the LoRA adapters `a` and `b`; return the folder."""
    save_model(folder / "model", build_tokenizer(), **SETTINGS)
    for seed, (name, rank) in enumerate({"a": 8, "b": 4}.items()):
        torch.manual_seed(seed)
        lora = LoraConfig(r=rank, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        get_peft_model(build_model(**SETTINGS), lora).save_pretrained(folder / name)
    return folder


def make_source(models, adapter=None):
    return ModelSource(str(models / "model"), adapter and str(models / adapter), "float32", device="cpu")


def make_engine(models, folder, adapter=None, sampling=None, timeout=120, **settings):
    """An engine whose server writes its log into a folder."""
    options = {"executable": str(write_executable(folder / "bin")), "start_timeout": 120} | settings
    sampling = sampling or Sampling(max_new_tokens=12, temperature=0.0)
    source = make_source(models, adapter)
    return VllmEngine(VllmSource(source, sampling, VllmOptions(**options), folder / "vllm.log", 16, timeout))


def misbehave(monkeypatch, **how):
    """Have the stand-ins that start from now on misbehave."""
    monkeypatch.setenv(VARIABLE, json.dumps(how))


def find_processes(word):
    """The processes with a word in their command line, without this one and those that ended."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(word) in line and process.pid != os.getpid() and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append((process.pid, line))
    return found
