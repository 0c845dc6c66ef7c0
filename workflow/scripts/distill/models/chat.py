"""Chat templates: text and token ids of prompts and completions."""

import inspect
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import groupby
from types import SimpleNamespace
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils import chat_template_utils

from distill.common.errors import InputError, raise_problems
from distill.models.control_tokens import compile_control_tokens, log_control_tokens, mark, tokenize_marked
from distill.models.options import TEMPLATE_DATE
from distill.models.template_probes import find_history_problem, find_tool_problem
from distill.models.template_variables import CHANNEL, find_unknown_variables
from distill.records.conversations import Conversation, Message, ask

logger = logging.getLogger(__name__)

PROBE, SYSTEM_PROBE = "probe", "directive"  # contents of the messages that a template is tested with
STARTS = ("a", "The", "1", "<", "{")  # starts of answers that a tokenizer is tested with
CONTEXTS = ("\n", "a", "0", ")")  # what may stand before an answer that a tokenizer joins to the end of the prompt
# What a template may raise for messages that it does not expect.
TEMPLATE_ERRORS = (TemplateError, ValueError, TypeError, ArithmeticError, AttributeError, LookupError)
# A tag at the end of a prompt; those with other brackets than `<` and `>` only if they are about reasoning.
OPENED = re.compile(r"(<[^<>/|\s]+>|\[[A-Z_]+\]|◁[^◁▷/\s]+▷|<\|[^<>|/]+\|>)\s*$")
# What Qwen3's template writes at the end of a prompt with `enable_thinking: false`.
NO_REASONING = re.compile(r"<think>\s*</think>\s*")
REASONING = re.compile("think|thought|reason", re.IGNORECASE)


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template, and what it is rendered with.

    All prompts and answers are tokenized here, so that generation, signals, training and evaluation agree.

    Control tokens, such as `<|im_start|>`, are written by the template alone: in the text of a message they are read as
    ordinary text. Pairs of tags such as `<think>` and `</think>` are part of an answer and stay tokens.

    Attributes:
        tokenizer: the tokenizer.
        arguments: further variables of the template, such as `enable_thinking`.
        date: the day that templates read as today's, `YYYY-MM-DD`.
        rows: number of the model's embeddings; None if unknown.

    Raises:
        InputError: the template has no such variable, or the date does not exist.
    """

    tokenizer: Any
    arguments: Mapping[str, Any] = field(default_factory=dict)
    date: str = TEMPLATE_DATE
    rows: int | None = None

    def __post_init__(self) -> None:
        if CHANNEL in str(self.tokenizer.chat_template):
            raise InputError(
                f"{self.name}: expected a chat template whose answers are text, found one with channels ({CHANNEL}, as "
                "in gpt-oss); a server separates them: use engine openai for such a teacher"
            )
        unknown = find_unknown_variables(self.tokenizer.chat_template, self.arguments)
        for name in self.arguments:
            taken = inspect.signature(self.tokenizer.apply_chat_template).parameters
            if name in taken or name == "messages" or name in unknown:
                raise InputError(
                    f"{self.name}: template_arguments: expected variables of the chat template, found {name!r}, which "
                    "is none"
                )
        try:
            datetime.fromisoformat(self.date)
        except ValueError as error:
            raise InputError(f"template_date: expected a date as YYYY-MM-DD, found {self.date!r} ({error})") from None

    @property
    def name(self) -> str:
        """Name of the tokenizer in messages."""
        return self.tokenizer.name_or_path

    def digest_parts(self) -> dict[str, Any]:
        """Return what decides how a prompt is rendered; the date counts only if the template asks for it."""
        parts: dict[str, Any] = {"template": self.tokenizer.chat_template}
        if self.arguments:
            parts["template_arguments"] = dict(self.arguments)
        if "strftime_now" in str(self.tokenizer.chat_template):
            parts["template_date"] = self.date
        return parts

    # ---- Text ----

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, tools: Sequence[dict[str, Any]] = ()
    ) -> str:
        """Render messages, and JSON schemas of tools, with the template.

        Raises:
            InputError: there is no template, or it rejects the messages.
        """
        if not self.tokenizer.chat_template:
            raise InputError(f"{self.name}: expected a tokenizer with a chat template, found none")
        try:
            with fixed_date(self.date):
                return self.tokenizer.apply_chat_template(
                    list(messages),
                    tools=list(tools) or None,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **self.arguments,
                )
        except TEMPLATE_ERRORS as error:
            roles = ", ".join(message["role"] for message in messages)
            raise InputError(f"{self.name}: the chat template rejects messages of {roles}: {error}") from error

    @cached_property
    def has_system_role(self) -> bool:
        """Whether the template has a place for a system message; some raise an error, others leave it out."""
        try:
            text = self.render([message("system", SYSTEM_PROBE), message("user", PROBE)], True)
        except InputError:
            text = self.render([message("user", PROBE)], True)
        found = SYSTEM_PROBE in text
        if not found:
            logger.info("%s: the chat template has no system role: system texts stand before the user's", self.name)
        return found

    def render_prompt(self, system: str, prompt: str) -> str:
        """Render the prompt of a single user text; see `render_conversation`."""
        return self.render_conversation(ask(system, prompt))

    def render_conversation(self, asked: Conversation) -> str:
        """Render a prompt up to the start of the answer, including what the template opens for it.

        Without a system role in the template, the system text stands before the first user text, with an empty line
        between.

        Raises:
            InputError: see `render` and `check_conversation`.
        """
        self.check_conversation(asked)
        messages = asked.messages
        if not self.has_system_role:
            first, *others = asked.turns
            text = f"{asked.system}\n\n{first['content']}" if asked.system else first["content"]
            messages = [message("user", text), *others]
        return self.render(messages, add_generation_prompt=True, tools=asked.tools) + self.missing_header

    def check_conversation(self, asked: Conversation) -> None:
        """Check that the template shows several turns, and tools, where a conversation has them.

        Raises:
            InputError: it does not; says what is missing.
        """
        problem = self.history_problem if len(asked.turns) > 1 else None
        if problem := problem or (self.tool_problem if asked.has_tools else None):
            raise InputError(f"{self.name}: {problem}")

    @cached_property
    def history_problem(self) -> str | None:
        """What the template leaves out of earlier turns; None if it shows them."""
        return find_history_problem(self)

    @cached_property
    def tool_problem(self) -> str | None:
        """Why conversations with tools are not possible with this template; None if they are."""
        return find_tool_problem(self)

    @cached_property
    def missing_header(self) -> str:
        """The header of an answer, if the template writes it in earlier answers but not at the end of a prompt."""
        messages = [*self.probe_system, message("user", PROBE)]
        text = self.render(messages, add_generation_prompt=True)
        before = self.answered[0]
        header = before[len(text) :] if before.startswith(text) else ""
        if not header.strip() or text != self.render(messages):
            return ""
        logger.warning("%s: the chat template has no generation prompt; prompts end with %r", self.name, header)
        return header

    @property
    def probe_system(self) -> list[Message]:
        """The system message of probes; some templates require one."""
        return [message("system", SYSTEM_PROBE)] if self.has_system_role else []

    @cached_property
    def opening(self) -> str:
        """The text between the end of a user's message and the start of the answer."""
        text = self.render_prompt(SYSTEM_PROBE, PROBE)
        if PROBE not in text:
            raise InputError(f"{self.name}: expected a chat template that shows the user's message, found one without")
        return text[text.rindex(PROBE) + len(PROBE) :]

    @cached_property
    def opened(self) -> str:
        r"""What the template writes at the start of each answer, such as `<think>\n`; empty for most templates.

        A tag of another name that stands before the content of earlier answers, too, is the header of the turn.
        """
        found = OPENED.search(self.opening)
        if not found or (found[0][0] in "[◁" or found[0].startswith("<|")) and not REASONING.search(found[0]):
            return ""
        is_header = self.answered[0].rstrip().endswith(found[0].strip())
        return found[0] if REASONING.search(found[0]) or not is_header else ""

    @cached_property
    def answered(self) -> tuple[str, str]:
        """The texts before and after the content of an answer that stands in the chat."""
        text = self.render([*self.probe_system, message("user", PROBE), message("assistant", PROBE)])
        before, found, after = text.rpartition(PROBE)
        return (before, after) if found else (text, "")

    def has_opened(self, answer: str) -> bool:
        """Whether an answer begins with what the template opens; true where it opens nothing."""
        return answer.lstrip().startswith(self.opened.strip())

    def take_off_opened(self, answer: str) -> str:
        """Return an answer without what the template has already written at its start."""
        if re.search(NO_REASONING.pattern + "$", self.opening) and (repeated := NO_REASONING.match(answer)):
            return answer[repeated.end() :]
        if not (self.opened and self.has_opened(answer)):
            return answer
        if answer.startswith(self.opened):
            return answer[len(self.opened) :]
        return answer.lstrip()[len(self.opened.strip()) :]

    # ---- Token ids ----

    def encode_prompt(self, system: str, prompt: str, opened: str | None = None) -> list[int]:
        """Tokenize the prompt of a single user text; see `encode_conversation`.

        Args:
            system, prompt: texts of the system and the user message.
            opened: see `encode_conversation`.
        """
        return self.encode_conversation(ask(system, prompt), opened)

    def encode_conversation(self, asked: Conversation, opened: str | None = None) -> list[int]:
        """Tokenize a prompt; the template adds the special tokens.

        Args:
            asked: system text, turns and tools.
            opened: what stands at the start of the answer, in place of what this template opens.

        Raises:
            InputError: see `render_conversation` and `check_ids`.
        """
        marked = Conversation(*mark(self.control_tokens, *asked))
        text = self.render_conversation(marked)
        if opened is not None and opened != self.opened:
            text = text.removesuffix(self.opened) + opened
        ids = self.tokenize(text, marked != asked)
        self.check_ids(ids)
        return ids

    def encode_completion(self, answer: str, is_whole: bool = True) -> list[int]:
        """Tokenize an assistant's answer as it follows a prompt.

        Args:
            answer: text of the answer.
            is_whole: whether the end-of-turn token is added. An answer cut off at the maximum length has none, so that
                no model learns to stop there.
        """
        ids = self.encode_after_prompt(self.take_off_opened(answer))
        return [*ids, self.end_of_turn] if is_whole else ids

    def encode_after_prompt(self, text: str) -> list[int]:
        """Tokenize text as it follows a prompt.

        Raises:
            InputError: the tokenizer joins the end of the prompt and the start of the text to one token.
        """
        (marked,) = mark(self.control_tokens, text)
        if not self.depends_on_start:
            return self.tokenize(marked, marked != text)
        for context in (self.opening, *CONTEXTS):
            start, whole = self.tokenize(context), self.tokenize(context + marked, marked != text)
            if whole[: len(start)] == start:
                return whole[len(start) :]
        raise InputError(
            f"{self.name}: expected a tokenizer that separates prompt and answer, found one that joins the end of the "
            f"prompt and the start of {text[:40]!r} to one token"
        )

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Return the text of generated tokens, from which `encode_after_prompt` gives the same tokens, if possible.

        Decoders of SentencePiece leave out the space at the start of a text and put spaces around special tokens, after
        which tokenizing adds a space.
        """
        plain = self.tokenizer.decode(ids, skip_special_tokens=False)
        if not self.depends_on_start or self.gives(plain, ids):
            return plain
        runs = self.decode_runs(ids)
        text = "".join(run for _, run in runs)
        if self.gives(text, ids):
            return text
        pairs = zip([(False, ""), *runs], runs, strict=False)
        joined = "".join(run.removeprefix(" ") if before[0] else run for before, (_, run) in pairs)
        return joined if self.gives(joined, ids) else text

    def decode_runs(self, ids: Sequence[int]) -> list[tuple[bool, str]]:
        """Return (whether these are special tokens, text) of the runs of special and of ordinary tokens.

        Ordinary tokens are decoded behind a letter, so that the text has all of their spaces.
        """
        special = {*self.tokenizer.added_tokens_decoder, *self.tokenizer.all_special_ids}
        start = self.tokenize("a")
        before = self.tokenizer.decode(start)
        runs = []
        for is_special, run in groupby(ids, key=lambda token: token in special):
            tokens = list(run)
            if is_special:
                text = "".join(self.tokenizer.convert_ids_to_tokens(tokens))
            else:
                behind = self.tokenizer.decode([*start, *tokens])
                text = behind[len(before) :] if behind.startswith(before) else self.tokenizer.decode(tokens)
            runs.append((is_special, text))
        return runs

    def gives(self, text: str, ids: Sequence[int]) -> bool:
        """Whether an answer's text has these tokens after a prompt."""
        try:
            return self.encode_after_prompt(text) == list(ids)
        except InputError:
            return False

    @cached_property
    def depends_on_start(self) -> bool:
        """Whether tokens differ at the start of a text: SentencePiece adds a space there, byte-level BPE does not."""
        skipped = len(self.tokenize(self.opening))
        return any(self.tokenize(self.opening + start)[skipped:] != self.tokenize(start) for start in STARTS)

    @cached_property
    def control_tokens(self) -> re.Pattern[str]:
        """Matches the tokens that only the template may write."""
        return compile_control_tokens(self.tokenizer)

    def tokenize(self, text: str, is_marked: bool = False) -> list[int]:
        """Tokenize text without adding special tokens.

        Args:
            text: rendered text.
            is_marked: whether control tokens of messages are marked in it, see `tokenize_marked`.
        """
        if is_marked:
            return tokenize_marked(self.tokenizer, text)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def check_ids(self, ids: Sequence[int]) -> None:
        """Check that the model has an embedding of each token.

        Raises:
            InputError: it has none of a token; names it.
        """
        largest = max(ids, default=0)
        if self.rows is not None and largest >= self.rows:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            raise InputError(
                f"{self.name}: expected token ids below {self.rows}, the number of the model's embeddings, found "
                f"{largest} ({token!r}): the tokenizer has tokens that the model was not trained with"
            )

    @cached_property
    def end_of_turn(self) -> int:
        """The token that ends an assistant's turn, which a model must generate to stop.

        It is taken from the chat template, since `eos_token` differs in some tokenizers: `<|endoftext|>`, where the
        template ends a turn with `<|im_end|>`. Answers may contain an end of ordinary tokens, such as `###`, so that
        `eos_token` ends the turn instead.

        Raises:
            InputError: neither the template nor the tokenizer has such a token.
        """
        end = self.answered[1].strip()
        ids = self.tokenize(end) if end else []
        if ids and (ids[0] in self.tokenizer.added_tokens_decoder or ids[0] in self.tokenizer.all_special_ids):
            return ids[0]
        eos = self.tokenizer.eos_token_id
        found = f"{end!r}, which is {len(ids)} ordinary token{'s' * (len(ids) > 1)}" if end else "none"
        if eos is None:
            raise InputError(
                f"{self.name}: expected a chat template that ends turns with a special token, or an eos_token, found "
                f"{found} and no eos_token"
            )
        if end:
            token = self.tokenizer.eos_token
            logger.warning("%s: the template ends turns with %s; %s ends them instead", self.name, found, token)
        return eos

    def log_control_tokens(self, records: Iterable[Iterable[str]]) -> None:
        """Log how many records, given by their texts, have control tokens in a text, and which."""
        log_control_tokens(self.control_tokens, records)


def check_conversations(chat: ChatTemplate, asked: Iterable[tuple[str, Conversation]]) -> None:
    """Check that a template renders conversations of several turns or with tools.

    Args:
        chat: the template.
        asked: name of each record, and its conversation.

    Raises:
        InputError: it does not render some of them; names each with what the template says.
    """
    problems = []
    for name, conversation in asked:
        try:
            if not conversation.is_plain:
                chat.render_conversation(conversation)
        except InputError as error:
            problems.append(f"{name}: {error}")
    raise_problems(problems, "conversations")


def message(role: str, content: str) -> Message:
    """Return a message of a chat."""
    return {"role": role, "content": content}


@contextmanager
def fixed_date(date: str) -> Iterator[None]:
    """Let the templates' function `strftime_now` read this date instead of today's."""
    module: Any = chat_template_utils
    original = module.datetime
    module.datetime = SimpleNamespace(now=lambda: datetime.fromisoformat(date))
    try:
        yield
    finally:
        module.datetime = original


def get_end_of_turn_id(tokenizer: Any) -> int:
    """Return the token that ends an assistant's turn; see `ChatTemplate.end_of_turn`."""
    return ChatTemplate(tokenizer).end_of_turn
