"""A stand-in for vLLM 0.32: the command line and the JSON of `vllm serve` over transformers and peft on the CPU.

Every answer is computed from the model. `write_executable` writes a program named `vllm` that a test can put on PATH.

The environment variable VLLM_STAND_IN holds a JSON object of misbehaviour; `Misbehaviour` lists what it can contain.

Like vLLM the server has a child, its engine, in the same process group. SIGTERM ends both, while SIGKILL of the server
leaves the engine behind. `ENGINE` is a word of the engine's command line.
"""

import argparse
import importlib.util
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import uuid
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

VERSION = "0.32.0"
ENGINE = "vllm-stand-in-engine"
VARIABLE = "VLLM_STAND_IN"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
RECORDED = ("VLLM_", "CUDA_", "HF_")  # beginnings of the environment variables that are recorded

# What requests may ask of vLLM and not of the stand-in, with the values that ask for nothing, besides None.
NEUTRAL = {
    "best_of": [1],
    "stream": [False],
    "suffix": [],
    "use_beam_search": [False],
    "frequency_penalty": [0],
    "presence_penalty": [0],
    "repetition_penalty": [1],
    "min_p": [0],
    "logit_bias": [],
    "allowed_token_ids": [],
    "bad_words": [[]],
    "truncate_prompt_tokens": [],
    "response_format": [],
    "structured_outputs": [],
    "tools": [[]],
}


def write_executable(folder):
    """Write a program named `vllm` that runs the stand-in with this interpreter, and return its path."""
    path = Path(folder, "vllm")
    path.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join([sys.executable, str(Path(__file__).resolve())])
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


@dataclass
class Misbehaviour:
    """What the server does wrong, and where it records what it is asked.

    Attributes:
        never_ready: the process lives and no request is answered.
        ready_after: seconds before the first request is answered.
        exit_at_start: text to print on standard error before the server ends with exit code 1.
        crash_after: number of the request for a completion in which the server kills itself.
        ignore_sigterm: SIGTERM ends nothing.
        wrong_hidden: factor of every second channel of the hidden states.
        wrong_logprobs: factor of the prompt's log-probabilities; below 1 their probabilities exceed 1 in total.
        shift_tokens: the text of a token is that of the next token id.
        record: file to which one JSON line is appended at the start, and one for each request.
    """

    never_ready: bool = False
    ready_after: float = 0.0
    exit_at_start: str | None = None
    crash_after: int | None = None
    ignore_sigterm: bool = False
    wrong_hidden: float | None = None
    wrong_logprobs: float | None = None
    shift_tokens: bool = False
    record: str | None = None

    def changes(self):
        """Return the errors of the model's numbers."""
        names = ("wrong_hidden", "wrong_logprobs", "shift_tokens")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    def write(self, **entry):
        if self.record:
            with open(self.record, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


# The command line


def parse_length(text):
    """Read a number of tokens such as 4096, 4k (4000) or 4K (4096)."""
    factors = {"k": 10**3, "m": 10**6, "K": 2**10, "M": 2**20}
    return int(float(text[:-1]) * factors[text[-1]]) if text[-1] in factors else int(text)


class ParseAdapters(argparse.Action):
    """Read NAME=PATH, a JSON object or a JSON list of objects, as vLLM does."""

    def __call__(self, parser, namespace, values, option_string=None):
        found = []
        for value in values:
            if "=" in value and "," not in value:
                name, path = value.split("=")
                found.append({"name": name, "path": path})
                continue
            try:
                entry = json.loads(value)
            except json.JSONDecodeError:
                parser.error(f"Invalid JSON format for --lora-modules: {value}")
            found += entry if isinstance(entry, list) else [entry]
        setattr(namespace, self.dest, found)


def build_parser():
    parser = argparse.ArgumentParser(prog="vllm")
    parser.add_argument("-v", "--version", action="version", version=VERSION)
    commands = parser.add_subparsers(required=True)
    serve = commands.add_parser("serve", usage="vllm serve [model_tag] [options]", allow_abbrev=False)
    add = serve.add_argument
    add("model")
    add("--host")
    add("--port", type=int, default=8000)
    add("--served-model-name", nargs="+")
    add("--dtype", choices=("auto", "bfloat16", "float", "float16", "float32", "half"), default="auto")
    add("--max-model-len", type=parse_length)
    add("--max-num-seqs", type=int)
    add("--max-num-batched-tokens", type=parse_length)
    add("--max-logprobs", type=int, default=20)
    add("--generation-config", default="auto")
    modes = ("processed_logits", "processed_logprobs", "raw_logits", "raw_logprobs")
    add("--logprobs-mode", choices=modes, default="raw_logprobs")
    add("--max-lora-rank", type=int, choices=RANKS, default=16)
    add("--max-loras", type=int, default=1)
    add("--max-cpu-loras", type=int)
    add("--lora-modules", nargs="+", action=ParseAdapters, default=[])
    add("--quantization", "-q")
    add("--speculative-config", "-sc", type=json.loads)
    add("--kv-transfer-config", type=json.loads)
    add("--tensor-parallel-size", "-tp", type=int, default=1)
    add("--pipeline-parallel-size", "-pp", type=int, default=1)
    add("--gpu-memory-utilization", type=float)
    add("--seed", type=int, default=0)
    add("--distributed-executor-backend", choices=("external_launcher", "mp", "ray", "uni"))
    add("--nnodes", "-n", type=int, default=1)
    add("--node-rank", "-r", type=int, default=0)
    add("--master-addr", default="127.0.0.1")
    add("--master-port", type=int, default=29501)
    add("--headless", action="store_true")
    for switch in (
        "--enable-lora",
        "--enforce-eager",
        "--enable-chunked-prefill",
        "--enable-prefix-caching",
        "--trust-remote-code",
        "--disable-uvicorn-access-log",
        "--enable-log-requests",
    ):
        add(switch, action=argparse.BooleanOptionalAction)
    return parser


def check_options(options, longest):
    """Refuse combinations of options that vLLM refuses at its start, and set the model's length."""
    options.max_model_len = options.max_model_len or longest
    if options.max_model_len > longest:
        raise ValueError(
            f"User-specified max_model_len ({options.max_model_len}) is greater than the derived max_model_len "
            f"(max_position_embeddings={longest} or model_max_length=None in model's config.json)."
        )
    batched = options.max_num_batched_tokens
    if batched and batched < options.max_model_len and options.enable_chunked_prefill is False:
        raise ValueError(
            f"max_num_batched_tokens ({batched}) is smaller than max_model_len ({options.max_model_len}). This "
            "effectively limits the maximum sequence length to max_num_batched_tokens and makes vLLM reject longer "
            "sequences. Please increase max_num_batched_tokens or decrease max_model_len."
        )
    if options.lora_modules and not options.enable_lora:
        raise ValueError(
            "Call to add_lora method failed: Worker failed with error 'LoRA is not enabled. Use --enable-lora to "
            "enable LoRA.', please check the stack trace above for the root cause"
        )


def find_hidden_states(options):
    """Return the layers whose states are written, and the folder; none without both of vLLM's configurations."""
    speculative, transfer = options.speculative_config or {}, options.kv_transfer_config or {}
    if speculative.get("method") != "extract_hidden_states":
        return [], None
    layers = speculative.get("draft_model_config", {}).get("hf_config", {}).get("eagle_aux_hidden_state_layer_ids")
    if not layers:
        raise ValueError(
            "eagle_aux_hidden_state_layer_ids must be set in the draft model config for extract_hidden_states method"
        )
    if not transfer:
        return [], None
    module, name = transfer.get("kv_connector_module_path"), transfer.get("kv_connector")
    if module is None and name != "ExampleHiddenStatesConnector":
        raise ValueError(f"Unsupported connector type: {name}")
    if module is not None and importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(f"No module named '{module}'")
    folder = transfer.get("kv_connector_extra_config", {}).get("shared_storage_path", "/tmp")
    return layers, Path(folder)


# Requests


class Refusal(Exception):  # noqa: N818
    """An error that vLLM returns as JSON.

    Args:
        message: what is wrong.
        parameter: the request's field that is wrong.
        value: its value, which the message repeats.
        status: HTTP status.
        kind: type of the error.
    """

    def __init__(self, message, parameter=None, value=None, status=400, kind="BadRequestError"):
        pairs = (("parameter", parameter), ("value", value))
        extras = ", ".join(f"{name}={thing}" for name, thing in pairs if thing is not None)
        self.message = f"{message} ({extras})" if extras and status == 400 else message
        self.parameter, self.status, self.kind = parameter, status, kind

    def respond(self):
        error = {"message": self.message, "type": self.kind, "param": self.parameter, "code": self.status}
        return JSONResponse({"error": error}, status_code=self.status)


class CommonRequest(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = None
    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    skip_special_tokens: bool = True
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    kv_transfer_params: dict[str, Any] | None = None


class CompletionRequest(CommonRequest):
    prompt: list[Annotated[int, Field(ge=0)]] | list[list[Annotated[int, Field(ge=0)]]] | str | list[str] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    echo: bool | None = False
    add_special_tokens: bool = True


class ChatRequest(CommonRequest):
    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = 0
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None


def describe(value):
    """Return a rejected value as vLLM's validation errors show it."""
    if isinstance(value, str):
        return value if len(value) <= 200 else value[:200] + "...[truncated]"
    if isinstance(value, list | dict):
        return f"<{type(value).__name__} of {len(value)} items>"
    return str(value)


def respond_invalid(request, error):
    """Return vLLM's answer to a body of the wrong form."""

    def name(place):
        kinds = {"str", "int", "float", "bool", "dict", "list"}
        return ".".join(str(part) for part in place if not set("[](){}") & set(str(part)) and part not in kinds)

    errors = [dict(found, loc=name(found["loc"]), input=describe(found["input"])) for found in error.errors()]
    lines = "".join(f"\n  {found}" for found in errors[:10])
    count = f"{len(errors)} validation error{'s' * (len(errors) > 1)}"
    body = {"message": f"{count}:{lines}", "type": "Bad Request", "param": errors[0]["loc"], "code": 400}
    return JSONResponse({"error": body}, status_code=400)


class Server:
    """The endpoints of vLLM over a model.

    Args:
        options: the command line.
        model: a `vllm_stand_in_model.Model`.
        folder: folder of the hidden states' files, or None.
        misbehaviour: what to do wrong.
    """

    def __init__(self, options, model, folder, misbehaviour):
        self.options, self.model, self.folder, self.misbehaviour = options, model, folder, misbehaviour
        self.names = options.served_model_name or [options.model]
        self.adapters = [entry["name"] for entry in options.lora_modules]
        self.fingerprint = f"vllm-{VERSION}-{uuid.uuid4().hex[:8]}"
        self.count, self.counting = 0, threading.Lock()
        self.defaults = {} if options.generation_config == "vllm" else model.defaults

    def build_app(self):
        app = FastAPI()
        app.get("/health")(lambda: Response())
        app.get("/version")(lambda: {"version": VERSION})
        app.get("/v1/models")(self.list_models)

        @app.post("/v1/completions")
        def complete(request: CompletionRequest, raw: Request):
            return self.answer(request, raw, self.complete)

        @app.post("/v1/chat/completions")
        def chat(request: ChatRequest, raw: Request):
            return self.answer(request, raw, self.chat)

        app.exception_handler(Refusal)(lambda request, error: error.respond())
        app.exception_handler(RequestValidationError)(respond_invalid)
        return app

    def answer(self, request, raw, method):
        """Record a request, crash if its turn has come, and answer it."""
        with self.counting:
            self.count += 1
            body = request.model_dump(exclude_unset=True)
            self.misbehaviour.write(path=raw.url.path, model=request.model, body=body)
            if self.count == self.misbehaviour.crash_after:
                os.kill(os.getpid(), signal.SIGKILL)
        return method(request)

    def list_models(self):
        def card(name, root, parent, length):
            permission = {
                "id": f"modelperm-{uuid.uuid4().hex[:16]}",
                "object": "model_permission",
                "created": int(time.time()),
                "allow_create_engine": False,
                "allow_sampling": True,
                "allow_logprobs": True,
                "allow_search_indices": False,
                "allow_view": True,
                "allow_fine_tuning": False,
                "organization": "*",
                "group": None,
                "is_blocking": False,
            }
            entry = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "vllm", "root": root}
            return {**entry, "parent": parent, "max_model_len": length, "permission": [permission]}

        cards = [card(name, self.options.model, None, self.options.max_model_len) for name in self.names]
        for entry in self.options.lora_modules:
            cards.append(card(entry["name"], entry["path"], entry.get("base_model_name") or self.names[0], None))
        return {"object": "list", "data": cards}

    def check_model(self, request):
        """Return the name of a request's model."""
        if request.model and request.model not in (*self.names, *self.adapters):
            message = f"The model `{request.model}` does not exist. Valid aliases: {', '.join(self.names)}."
            raise Refusal(message, "model", status=404, kind="NotFoundError")
        return request.model if request.model in self.adapters else self.names[0]

    def check_supported(self, request):
        for name, values in NEUTRAL.items():
            if (value := (request.model_extra or {}).get(name)) is not None and value not in values:
                raise Refusal("The stand-in for vLLM does not have this feature.", name, value)

    def check_sampling(self, request, limit, counts, room):
        """Return the sampling settings of a request after vLLM's checks.

        Args:
            request: the request.
            limit: the tokens that it asks for, or None.
            counts: its numbers of log-probabilities for completion and prompt, by the name of the field.
            room: tokens that fit in the model's length after the prompt.
        """
        defaults = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
        chosen = {name: getattr(request, name) for name in defaults}
        for name, default in defaults.items():
            if chosen[name] is None:
                chosen[name] = self.defaults.get(name, default)
        if chosen["temperature"] < 0:
            raise Refusal(
                f"temperature must be non-negative, got {chosen['temperature']}.", "temperature", chosen["temperature"]
            )
        if chosen["temperature"] > 2:
            raise Refusal(
                f"temperature must be in [0, 2], got {chosen['temperature']}.", "temperature", chosen["temperature"]
            )
        if not 0 < chosen["top_p"] <= 1:
            raise Refusal(f"top_p must be in (0, 1], got {chosen['top_p']}.", "top_p", chosen["top_p"])
        if chosen["top_k"] < -1:
            raise Refusal(f"top_k must be 0 (disable), or at least 1, got {chosen['top_k']}.")
        tokens = min(room, room if limit is None else limit)
        if tokens < 1:
            raise Refusal(f"max_tokens must be at least 1, got {tokens}.", "max_tokens", tokens)
        stop_tokens, vocabulary = request.stop_token_ids or [], self.model.vocabulary
        if wrong := [token for token in stop_tokens if not 0 <= token < vocabulary]:
            message = (
                f"token_id(s) {wrong} in stop_token_ids contain out-of-vocab token ids. Vocabulary size: {vocabulary}"
            )
            raise Refusal(message, "stop_token_ids", wrong)
        most = self.options.max_logprobs
        for kind, (name, count) in zip(("sample", "prompt"), counts.items(), strict=True):
            count = vocabulary if count == -1 else count
            if count and count > (vocabulary if most == -1 else most):
                message = f"Requested {kind} logprobs of {count}, which is greater than max allowed: {most}"
                raise Refusal(message, name, count)
        return {
            **chosen,
            "max_tokens": tokens,
            "seed": request.seed,
            "stop": [request.stop] if isinstance(request.stop, str) else request.stop or [],
            "stop_token_ids": stop_tokens,
            "include_stop_str_in_output": request.include_stop_str_in_output,
            "ignore_eos": request.ignore_eos,
            "min_tokens": request.min_tokens,
            "skip_special_tokens": request.skip_special_tokens,
        }

    def check_limit(self, limit, name):
        longest = self.options.max_model_len
        if limit is not None and limit > longest:
            message = (
                f"{name}={limit} cannot be greater than max_model_len={longest}. Please request fewer output tokens."
            )
            raise Refusal(message, name, limit)

    def check_prompt(self, prompt, is_text):
        """Return a prompt's token ids, unless it is too long or is not made of the model's tokens."""
        longest = self.options.max_model_len
        prompt = prompt[: longest + 1] if is_text else prompt  # vLLM reads no further
        if len(prompt) > longest:
            few = "at least " if len(prompt) == longest + 1 else ""
            message = (
                f"This model's maximum context length is {longest} tokens. However, your prompt contains "
                f"{few}{len(prompt)} input tokens, which exceeds this limit even without any output tokens. Please "
                "reduce the length of the input prompt."
            )
            raise Refusal(message, "input_tokens", len(prompt))
        return prompt

    def generate(self, request, prompt, name, settings, logprobs, prompt_logprobs):
        from vllm_stand_in_model import Sampling

        if prompt and max(prompt) > self.model.highest_token:
            raise Refusal(f"Token id {max(prompt)} is out of vocabulary")
        found = []
        for index in range(request.n):
            seed = None if request.seed is None else request.seed + index
            sampling = Sampling(**(settings | {"seed": seed, "logprobs": logprobs}))
            found.append(self.model.complete(prompt, sampling, name, prompt_logprobs))
        return found

    def write_states(self, request, request_id, prompt, completions):
        """Write the hidden states of each completion, and return what the response tells of them."""
        if self.folder is None or not completions:
            return None
        from safetensors.torch import save_file
        from torch import tensor

        self.folder.mkdir(parents=True, exist_ok=True)
        ending = f"{request_id}-{uuid.uuid4().hex[:8]}.safetensors"
        for index, completion in enumerate(completions):
            path = self.folder / (f"{index}_{ending}" if len(completions) > 1 else ending)
            with_output = (request.kv_transfer_params or {}).get("include_output_tokens")
            tokens = [*prompt, *completion.token_ids][:-1] if with_output else prompt
            Path(f"{path}.lock").touch()
            save_file(
                {"hidden_states": completion.hidden[: len(tokens)].contiguous(), "token_ids": tensor(tokens)}, path
            )
        # vLLM ends a completion with a stop text from outside of its engine, which then tells of no file.
        if isinstance(completions[-1].stop_reason, str):
            return None
        return {"hidden_states_path": str(path)}

    def complete(self, request):
        self.check_supported(request)
        name = self.check_model(request)
        for field in ("prompt_logprobs", "logprobs"):
            if (count := getattr(request, field)) is not None and count < -1:
                raise Refusal(f"`{field}` must be a positive value or -1.", field, count)
        if not request.prompt and not isinstance(request.prompt, list):
            raise Refusal("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
        self.check_limit(request.max_tokens, "max_tokens")
        prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        if prompts and isinstance(prompts[0], int):
            prompts = [prompts]
        if not prompts:
            raise Refusal("You must pass at least one prompt")
        tokenize = self.model.tokenizer
        prompts = [
            self.check_prompt(tokenize(prompt, add_special_tokens=request.add_special_tokens)["input_ids"], True)
            if isinstance(prompt, str)
            else self.check_prompt(prompt, False)
            for prompt in prompts
        ]
        prompt_logprobs = request.logprobs if request.echo and request.prompt_logprobs is None else None
        prompt_logprobs = request.prompt_logprobs if prompt_logprobs is None else prompt_logprobs
        is_echo_alone = bool(request.echo) and request.max_tokens == 0
        limit = 16 if request.max_tokens is None else 1 if is_echo_alone else request.max_tokens
        counts = {"logprobs": request.logprobs, "prompt_logprobs": prompt_logprobs}
        request_id = f"cmpl-{uuid.uuid4().hex[:16]}"
        choices, produced, transfer = [], 0, []
        for number, prompt in enumerate(prompts):
            settings = self.check_sampling(request, limit, counts, self.options.max_model_len - len(prompt))
            completions = self.generate(request, prompt, name, settings, request.logprobs, prompt_logprobs)
            transfer.append(self.write_states(request, f"{request_id}-{number}", prompt, completions))
            for completion in completions:
                produced += len(completion.token_ids)
                choices.append(self.make_choice(request, len(choices), prompt, completion, is_echo_alone))
        consumed = sum(map(len, prompts))
        return self.make_response(request_id, "text_completion", name, choices, consumed, produced, transfer[0])

    def make_choice(self, request, index, prompt, completion, is_echo_alone):
        tokens, text, logprobs = completion.token_ids, completion.text, completion.logprobs
        if request.echo:
            before = "" if request.return_token_ids else self.model.tokenizer.decode(prompt)
            text = before if is_echo_alone else before + text
            tokens = prompt if is_echo_alone else [*prompt, *tokens]
            logprobs = [*(completion.prompt_logprobs or []), *([] if is_echo_alone else logprobs or [])]
        return {
            "index": index,
            "text": text,
            "logprobs": None if request.logprobs is None else self.list_logprobs(request, tokens, logprobs),
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
            "token_ids": completion.token_ids if request.return_token_ids else None,
            "prompt_logprobs": completion.prompt_logprobs,
            "prompt_token_ids": prompt if request.return_token_ids else None,
            "routed_experts": None,
        }

    def name_token(self, request, token, entry):
        return f"token_id:{token}" if request.return_tokens_as_token_ids else entry["decoded_token"]

    def list_logprobs(self, request, tokens, logprobs):
        """Return the log-probabilities of a completion's tokens as the completions endpoint lists them."""
        found = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        offset = 0
        for token, entries in zip(tokens, logprobs, strict=True):
            if entries is None:
                text = self.name_token(request, token, {"decoded_token": self.model.tokenizer.decode([token])})
            else:
                text = self.name_token(request, token, entries[token])
            found["text_offset"].append(offset)
            found["tokens"].append(text)
            found["token_logprobs"].append(entries and entries[token]["logprob"])
            found["top_logprobs"].append(
                entries and {self.name_token(request, key, entry): entry["logprob"] for key, entry in entries.items()}
            )
            offset += len(text)
        return found

    def chat(self, request):
        self.check_supported(request)
        name = self.check_model(request)
        limit = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
        self.check_limit(limit, "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens")
        if not request.messages:
            raise Refusal("Cannot apply chat template to an empty conversation. Provide at least one message.")
        tokenizer = self.model.tokenizer
        if tokenizer.chat_template is None:
            raise Refusal(
                "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat "
                "template if the tokenizer does not define one."
            )
        messages = [dict(message, content=join_parts(message.get("content"))) for message in request.messages]
        text = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            **(request.chat_template_kwargs or {}),
        )
        prompt = self.check_prompt(tokenizer(text, add_special_tokens=False)["input_ids"], True)
        logprobs = request.top_logprobs if request.logprobs else None
        counts = {"top_logprobs": logprobs, "prompt_logprobs": request.prompt_logprobs}
        limit = self.defaults.get("max_new_tokens") if limit is None else limit
        settings = self.check_sampling(request, limit, counts, self.options.max_model_len - len(prompt))
        completions = self.generate(request, prompt, name, settings, logprobs, request.prompt_logprobs)
        request_id = f"chatcmpl-{uuid.uuid4().hex[:16]}"
        transfer = self.write_states(request, request_id, prompt, completions)
        choices = [self.make_chat_choice(request, *numbered) for numbered in enumerate(completions)]
        produced = sum(len(completion.token_ids) for completion in completions)
        response = self.make_response(request_id, "chat.completion", name, choices, len(prompt), produced, transfer)
        of_prompt = {
            "prompt_logprobs": completions[0].prompt_logprobs,
            "prompt_token_ids": prompt if request.return_token_ids else None,
            "prompt_text": None,
        }
        transfers = {key: response.pop(key) for key in ("kv_transfer_params", "ec_transfer_params", "metrics")}
        return response | of_prompt | transfers

    def make_chat_choice(self, request, index, completion):
        def entry(token, found):
            text = self.name_token(request, token, found)
            return {"token": text, "logprob": found["logprob"], "bytes": list(text.encode())}

        content = completion.logprobs and [
            {
                **entry(token, found[token]),
                "top_logprobs": [entry(*pair) for pair in list(found.items())[: request.top_logprobs]],
            }
            for token, found in zip(completion.token_ids, completion.logprobs, strict=True)
        ]
        nothing = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
        return {
            "index": index,
            "message": {"role": "assistant", "content": completion.text, **nothing},
            "logprobs": content and {"content": content},
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
            "token_ids": completion.token_ids if request.return_token_ids else None,
            "routed_experts": None,
        }

    def make_response(self, request_id, kind, name, choices, consumed, produced, transfer):
        return {
            "id": request_id,
            "object": kind,
            "created": int(time.time()),
            "model": name,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": self.fingerprint,
            "usage": {
                "prompt_tokens": consumed,
                "total_tokens": consumed + produced,
                "completion_tokens": produced,
                "prompt_tokens_details": None,
                "completion_tokens_details": None,
            },
            "kv_transfer_params": transfer,
            "ec_transfer_params": None,
            "metrics": None,
        }


def join_parts(content):
    """Return a message's content as text; a list of parts is joined by line ends."""
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if part.get("type") == "text")
    return content


# The process


def start_engine():
    """Start the child process that stands for vLLM's engine."""
    code = "import time\nwhile True:\n    time.sleep(1000)"
    return subprocess.Popen([sys.executable, "-S", "-E", "-c", code, ENGINE], stdin=subprocess.DEVNULL)


class HttpServer(uvicorn.Server):
    """Uvicorn without its own handling of signals."""

    def capture_signals(self):
        return nullcontext()


def serve(options):
    misbehaviour = Misbehaviour(**json.loads(os.environ.get(VARIABLE) or "{}"))
    listener = None
    if not options.headless:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host or "0.0.0.0", options.port))
    engine = start_engine()

    def end(number, frame):
        if not (number == signal.SIGTERM and misbehaviour.ignore_sigterm):
            stop(engine, 0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    environment = {name: value for name, value in os.environ.items() if name.startswith(RECORDED)}
    misbehaviour.write(
        options={name: value for name, value in vars(options).items() if name != "run"},
        arguments=sys.argv[1:],
        environment=environment,
        pid=os.getpid(),
        engine=engine.pid,
    )
    try:
        run(options, misbehaviour, listener)
    except Exception:
        traceback.print_exc()
        stop(engine, 1)
    except SystemExit as error:
        stop(engine, error.code)
    stop(engine, 0)


def stop(engine, code):
    """End the engine and this process."""
    engine.terminate()
    engine.wait()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(options, misbehaviour, listener):
    """Load the model and serve it until a signal ends the process."""
    if misbehaviour.exit_at_start is not None:
        print(misbehaviour.exit_at_start, file=sys.stderr)
        raise SystemExit(1)
    while options.headless or misbehaviour.never_ready:
        time.sleep(1000)

    import torch
    from vllm_stand_in_model import Model, find_max_length

    torch.set_num_threads(1)
    start = time.monotonic()
    check_options(options, find_max_length(options.model))
    layers, folder = find_hidden_states(options)
    adapters = {entry["name"]: entry["path"] for entry in options.lora_modules}
    dtype = {"half": "float16", "float": "float32"}.get(options.dtype, options.dtype)
    model = Model(options.model, dtype, adapters, options.max_lora_rank, layers, misbehaviour.changes())
    server = Server(options, model, folder, misbehaviour)
    time.sleep(max(0, misbehaviour.ready_after - (time.monotonic() - start)))
    config = uvicorn.Config(server.build_app(), log_level="info", access_log=not options.disable_uvicorn_access_log)
    HttpServer(config).run(sockets=[listener])


def main(arguments=None):
    options, unknown = build_parser().parse_known_args(arguments)
    if unknown:
        build_parser().error(f"unrecognized arguments: {' '.join(unknown)}")
    serve(options)


if __name__ == "__main__":
    main()
