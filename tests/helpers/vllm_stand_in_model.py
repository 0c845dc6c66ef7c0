"""The model of the stand-in for vLLM: generation, log-probabilities and hidden states, with transformers and peft."""

import contextlib
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

GREEDY_BELOW = 1e-5  # vLLM treats a lower temperature as zero
CONTEXT = 6  # prompt tokens that are decoded with the completion, so that its first token keeps its leading space
BYTES = 4  # the most bytes of a character, so that many tokens before one may hold its first bytes
SMALLEST = -9999.0  # vLLM's replacement for minus infinity, which JSON does not have


@dataclass
class Sampling:
    """How one completion is sampled; the names are those of vLLM's requests."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    skip_special_tokens: bool = True
    logprobs: int | None = None


@dataclass
class Completion:
    """A completion. Log-probabilities are as `most_likely` returns them, and the last token has no hidden state."""

    text: str
    token_ids: list[int]
    finish_reason: str
    stop_reason: int | str | None
    logprobs: list[dict[int, dict]] | None
    prompt_logprobs: list[dict[int, dict] | None] | None
    hidden: torch.Tensor | None


def check_adapter(name, folder, max_rank):
    """Refuse what vLLM refuses of an adapter, with vLLM's words."""
    if not Path(folder, "adapter_config.json").exists():
        raise ValueError(f"Loading lora {name} failed: No adapter found for {folder}")
    config = json.loads(Path(folder, "adapter_config.json").read_text(encoding="utf-8"))
    reasons = []
    if unsupported := [name for name in config.get("modules_to_save") or [] if name not in ("classifier", "score")]:
        reasons.append(
            'vLLM only supports modules_to_save being either None or ["classifier", "score"] for classification '
            f"models. Unsupported modules_to_save: {unsupported}"
        )
    if config.get("use_dora"):
        reasons.append("vLLM does not yet support DoRA.")
    if config.get("lora_bias"):
        reasons.append("vLLM does not support LoRA bias (lora_bias).")
    rank = max(config["r"], *(config.get("rank_pattern") or {}).values(), 0)
    if rank > max_rank:
        reasons.append(f"LoRA rank {rank} is greater than max_lora_rank {max_rank}.")
    if config.get("bias", "none") != "none":
        reasons.append("Adapter bias is not supported.")
    if reasons:
        raise ValueError(
            f"Call to add_lora method failed: Worker failed with error '{' '.join(reasons)}', please check the stack "
            "trace above for the root cause"
        )


def find_max_length(folder):
    """Return the context length of a model."""
    return AutoConfig.from_pretrained(folder).get_text_config().max_position_embeddings


class Model:
    """A model with adapters on the CPU. One request uses it at a time.

    Args:
        folder: the model and its tokenizer.
        dtype: name of a data type; `auto` is that of the stored weights.
        adapters: folder of each adapter by the name that requests use.
        max_rank: highest rank of an adapter.
        layers: layers whose hidden states are kept. 0 is the output of the embedding, and the number of layers the
            state before the last norm.
        changes: deliberate errors: `wrong_hidden`, `wrong_logprobs` and `shift_tokens`.
    """

    def __init__(self, folder, dtype="auto", adapters=None, max_rank=16, layers=(), changes=None):
        self.changes = changes or {}
        self.lock = threading.Lock()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.vocabulary = model.config.get_text_config().vocab_size
        self.strips_spaces = "Metaspace" in json.dumps(
            json.loads(self.tokenizer.backend_tokenizer.to_str())["pre_tokenizer"]
        )
        self.highest_token = max(self.vocabulary - 1, *self.tokenizer.get_vocab().values())
        self.defaults, self.other_eos = self.read_generation_config(folder)
        self.states = {}
        self.watch(model, sorted(layers))
        self.names = {}
        for number, (name, path) in enumerate((adapters or {}).items()):
            check_adapter(name, path, max_rank)
            self.names[name] = f"adapter_{number}"  # a name of peft's may not hold a dot
            if number:
                model.load_adapter(path, self.names[name])
            else:
                from peft import PeftModel  # its import takes a second, and many servers have no adapter

                model = PeftModel.from_pretrained(model, path, self.names[name])
        self.model = model.eval()

    def read_generation_config(self, folder):
        """Return a model's own sampling settings, and its EOS tokens besides the tokenizer's."""
        if not Path(folder, "generation_config.json").exists():
            return {}, set()
        config = GenerationConfig.from_pretrained(folder)
        eos = config.eos_token_id
        eos = set() if eos is None else {eos} if isinstance(eos, int) else set(eos)
        return config.to_diff_dict(), eos - {self.tokenizer.eos_token_id}

    def watch(self, model, layers):
        """Have each forward pass leave the states of some layers in `self.states`, in the order of the layers."""
        decoder = model.get_decoder()

        def keep(layer):
            def hook(module, arguments, output=None):
                state = arguments[0] if output is None else output[0] if isinstance(output, tuple) else output
                self.states[layer] = state[0].detach().clone()

            return hook

        for layer in layers:
            if layer == len(decoder.layers):
                decoder.norm.register_forward_pre_hook(keep(layer))
            elif layer:
                decoder.layers[layer - 1].register_forward_hook(keep(layer))
            else:
                decoder.get_input_embeddings().register_forward_hook(keep(layer))

    def use(self, name):
        """Return a context in which the model runs with an adapter, or without one if no adapter has the name."""
        if name in self.names:
            self.model.set_adapter(self.names[name])
            return contextlib.nullcontext()
        return self.model.disable_adapter() if self.names else contextlib.nullcontext()

    def complete(self, prompt, sampling, name=None, prompt_logprobs=None):
        """Generate a completion of token ids."""
        with self.lock, torch.inference_mode(), self.use(name):
            return self.generate(prompt, sampling, prompt_logprobs)

    def generate(self, prompt, sampling, prompt_logprobs):
        random = torch.Generator()
        if sampling.seed is None:
            random.seed()
        else:
            random.manual_seed(sampling.seed)
        output = self.model(torch.tensor([prompt]), use_cache=True)
        logits = output.logits[0].float()
        asked = None if prompt_logprobs is None else self.score_prompt(prompt, logits, prompt_logprobs)
        tokens, scores, hidden = [], [], [self.stack_states()]
        while True:
            token = self.choose(logits[-1], sampling, random, len(tokens))
            tokens.append(token)
            if sampling.logprobs is not None:
                scored = logits[-1].log_softmax(-1)
                scores.append(self.most_likely(scored, token, sampling.logprobs, tokens[:-1][-BYTES:]))
            text, finish_reason, stop_reason = self.check_end(prompt, tokens, sampling)
            if finish_reason:
                break
            output = self.model(torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True)
            logits = output.logits[0].float()
            hidden.append(self.stack_states())
        states = torch.cat(hidden) if self.states else None
        return Completion(
            text, tokens, finish_reason, stop_reason, scores if sampling.logprobs is not None else None, asked, states
        )

    def stack_states(self):
        """Return the states of the last forward pass, (tokens, layers, width)."""
        if not self.states:
            return torch.empty(0)
        states = torch.stack([self.states[layer] for layer in sorted(self.states)], dim=1)
        if "wrong_hidden" in self.changes:  # a factor for all channels would be lost in the norm
            states[..., ::2] *= self.changes["wrong_hidden"]
        return states

    def stop_tokens(self, sampling):
        eos = set() if sampling.ignore_eos else {self.tokenizer.eos_token_id, *self.other_eos}
        return eos | set(sampling.stop_token_ids)

    def choose(self, logits, sampling, random, count):
        """Return the next token, greedily or drawn as vLLM does: temperature, then top-k, then top-p."""
        if count < sampling.min_tokens:
            logits = logits.clone()
            logits[[token for token in self.stop_tokens(sampling) if token is not None]] = -torch.inf
        if sampling.temperature < GREEDY_BELOW:
            return int(logits.argmax())
        values, order = (logits / sampling.temperature).sort(descending=True)
        if sampling.top_k > 0:
            values[sampling.top_k :] = -torch.inf
        probabilities = values.softmax(-1)
        probabilities[probabilities.cumsum(-1) - probabilities >= sampling.top_p] = 0
        return int(order[torch.multinomial(probabilities, 1, generator=random)])

    def check_end(self, prompt, tokens, sampling):
        """Return a completion's text, its reason to end, if any, and the token or text that ended it.

        The token that ends a completion stays in its token ids but not in its text. The tokenizer's own token of end is
        no reason of its own.
        """
        last, eos = tokens[-1], self.tokenizer.eos_token_id
        stopped_by = last if last in self.stop_tokens(sampling) else None
        include = sampling.include_stop_str_in_output
        text = self.decode(prompt, tokens if stopped_by is None or include else tokens[:-1], sampling)
        if stopped_by is not None:
            return text, "stop", None if last == eos and not sampling.ignore_eos else last
        if len(tokens) > sampling.min_tokens:
            for stop in sampling.stop:
                if (start := text.find(stop)) >= 0:
                    return text[: start + len(stop) if include else start], "stop", stop
        return text, "length" if len(tokens) >= sampling.max_tokens else None, None

    def decode(self, prompt, tokens, sampling):
        """Return the text of completion tokens after their prompt, without a character that lacks bytes at the end."""
        skip = sampling.skip_special_tokens
        before = self.tokenizer.decode(prompt[-CONTEXT:], skip_special_tokens=skip)
        both = self.tokenizer.decode([*prompt[-CONTEXT:], *tokens], skip_special_tokens=skip)
        return both[len(before) :].rstrip("\ufffd")

    def score_prompt(self, prompt, logits, count):
        """Return the log-probabilities of each prompt token and of the most likely ones in its place."""
        scores = logits[:-1].log_softmax(-1) * self.changes.get("wrong_logprobs", 1.0)
        found = [
            self.most_likely(row, prompt[place], count, prompt[1:place][-BYTES:])
            for place, row in enumerate(scores, start=1)
        ]
        return [None, *found]

    def most_likely(self, scores, token, count, context):
        """Return a token and the most likely ones, each with log-probability, rank and text, as vLLM lists them."""
        count = len(scores) if count == -1 else count
        values, tokens = scores.topk(count)
        ranks = {token: int((scores >= scores[token]).sum())}
        found = {token: float(scores[token])}
        for rank, (value, index) in enumerate(zip(values.tolist(), tokens.tolist(), strict=True), start=1):
            ranks.setdefault(index, rank)
            found.setdefault(index, value)
        return {
            index: {
                "logprob": max(value, SMALLEST),
                "rank": ranks[index],
                "decoded_token": self.decode_token(index, context),
            }
            for index, value in found.items()
        }

    def decode_token(self, token, context=()):
        """Return a token's text. Bytes that end no character are empty, and the token that ends it holds all of it."""
        if self.changes.get("shift_tokens"):
            token = (token + 1) % len(self.tokenizer)
        text = self.tokenizer.decode([token])
        if self.strips_spaces and self.tokenizer.convert_ids_to_tokens(token).startswith("▁"):
            return " " + text.lstrip(" ")
        if not text.endswith("\ufffd"):
            return text
        for count in range(1, len(context) + 1):
            before = list(context[-count:])
            both = self.tokenizer.decode([*before, token])
            if not both.endswith("\ufffd"):
                while before and self.tokenizer.decode([before[-1]]).endswith("\ufffd"):
                    before.pop()
                return both[len(self.tokenizer.decode(before)) if before else 0 :]
        return ""
