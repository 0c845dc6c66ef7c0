"""Stand-in judges for `serving.FakeServer`, which decide by a rule on the two answers that they are shown."""

import json
import re

from serving import completion

ANSWERS = re.compile(r"<answer_A>\n(.*)\n</answer_A>\n\n<answer_B>\n(.*)\n</answer_B>", re.DOTALL)


def read_answers(body):
    """Return both answers of a request, in their order."""
    return ANSWERS.search(body["messages"][-1]["content"]).groups()


def reply(body, verdict):
    """Return a completion with the verdict in the form that the request asks for."""
    if "response_format" in body:
        return completion(json.dumps({"explanation": "One is longer.", "verdict": verdict}))
    return completion(f"One is longer.\n\n[[{verdict}]]")


def prefer_longer(body, number=0):
    first, second = map(len, read_answers(body))
    return reply(body, "tie" if first == second else "A" if first > second else "B")


def prefer_first(body, number=0):
    return reply(body, "A")
