"""Conversations of several turns, with and without tools, as raw records."""

PRICE = {
    "type": "function",
    "function": {
        "name": "get_price",
        "description": "Price of a share.",
        "parameters": {"type": "object", "properties": {"share": {"type": "string"}}},
    },
}


def say(role, content, **fields):
    return {"role": role, "content": content, **fields}


def call(share, **fields):
    """An assistant's call of get_price."""
    function = {"name": "get_price", "arguments": {"share": share}}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}], **fields}


def make_conversation(number=0, **fields):
    """A record with three answers, the second of which is a tool call."""
    messages = [
        say("system", "You are a manager."),
        say("user", f"me={number}: what do you hold"),
        say("assistant", f"JORVR {number}"),
        say("user", "What is its price?"),
        call("JORVR"),
        say("tool", f"{number}.5", name="get_price"),
        say("assistant", f"It is {number}.5."),
    ]
    return {"messages": messages, "tools": [PRICE], **fields}


def make_chat(number=0, **fields):
    """A record with two answers, without tools."""
    messages = [*make_conversation(number)["messages"][:4], say("assistant", f"It is {number}.5.")]
    return {"messages": messages, **fields}
