"""Requests to a judge: those of the teacher's server, with the form of the verdict."""

import re
from typing import Any

from openai import AsyncOpenAI

from distill.common.errors import InputError
from distill.evaluation.pairs import JSON_FORM, LINE_FORM, RESPONSE_FORMAT, make_sampling
from distill.evaluation.pairwise_options import PairwiseOptions
from distill.generation.chat_client import PROBE, ChatClient, Outcome
from distill.generation.sampling import Request
from distill.generation.server_errors import Problem

# Refusals of servers or models that have no structured output.
NO_SCHEMA = re.compile(r"response.?format|json.?schema|structured|guided|grammar", re.IGNORECASE)


class JudgeClient(ChatClient):
    """Asks for verdicts as JSON objects, or by a final line once the server refuses schemas.

    Args:
        options: the judge and its server.

    Raises:
        InputError: see `ChatClient`.
    """

    def __init__(self, options: PairwiseOptions):
        names = ("base_url", "api_key_env", "timeout", "request_retries", "template_arguments")
        settings = {name: getattr(options, name) for name in names}
        super().__init__(options.model, make_sampling(options), **settings)
        self.is_structured = options.structured

    async def check_server(self, client: AsyncOpenAI) -> None:
        """Check the server, see `ChatClient.check_server`; errors name the options of the judge."""
        try:
            await super().check_server(client)
        except InputError as error:
            text = str(error)
            for name in ("model", "base_url"):
                text = text.replace(f"(teacher.{name})", f"(evaluation.pairwise.{name})")
            raise InputError(text) from error

    def build_settings(self, request: Request) -> dict[str, Any]:
        """Return the parameters of a request, with the form of the verdict after the instruction."""
        settings = super().build_settings(request)
        if request is PROBE:
            return settings
        form = JSON_FORM if self.is_structured else LINE_FORM
        system, *turns = settings["messages"]
        settings["messages"] = [system | {"content": f"{system['content']}\n\n{form}"}, *turns]
        return settings | ({"response_format": RESPONSE_FORMAT} if self.is_structured else {})

    async def send(self, client: AsyncOpenAI, request: Request) -> Outcome:
        """Send a request; if the server refuses the schema, send this one and all later ones without it."""
        was_structured = self.is_structured
        request, found = await super().send(client, request)
        is_refused = isinstance(found, Problem) and found.is_refusal and NO_SCHEMA.search(found.text)
        if not (was_structured and is_refused):
            return request, found
        self.is_structured = False
        return await super().send(client, request)
