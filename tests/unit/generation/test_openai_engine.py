"""The engine `openai`: with a real server, a killed one, and scripted ones that misbehave."""

import logging
import threading
from argparse import ArgumentParser, Namespace
from itertools import chain
from types import SimpleNamespace

import pytest
from conversations import make_chat, make_conversation
from running import run_python
from serving import FakeServer, RealServer, completion
from tiny import CHATML, build_tokenizer, save_model

from distill.common.errors import InputError
from distill.common.files import escape_line, read_jsonl, write_jsonl
from distill.common.options import add_options
from distill.generation.answer_cache import CacheWriter, read_cache
from distill.generation.cached_engine import to_record
from distill.generation.chat_client import ChatClient
from distill.generation.engine import RefusedError, build_engine
from distill.generation.openai_engine import OpenAIEngine
from distill.generation.options import EngineOptions
from distill.generation.sampling import Request, Sampling, make_request
from distill.generation.scoring_server import ScoringOpenAIEngine
from distill.models.chat import ChatTemplate
from distill.models.options import BatchOptions, DeviceOptions, ModelOptions
from distill.records.answer_format import parse_answer
from distill.records.raw_records import get_fields
from distill.teacher.generate_answers import AnswerSettings, answer_prompts

GREEDY = Sampling(max_new_tokens=8, temperature=0.0)
AT_ONCE = {"Retry-After": "0.001"}


def make_requests(count, start=0):
    return [Request(i, f"u{i}", "You are a manager.", f"me={i}.5: estimate") for i in range(start, start + count)]


def make_prompts(count):
    return [
        {"id": r.id, "uid": r.uid, "system": r.system, "prompt": r.prompt, "label": None, "origin": "sft"}
        for r in make_requests(count)
    ]


def make_engine(url, sampling=GREEDY, model="m", concurrency=4, **options):
    defaults = {"api_key_env": "STILLHOUSE_TEST_KEY", "timeout": 60.0, "request_retries": 2}
    return OpenAIEngine(ChatClient(model, sampling, url, **(defaults | options)), concurrency)


def collect(batches):
    """Return (answers by request, the final InputError or None)."""
    answers = {}
    try:
        for batch in batches:
            for request, generated in batch:
                assert request not in answers
                answers[request] = generated
    except InputError as error:
        return answers, str(error)
    return answers, None


def read_one(body):
    """Return the answer that the engine reads from the body of a response."""
    with FakeServer(lambda *_: body) as fake:
        (generated,) = collect(make_engine(fake.url).generate(make_requests(1)))[0].values()
    return generated


def is_prompt(body, *numbers):
    return body["messages"][1]["content"] in {f"me={number}.5: estimate" for number in numbers}


def is_test_request(body):
    return body["messages"][1]["content"] == "Hello."


# A real server


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    return save_model(tmp_path_factory.mktemp("model"), tokenizer, vocabulary=len(tokenizer), hidden=64, scale=8.0)


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    server = RealServer(model, tmp_path_factory.mktemp("server"))
    server.start()
    server.wait()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def local_answers(model):
    """Return the answers of the engine `transformers` to the same requests."""
    from distill.generation.transformers_engine import ModelSource, TransformersEngine

    engine = TransformersEngine(ModelSource(model, dtype="float32", device="cpu"), REAL, 4)
    return dict(chain.from_iterable(engine.generate(make_requests(24))))


REAL = Sampling(max_new_tokens=20, temperature=0.0)


def test_a_real_server_answers_as_the_model_in_process(server, model, local_answers):
    engine = make_engine(server.url, REAL, model)
    answers, error = collect(engine.generate(make_requests(12)))
    assert error is None
    assert answers == {request: local_answers[request] for request in make_requests(12)}
    assert len({generated.text for generated in answers.values()}) > 1


def test_a_real_server_without_the_model_says_so(server, model):
    with pytest.raises(InputError, match=r"serves another \(teacher.model\), found status 400: .*pinned to"):
        next(make_engine(server.url, model="another").generate(make_requests(1)))
    with pytest.raises(InputError, match="up to and with /v1|status 404"):
        next(make_engine(server.url.removesuffix("/v1"), model=model).generate(make_requests(1)))


def test_a_killed_server_that_comes_back_is_asked_on(server, model, local_answers):
    before = server.answered()
    requests = make_requests(24)
    engine = make_engine(server.url, REAL, model, concurrency=3, request_retries=12)
    batches = engine.generate(requests)
    answers = dict(next(batches))
    server.kill()
    server.start()
    rest, error = collect(batches)
    assert error is None
    assert not answers.keys() & rest.keys()
    assert answers | rest == {request: local_answers[request] for request in requests}
    # One request is the check; requests open at the kill may have been answered without being read.
    assert len(requests) + 1 <= server.answered() - before <= len(requests) + 1 + 3


# What is asked


def test_a_request_holds_prompt_and_sampling():
    sampling = Sampling(max_new_tokens=9, temperature=0.5, top_p=0.9, top_k=5, seed=3)
    with FakeServer() as fake:
        answers, error = collect(make_engine(fake.url, sampling).generate(make_requests(1)))
    assert error is None
    (body,) = fake.bodies
    assert body["messages"] == [
        {"role": "system", "content": "You are a manager."},
        {"role": "user", "content": "me=0.5: estimate"},
    ]
    expected = {"model": "m", "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 5}
    assert {name: body[name] for name in expected} == expected
    (generated,) = answers.values()
    assert (generated.text, generated.finish_reason) == ("fine", "stop")
    assert (generated.tokens, generated.prompt_tokens) == (3, 7)


def test_a_conversation_is_sent_as_messages_and_tools_are_refused():
    chat, tools = (
        make_request({"id": number, "uid": str(number)} | get_fields(record), to_teacher=True)
        for number, record in enumerate((make_chat(teacher_prompt="Think."), make_conversation()))
    )
    with FakeServer() as fake:
        engine = make_engine(fake.url)
        engine.check_requests([chat], "prompts.jsonl")
        collect(engine.generate([chat]))
    (body,) = fake.bodies
    system, *turns = make_chat()["messages"][:-1]
    assert body["messages"] == [system | {"content": "Think.\n\nYou are a manager."}, *turns]
    with pytest.raises(InputError, match=r"prompts.jsonl: id 1 \(uid 1\): expected no tools with engine openai"):
        engine.check_requests([chat, tools], "prompts.jsonl")


def test_with_a_tokenizer_the_template_must_show_earlier_turns():
    chat = ChatTemplate(build_tokenizer(template=CHATML.replace("in messages %}", "in messages[-1:] %}")))
    client = ChatClient("m", Sampling(), "http://localhost:1/v1")
    engine = ScoringOpenAIEngine(client, 1, SimpleNamespace(chat=chat, concurrency=1))
    request = make_request({"id": 0, "uid": "0"} | get_fields(make_chat()))
    with pytest.raises(
        InputError, match=r"p.jsonl: id 0 \(uid 0\): .*expected a chat template that shows earlier turns"
    ):
        engine.check_requests([request], "p.jsonl")


@pytest.mark.parametrize("sampling", [Sampling(9, 0.0), Sampling(9, 1.0, top_k=5)], ids=["greedy", "sampled"])
def test_template_arguments_are_sent_and_are_part_of_the_key(sampling):
    arguments = {"enable_thinking": False}
    with FakeServer() as fake:
        engine = make_engine(fake.url, sampling, template_arguments=arguments)
        collect(engine.generate(make_requests(1)))
        plain = make_engine(fake.url, sampling)
        collect(plain.generate(make_requests(1)))
    first, second = fake.bodies
    assert first["chat_template_kwargs"] == arguments
    assert "chat_template_kwargs" not in second
    assert engine.fingerprint() != plain.fingerprint()
    assert plain.describe() == {"engine": "openai", "model": "m", "sampling": sampling.digest_parts()}


def seeds(requests, **sampling):
    with FakeServer() as fake:
        assert collect(make_engine(fake.url, Sampling(9, **sampling), concurrency=1).generate(requests))[1] is None
    return [body.get("seed") for body in fake.bodies]


def test_each_answer_has_a_seed_of_its_own_that_stays():
    requests = [Request(0, "u", "s", "p"), Request(0, "u", "s", "p", 1), Request(1, "v", "s", "p")]
    found = seeds(requests, temperature=1.0)
    assert len(set(found)) == 3
    assert all(0 <= seed < 2**31 for seed in found)
    assert seeds(requests[::-1], temperature=1.0) == found[::-1]
    assert not set(seeds(requests, temperature=1.0, seed=1)) & set(found)


def test_greedy_requests_draw_nothing():
    with FakeServer() as fake:
        collect(make_engine(fake.url, Sampling(9, 0.0, 0.5, 3)).generate(make_requests(1)))
    assert fake.bodies[0]["temperature"] == 0
    assert not {"seed", "top_p", "top_k"} & fake.bodies[0].keys()


def test_the_key_comes_from_the_environment(monkeypatch):
    with FakeServer() as fake:
        monkeypatch.setenv("STILLHOUSE_TEST_KEY", "sesame\n")
        collect(make_engine(fake.url).generate(make_requests(1)))
        monkeypatch.delenv("STILLHOUSE_TEST_KEY")
        monkeypatch.setenv("OPENAI_API_KEY", "of another server")
        collect(make_engine(fake.url).generate(make_requests(1)))
    assert fake.keys[0] == "Bearer sesame"
    assert "another" not in fake.keys[1]
    monkeypatch.setenv("STILLHOUSE_TEST_KEY", "séšame")
    with pytest.raises(InputError, match="STILLHOUSE_TEST_KEY: expected a key of printable ASCII") as caught:
        make_engine(fake.url)
    assert "same" not in str(caught.value)


def test_as_many_requests_are_open_as_allowed_and_no_more():
    together = threading.Barrier(4, timeout=60)  # breaks, and fails the requests, when fewer than 4 come side by side

    def answer(body, number):
        together.wait()
        return completion()

    with FakeServer(answer) as fake:
        answers, error = collect(make_engine(fake.url, concurrency=4).generate(make_requests(20)))
    assert (len(answers), error) == (20, None)
    assert fake.most_open == 4


# What is answered


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_that_was_split_off_is_put_back(field):
    generated = read_one(completion("<answer>1</answer>", **{field: "because"}))
    assert generated.text == "<think>because</think><answer>1</answer>"


@pytest.mark.parametrize("answer", ["because</think>fine", "<think>because</think>fine", "fine"])
def test_reasoning_that_the_servers_template_has_opened_is_opened(answer):
    with FakeServer(lambda body, number: completion(answer)) as fake:
        answers, _ = collect(make_engine(fake.url).generate(make_requests(1)))
    (generated,) = answers.values()
    assert generated.text == (f"<think>\n{answer}" if answer.startswith("because") else answer)


@pytest.mark.parametrize("text", ["<think>\nbecause\n</think>\nfine", "because\n</think>fine"])
def test_reasoning_that_is_sent_twice_is_kept_once(text):
    generated = read_one(completion(text, reasoning_content="because"))
    assert generated.text == (text if text.startswith("<think>") else f"<think>\n{text}")


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "fi"}, {"type": "text", "text": "ne"}]
    generated = read_one(completion(parts))
    assert generated.text == "fine"


PASSING = [
    completion(None) | {"error": {"code": 429, "message": "slow down"}},
    completion("") | {"error": {"code": "overloaded"}},
    {"choices": None},
    completion(None),
]


@pytest.mark.parametrize("broken", PASSING, ids=["429", "a word", "no choices", "no content"])
def test_a_passing_error_in_the_body_is_tried_again(broken):
    with FakeServer(lambda body, number: broken if number == 1 else completion()) as fake:
        answers, error = collect(make_engine(fake.url, request_retries=1).generate(make_requests(1)))
    assert error is None
    assert [generated.text for generated in answers.values()] == ["fine"]
    assert len(fake.bodies) == 2


def in_choice(error, **choice):
    """Return a completion with an error beside the message, as some servers send it."""
    body = completion("")
    body["choices"][0] |= {"error": error, **choice}
    return body


@pytest.mark.parametrize(
    ("broken", "is_retried"),
    [
        (in_choice({"code": 502, "message": "no worker"}, finish_reason="error"), True),
        (completion(finish_reason="error"), True),
        (completion([]), True),
        (completion("", usage=(7, 0)), True),
        (completion("", usage=None), True),
        (completion("", usage=(9, 500)), True),
        (completion("", usage=(9, 16), finish_reason="length"), False),
        (completion("", error={"code": 429}), True),
        (completion(finish_reason="abort"), True),
        ({"object": "error", "message": "too long", "code": 400}, False),
        (completion(None, refusal="no"), False),
        (completion(finish_reason="content_filter"), False),
        (completion(None, finish_reason="length"), False),
        (completion(None) | {"error": {"code": 400}}, False),
        (completion(None) | {"error": {"code": "content_filter"}}, False),
        (completion(None) | {"error": {"type": "invalid_request_error"}}, False),
        (in_choice({"code": 400, "message": "no"}, finish_reason="error"), False),
    ],
    ids=str,
)
def test_what_has_no_answer_is_retried_by_its_code_and_never_answers(broken, is_retried):
    with FakeServer(lambda body, number: completion() if is_test_request(body) else broken) as fake:
        answers, error = collect(make_engine(fake.url, request_retries=1).generate(make_requests(1)))
    assert answers == {}
    assert "id 0 (uid u0, sample 0)" in error
    assert fake.prompts().count("me=0.5: estimate") == (2 if is_retried else 1)


def test_an_answer_that_ends_at_once_is_empty():
    generated = read_one(completion("", usage=(7, 1)))
    assert (generated.text, generated.finish_reason, generated.tokens) == ("", "stop", 1)


@pytest.mark.parametrize(("code", "said"), [(401, "the server rejects the key"), (403, "rejects the key"), (404, "")])
def test_a_fatal_error_in_the_body_ends_it_at_once(code, said):
    broken = completion(None) | {"error": {"code": code, "message": "bad key"}}
    with FakeServer(lambda body, number: broken) as fake:
        answers, error = collect(make_engine(fake.url).generate(make_requests(100)))
    assert answers == {}
    assert f"error {code} in the body: 'bad key'" in error
    assert said in error
    assert len(fake.bodies) <= 4


REFUSALS = [(400, {}, {"error": {"message": "content filtered"}}), completion(None, refusal="no")]


@pytest.mark.parametrize("broken", REFUSALS, ids=["status", "refusal"])
def test_a_refusal_of_every_request_is_said_once(broken):
    with FakeServer(lambda body, number: broken) as fake, pytest.raises(InputError) as refused:
        list(make_engine(fake.url).generate(make_requests(100)))
    assert not isinstance(refused.value, RefusedError)
    assert f"{fake.url}: the server refuses every request, also a test request: " in str(refused.value)
    assert len(fake.bodies) < 12
    with FakeServer(lambda body, number: broken) as fake, pytest.raises(InputError, match="refuses every request"):
        list(make_engine(fake.url).generate(make_requests(1)))


@pytest.mark.parametrize("broken", REFUSALS, ids=["status", "refusal"])
def test_refusals_of_single_requests_are_an_error_of_their_own(broken):
    with (
        FakeServer(lambda body, number: broken if is_prompt(body, *range(10)) else completion()) as fake,
        pytest.raises(RefusedError, match="10 problems") as refused,
    ):
        list(make_engine(fake.url).generate(make_requests(12)))
    assert {request.id for request in refused.value.requests} == set(range(10))


def test_a_refusal_beside_another_failure_is_a_failure():
    def answer(body, number):
        broken = {0: REFUSALS[0], 1: (500, AT_ONCE, {})}
        return next((broken[number] for number in broken if is_prompt(body, number)), completion())

    with FakeServer(answer) as fake, pytest.raises(InputError, match="2 problems") as failed:
        list(make_engine(fake.url, request_retries=0).generate(make_requests(12)))
    assert not isinstance(failed.value, RefusedError)


def test_a_half_surrogate_at_the_maximum_length_is_a_cut_character():
    generated = read_one(completion("caf\ud83d", "length"))
    assert generated.text == "caf"


@pytest.mark.parametrize("served", [("m",), None], ids=["listed", "no list"])
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."),
        (422, "max_tokens: use max_completion_tokens"),
        (400, "UnsupportedParamsError: m does not support parameters: ['max_tokens']"),
    ],
)
def test_the_newer_name_of_the_maximum_length_is_tried(served, status, words):
    def answer(body, number):
        broken = (status, {}, {"error": {"message": words, "param": "max_tokens"}})
        return broken if "max_tokens" in body else completion()

    with FakeServer(answer, served) as fake:
        answers, error = collect(make_engine(fake.url, concurrency=1).generate(make_requests(5)))
    assert (len(answers), error) == (5, None)
    assert [body.get("max_completion_tokens") for body in fake.bodies][-4:] == [8] * 4
    assert sum("max_tokens" in body for body in fake.bodies) == 1


def test_another_error_about_the_length_is_shown():
    words = "max_tokens or max_completion_tokens is too large"
    with FakeServer(lambda body, number: (400, {}, {"error": {"message": words}})) as fake:
        answers, error = collect(make_engine(fake.url).generate(make_requests(5)))
    assert answers == {}
    assert f"refuses every request, also a test request: status 400: '{words}'" in error


@pytest.mark.parametrize(
    ("text", "reasoning", "whole"),
    [
        ("because  of\nthis\n\n42", "because of this", "<think>because of this</think>\n\n42"),
        ("because<answer>1</answer>", "because", "<think>because</think><answer>1</answer>"),
        ("The answer is 4. Because 2+2=4.", "The answer is 4.",
         "<think>The answer is 4.</think>The answer is 4. Because 2+2=4."),
        ("Paris is the capital.", "Paris", "<think>Paris</think>Paris is the capital."),
        ("[THINK]hm[/THINK]Paris", "hm", "<think>hm</think>Paris"),
        ("<thinking>hm</thinking>Paris", "hm", "<think>hm</think>Paris"),
        ("<think>\n\n</think>\n\nParis", "hm ok", "<think>hm ok</think>\n\nParis"),
        ("<think>\nhm **ok**\n</think>\nParis", "hm ok", "<think>\nhm **ok**\n</think>\nParis"),
        ("Paris", "<think>hm</think>", "<think>hm</think>Paris"),
        ("Paris", "I write </think> here", "<think>I write </ think> here</think>Paris"),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Paris", "",
         "<think>hm</think>Paris"),
        ("<reasoning>hm</reasoning><answer>1</answer>", "", "<think>hm</think><answer>1</answer>"),
        ("<think>because\nof</think>1", " because of ", "<think>because\nof</think>1"),
        ("because of", "because of", "<think>because of</think>because of"),  # the answer repeats its reasoning
        ("because 1", "because of", "<think>because of</think>because 1"),
        ("becauses", "because", "<think>because</think>becauses"),
        ("1", " \n", "1"),
        ("1", "", "1"),
    ],
)  # fmt: skip
def test_reasoning_without_tags_or_with_other_space_is_kept_once(text, reasoning, whole):
    generated = read_one(completion(text, reasoning_content=reasoning))
    assert generated.text == whole


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [(None, "hm"), ("", "hm"), ("[THINK]hm", ""), ("<|channel|>analysis<|message|>hm", ""), ("<thought>hm", "")],
)
def test_reasoning_without_an_answer_is_not_usable(text, reasoning):
    generated = read_one(completion(text, "length", reasoning=reasoning))
    assert generated.text == "<think>hm"
    assert parse_answer(generated.text, None).problem == "<think> is not closed"


@pytest.mark.parametrize(
    ("reason", "known"),
    [("eos", "stop"), ("end_turn", "stop"), ("max_tokens", "length"), ("stop", "stop"), ("length", "length")],
)
def test_other_names_of_the_end_are_known(reason, known):
    generated = read_one(completion(finish_reason=reason))
    assert generated.finish_reason == known


@pytest.mark.parametrize("reason", ["content_filter: PROHIBITED_CONTENT", "SAFETY", "tool_calls"])
def test_answers_that_were_stopped_are_refusals(reason):
    stopped = completion(finish_reason=reason)
    with (
        FakeServer(lambda body, number: stopped if is_prompt(body, 5) else completion()) as fake,
        pytest.raises(RefusedError, match=f"found '{reason}'"),
    ):
        list(make_engine(fake.url).generate(make_requests(12)))


MODERATED = {"code": 403, "message": "requires moderation", "metadata": {"flagged_input": "me"}}


@pytest.mark.parametrize(
    "broken",
    [
        (403, {}, {"error": MODERATED}),
        completion(None) | {"error": MODERATED},
        (403, {"Content-Type": "text/html"}, b"<b>blocked</b>"),
        (404, {}, {"error": {"message": "No endpoints found that can handle this prompt"}}),
        (451, {}, {"error": {"message": "not here"}}),
    ],
    ids=["moderated", "moderated in the body", "firewall", "no endpoint", "451"],
)
def test_a_request_that_others_are_not_refused_like_is_a_refusal(broken):
    with (
        FakeServer(lambda body, number: broken if is_prompt(body, 5) else completion()) as fake,
        pytest.raises(RefusedError) as refused,
    ):
        list(make_engine(fake.url, concurrency=1).generate(make_requests(12)))
    assert [request.id for request in refused.value.requests] == [5]


@pytest.mark.parametrize(
    "broken",
    [
        (402, {}, {"error": {"message": "Insufficient Balance"}}),
        (400, {}, {"error": {"message": "Billing hard limit has been reached", "code": "billing_hard_limit_reached"}}),
        (403, {}, {"error": {"message": "key revoked"}}),
        (400, {}, {"error": {"message": "model unloaded"}}),
    ],
    ids=["402", "billing", "revoked", "unloaded"],
)
def test_a_server_that_refuses_everything_from_some_request_on_has_no_refusals(broken):
    with (
        FakeServer(lambda body, number: completion() if number <= 4 else broken) as fake,
        pytest.raises(InputError) as failed,
    ):
        list(make_engine(fake.url, concurrency=2).generate(make_requests(20)))
    assert not isinstance(failed.value, RefusedError)
    assert len(fake.bodies) < 12


def test_an_empty_error_beside_an_answer_is_none():
    generated = read_one(completion() | {"error": {"code": 0, "message": ""}})
    assert generated.text == "fine"


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "foo://x:1", "http://127.0.0.1:abc", "http://[::1"])
def test_a_proxy_that_cannot_be_used_is_an_error(monkeypatch, proxy):
    for variable in ("HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(InputError, match="HTTP_PROXY, HTTPS_PROXY or ALL_PROXY"):
        list(make_engine("http://127.0.0.1:9/v1").generate(make_requests(1)))


def test_a_body_that_is_nested_too_deeply_is_a_problem():
    with FakeServer(lambda body, number: (200, {}, b"[" * 100_000)) as fake:
        answers, error = collect(make_engine(fake.url, request_retries=0).generate(make_requests(1)))
    assert answers == {}
    assert "no chat completion (RecursionError" in error


def test_a_model_that_is_not_listed_may_answer_a_token_of_hidden_reasoning():
    """The test of the name asks for one token, which a reasoning server may not show at all."""

    def answer(body, number):
        if body["model"] != "m":
            return (404, {}, {})
        return completion(None, "length", reasoning_content=None) if body["max_tokens"] == 1 else completion()

    with FakeServer(answer, served=("qwen-7b",)) as fake:
        answers, error = collect(make_engine(fake.url).generate(make_requests(2)))
    assert (len(answers), error) == (2, None)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY"])
def test_a_proxy_that_answers_instead_of_the_server_is_named(monkeypatch, name):
    """Without NO_PROXY, requests to localhost go to the proxy, too."""
    for variable in ("HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    with FakeServer(lambda body, number: (403, {"Content-Type": "text/html"}, b"<b>blocked by policy</b>")) as proxy:
        place = proxy.url.removeprefix("http://").removesuffix("/v1")
        monkeypatch.setenv(name, f"http://me:sesame@{place}")
        _, error = collect(make_engine("http://127.0.0.1:9/v1").generate(make_requests(3)))
    assert "status 403: '<b>blocked by policy</b>'" in error
    assert f"through the proxy {place} of {name}; NO_PROXY=127.0.0.1 bypasses it" in error
    assert "sesame" not in error
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FakeServer() as fake:
        answers, error = collect(make_engine(fake.url).generate(make_requests(3)))
    assert (len(answers), error) == (3, None)


def test_reasoning_that_was_cut_off_stays_open():
    generated = read_one(completion(None, "length", reasoning_content="because of"))
    assert (generated.text, generated.finish_reason) == ("<think>because of", "length")


def test_a_server_that_counts_no_tokens_is_said_once(caplog):
    with FakeServer(lambda body, number: completion(usage=None)) as fake:
        answers, _ = collect(make_engine(fake.url).generate(make_requests(3)))
    assert {(generated.tokens, generated.prompt_tokens) for generated in answers.values()} == {(0, 0)}
    assert caplog.text.count("expected token counts (usage)") == 1


@pytest.mark.parametrize(
    ("usage", "counted", "warnings"),
    [
        ((7.0, 3.0), (7, 3), 0),
        ((7, 3.5), (7, 0), 1),
        (("7", "3"), (0, 0), 1),
        ((float("inf"), None), (0, 0), 1),
        ((True, -1), (0, 0), 1),
        (([7], {"sum": 3}), (0, 0), 1),
    ],
    ids=str,
)
def test_only_whole_counts_of_tokens_count(usage, counted, warnings, caplog, tmp_path):
    with FakeServer(lambda body, number: completion(usage=usage)) as fake:
        answers, error = collect(make_engine(fake.url).generate(make_requests(3)))
    assert error is None
    assert [(one.prompt_tokens, one.tokens) for one in answers.values()] == [counted] * 3
    assert {type(count) for one in answers.values() for count in (one.prompt_tokens, one.tokens)} == {int}
    assert caplog.text.count("expected token counts (usage)") == warnings
    with CacheWriter(tmp_path) as writer:
        writer.add([to_record(request, generated) for request, generated in answers.items()])
    assert len(read_cache(tmp_path)) == 3


@pytest.mark.parametrize("message", [{"text": "\ud83d!"}, {"text": "!", "reasoning": "\ud83d"}], ids=str)
def test_half_a_surrogate_pair_is_cleaned_at_once(message, tmp_path):
    generated = read_one(completion(**message))
    assert generated.text in ("\ufffd!", "<think>\ufffd</think>!")
    write_jsonl(tmp_path / "a.jsonl", [{"text": generated.text}])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (completion(finish_reason="content_filter"), "finish_reason: expected stop or length, found 'content_filter'"),
        ({"error": {"message": "overloaded"}}, "error in the body: 'overloaded'"),
        (completion(None) | {"error": {"code": 400, "message": "no"}}, "error 400 in the body: 'no'"),
        ({"choices": None}, "expected a chat completion, found"),
        (completion(None), "choices[0].message.content: expected text, found none"),
        (completion(None, refusal="I must not."), "refusal: 'I must not.'"),
        ((200, {}, b'{"choices": [{"mess'), "no chat completion"),
        ((200, {"Content-Type": "text/html"}, b"<html>sign in</html>"), "expected a chat completion, found '<html>"),
        (completion(text=["no", "text"]), "choices[0].message.content: expected text or a list of text parts, found"),
        (completion(text=[{"type": "image"}]), "choices[0].message.content: expected text or a list of text parts"),
        ((400, {}, {"error": {"message": "context length is 10"}}), "status 400: 'context length is 10'"),
        ((422, {}, {"detail": "no such field"}), "status 422: 'no such field'"),
        ((429, {"Retry-After": "3600"}, {"error": {"message": "quota"}}), "status 429: 'quota'"),
        ((500, AT_ONCE, {}), "status 500"),
        (None, "no connection"),
    ],
)
def test_a_record_that_fails_is_named_and_stops_no_other(broken, message):
    with FakeServer(lambda body, number: broken if is_prompt(body, 5) else completion()) as fake:
        answers, error = collect(make_engine(fake.url, request_retries=1).generate(make_requests(12)))
    assert {request.id for request in answers} == set(range(12)) - {5}
    assert f"1 problem in the answers of {fake.url}" in error
    assert f"id 5 (uid u5, sample 0): {message}" in error


def test_many_failed_records_are_counted():
    too_long = (400, {}, {"error": {"message": "too long"}})
    with FakeServer(lambda body, number: completion() if is_test_request(body) else too_long) as fake:
        answers, error = collect(make_engine(fake.url).generate(make_requests(33)))
    assert answers == {}
    assert error.count("status 400: 'too long'") == 20
    assert error.startswith("33 problems")
    assert "… and 13 more" in error


def test_only_what_failed_is_asked_again(tmp_path):
    prompts = make_prompts(10)
    refused = {2, 7}

    def answer(body, number):
        return (400, {}, {"error": {"message": "too long"}}) if is_prompt(body, *refused) else completion()

    with FakeServer(answer) as fake:
        with pytest.raises(InputError, match="2 problems"):
            answer_prompts(prompts, make_engine(fake.url), AnswerSettings(), tmp_path)
        refused.clear()
        fake.bodies.clear()
        records, stats = answer_prompts(prompts, make_engine(fake.url), AnswerSettings(), tmp_path)
    assert sorted(fake.prompts()) == ["me=2.5: estimate", "me=7.5: estimate"]
    assert [record["id"] for record in records] == list(range(10))
    assert (stats["from_cache"], stats["generated"], stats["peak_memory_mb"]) == (8, 2, 0)


@pytest.mark.parametrize("samples", [1, 2])
def test_refused_prompts_are_skipped_if_set(tmp_path, caplog, samples):
    prompts = make_prompts(10)

    def answer(body, number):
        if is_prompt(body, 2, 7):
            return (400, {}, {"error": {"message": "content filtered"}})
        return completion("<think>only</think>") if is_prompt(body, 3) else completion()

    with FakeServer(answer) as fake:
        with pytest.raises(InputError, match="set teacher.refused to skip to leave them out"):
            answer_prompts(prompts, make_engine(fake.url), AnswerSettings(samples=samples), tmp_path)
        settings = AnswerSettings(samples=samples, refused="skip", retries=1)
        records, stats = answer_prompts(prompts, make_engine(fake.url), settings, tmp_path)
    assert [record["id"] for record in records if record["sample"] == 0] == [0, 1, 3, 4, 5, 6, 8, 9]
    expected = {"refused": 2, "rejected": samples + 1, "unanswered": 3, "overlong": 0, "generated": 1}
    assert {name: stats[name] for name in expected} == expected
    assert stats["problems"] == {"no answer after the reasoning": samples + 1}
    assert "id 2 (uid u2, sample 0): status 400: 'content filtered'" in caplog.text
    assert "they are skipped" in caplog.text


def test_cached_empty_answers_of_no_token_are_generated_again(tmp_path):
    """Versions that took an error in the body for an answer have stored such answers."""
    empty = {"raw_output": "", "finish_reason": "stop", "prompt_tokens": 0}
    with FakeServer() as fake:
        engine = make_engine(fake.url)
        folder = tmp_path / engine.fingerprint()
        folder.mkdir()
        lines = [{"uid": "u0", "sample": 0, "generated_tokens": 0, **empty}]
        lines.append({"uid": "u1", "sample": 0, "generated_tokens": 1, **empty})
        write_jsonl(folder / "old.jsonl", lines)
        records, _ = answer_prompts(make_prompts(2), engine, AnswerSettings(), tmp_path)
    assert [record["raw_output"] for record in records] == ["fine", ""]


# What is sent again


def test_what_a_busy_server_puts_off_is_sent_again():
    def answer(body, number):
        return [(429, AT_ONCE, {}), (503, AT_ONCE, {}), completion("at last")][number - 1]

    with FakeServer(answer) as fake:
        (generated,) = collect(make_engine(fake.url).generate(make_requests(1)))[0].values()
    assert generated.text == "at last"
    assert len(fake.bodies) == 3
    assert fake.bodies[0] == fake.bodies[2]


def test_what_takes_too_long_is_sent_again_and_then_given_up():
    release = threading.Event()

    def answer(body, number):
        if is_prompt(body, 0):
            release.wait(60)
        return completion()

    with FakeServer(answer) as fake:
        answers, error = collect(make_engine(fake.url, timeout=1.5, request_retries=1).generate(make_requests(3)))
        release.set()
    assert {request.id for request in answers} == {1, 2}
    assert "id 0 (uid u0, sample 0): no answer in time (ReadTimeout; the timeout is 1.5 s)" in error
    assert fake.prompts().count("me=0.5: estimate") == 2


@pytest.mark.parametrize("broken", [None, (500, AT_ONCE, {})], ids=["connection", "status"])
def test_a_server_that_died_is_not_asked_for_everything(broken):
    with FakeServer(lambda body, number: completion() if number <= 10 else broken) as fake:
        engine = make_engine(fake.url, concurrency=1, request_retries=0)
        answers, error = collect(engine.generate(make_requests(500)))
    assert len(answers) == 10
    assert "3 problems" in error
    assert "keeps failing: 487 more requests were abandoned" in error
    assert len(fake.bodies) == 13


def test_a_dead_server_is_asked_once_for_each_open_request():
    with FakeServer(lambda body, number: None) as fake:
        answers, error = collect(make_engine(fake.url, request_retries=0).generate(make_requests(500)))
    assert answers == {}
    assert "keeps failing" in error
    assert len(fake.bodies) <= 2 * 4  # the concurrency, and once more for requests that replaced failed ones


def test_failures_between_answers_stop_nothing():
    with FakeServer(lambda body, number: completion() if number % 3 == 0 else (500, AT_ONCE, {})) as fake:
        engine = make_engine(fake.url, concurrency=1, request_retries=0)
        answers, error = collect(engine.generate(make_requests(30)))
    assert len(answers) == 10
    assert error.startswith("20 problems")


# What cannot go well


def test_a_server_that_is_not_there_is_named():
    with FakeServer() as fake:
        pass
    with pytest.raises(InputError) as caught:
        next(make_engine(fake.url, request_retries=0).generate(make_requests(100)))
    assert f"{fake.url} (teacher.base_url): expected a server with the OpenAI API" in str(caught.value)
    assert "no connection (ConnectError" in str(caught.value)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(("key", "state"), [("sk-sesame", "has another value"), ("", "is not set")])
@pytest.mark.parametrize("served", [("m",), None], ids=["listed", "no list"])
def test_a_refused_key_ends_it_at_once(monkeypatch, status, key, state, served):
    monkeypatch.setenv("STILLHOUSE_TEST_KEY", key)
    words = {"error": {"message": f"Incorrect API key provided: {key}"}}
    with FakeServer(lambda body, number: (status, {}, words), served) as fake:
        answers, error = collect(make_engine(fake.url).generate(make_requests(100)))
    assert answers == {}
    assert "the server rejects the key" in error
    assert f"environment variable STILLHOUSE_TEST_KEY, which {state}" in error
    assert "sesame" not in error
    assert len(fake.bodies) <= 4


def test_no_message_shows_the_key(monkeypatch):
    monkeypatch.setenv("STILLHOUSE_TEST_KEY", "sk-sesame")
    with FakeServer(lambda body, number: (400, {}, {"error": {"message": "no credit for sk-sesame"}})) as fake:
        _, error = collect(make_engine(fake.url).generate(make_requests(1)))
    assert "status 400: 'no credit for ***'" in error


KEY = "sk-sesame-" + "0123456789" * 3


@pytest.mark.parametrize(
    "answer",
    [
        (400, {}, {"error": {"message": "x" * 275 + KEY}}),  # the message is cut in the middle of the key
        completion(finish_reason=f"no credit for {KEY}"),
        (200, {"Content-Type": "text/html"}, f"<html>{KEY}".encode()),
        {"error": {"message": f"no credit for {KEY}"}},
        (200, {}, f'{{"choices": [{{"{KEY}'.encode()),
        (422, {}, [KEY]),
    ],
    ids=["cut", "finish reason", "page", "body", "torn", "list"],
)
def test_no_message_shows_a_part_of_the_key(monkeypatch, caplog, answer):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("STILLHOUSE_TEST_KEY", KEY)
    with FakeServer(lambda body, number: completion() if is_test_request(body) else answer) as fake:
        _, error = collect(make_engine(fake.url, request_retries=0).generate(make_requests(1)))
    assert "1 problem" in error
    assert "sk-" not in error
    assert "sesame" not in error + caplog.text


def test_the_list_of_what_is_served_does_not_show_the_key(monkeypatch):
    monkeypatch.setenv("STILLHOUSE_TEST_KEY", KEY)
    with FakeServer(lambda body, number: (404, {}, {}), served=("qwen", KEY)) as fake:
        _, error = collect(make_engine(fake.url).generate(make_requests(1)))
    assert error.endswith("; it serves qwen, ***")


def test_a_name_that_is_not_served_is_refused_with_those_that_are():
    def answer(body, number):
        return (404, {}, {"error": {"message": f"The model `{body['model']}` does not exist."}})

    with FakeServer(answer, served=("qwen-72b", "qwen-7b")) as fake:
        answers, error = collect(make_engine(fake.url).generate(make_requests(100)))
    assert answers == {}
    assert "serves m (teacher.model), found status 404: 'The model `m` does not exist.'" in error
    assert error.endswith("; it serves qwen-72b, qwen-7b")
    assert len(fake.bodies) == 1


def test_a_name_that_is_served_without_being_listed_is_taken():
    def answer(body, number):
        return completion() if body["model"] == "m" else (404, {}, {})

    with FakeServer(answer, served=("qwen-7b",)) as fake:
        assert collect(make_engine(fake.url).generate(make_requests(2)))[1] is None
    with FakeServer(answer, served=None) as fake:
        engine = make_engine(fake.url)
        assert collect(engine.generate(make_requests(2)))[1] is None
        assert collect(engine.generate(make_requests(2)))[1] is None
    assert len(fake.bodies) == 5  # the check is made once


def test_a_server_that_takes_any_name_must_list_the_models():
    with (
        FakeServer(served=("qwen-7b",)) as fake,
        pytest.raises(InputError, match="accepts any name; it serves qwen-7b"),
    ):
        next(make_engine(fake.url).generate(make_requests(2)))


@pytest.mark.parametrize(
    "url",
    ["localhost:8000/v1", "http://", "http://host:port/v1", "http://[::1/v1", "", "http://a b/v1", "http://host/v1\n"],
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(InputError, match="base_url: expected an address like http://localhost:8000/v1"):
        make_engine(url)


@pytest.mark.parametrize("url", ["http://me:sesame@host/v1", "http://host/v1?key=sesame", "http://host/v1#sesame"])
def test_an_address_with_a_secret_is_refused_and_not_shown(url):
    with pytest.raises(InputError, match="found one with user, password, query or fragment") as caught:
        make_engine(url)
    assert "sesame" not in str(caught.value)


# How it ends


def test_closing_early_leaves_nothing_behind(caplog):
    release = threading.Event()

    def answer(body, number):
        if not is_prompt(body, 0):
            release.wait(60)
        return completion()

    with FakeServer(answer) as fake:
        batches = make_engine(fake.url, concurrency=4).generate(make_requests(100))
        assert [request.id for request, _ in next(batches)] == [0]
        batches.close()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncio")]
        release.set()
    assert len(fake.bodies) <= 4  # those that were open at the first answer
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_a_caller_that_fails_ends_cleanly():
    """A caller that hits a full disk shows only the reason, and exits although requests are open."""
    code = """
import logging, sys
from distill.common.errors import run_script
from distill.generation.chat_client import ChatClient
from distill.generation.sampling import Request, Sampling
from distill.generation.openai_engine import OpenAIEngine

# In development mode, asyncio reports every callback over 0.1 s, which a busy machine causes.
logging.getLogger("asyncio").addFilter(lambda record: " took " not in record.getMessage())

def main():
    engine = OpenAIEngine(ChatClient("m", Sampling(), sys.argv[1]), concurrency=4)
    for batch in engine.generate([Request(i, str(i), "s", f"me={i}.5: estimate") for i in range(100)]):
        raise OSError(28, "No space left on device", "answers.jsonl")

run_script(main)
"""
    release = threading.Event()
    with FakeServer(lambda body, number: completion() if is_prompt(body, 0) or release.wait(60) else None) as fake:
        done = run_python(code, fake.url)
        release.set()
    assert done.returncode == 1
    assert done.stderr == "error: answers.jsonl: No space left on device\n"


# Around it


def test_the_name_and_the_sampling_make_the_fingerprint():
    plain = make_engine("http://localhost:1/v1").fingerprint()
    assert make_engine("http://elsewhere:2/v1", concurrency=9, api_key_env="OTHER").fingerprint() == plain
    assert make_engine("http://localhost:1/v1", model="other").fingerprint() != plain
    assert make_engine("http://localhost:1/v1", Sampling(9, 0.0)).fingerprint() != plain


def parse(*argv):
    parser = ArgumentParser()
    for options in (ModelOptions, DeviceOptions, Sampling, EngineOptions, BatchOptions):
        add_options(parser, options)
    return parser.parse_args(["--model", "m", *argv])


def test_the_command_line_builds_the_engine():
    options = ["--api-key-env", "K", "--concurrency", "3", "--timeout", "1.5", "--request-retries", "0"]
    engine = build_engine(parse("--engine", "openai", "--base-url", "http://h/v1", "--seed", "5", *options))
    client = engine.client
    assert (client.model, client.base_url, client.sampling.seed, engine.concurrency) == ("m", "http://h/v1", 5, 3)
    assert (client.timeout, client.request_retries, client.errors.api_key_env) == (1.5, 0, "K")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--base-url: expected the server's address"),
        (["--base-url", "http://h/v1", "--adapter", "a"], "the server loads the model"),
        (["--base-url", "http://h/v1", "--quantization", "int8"], "the server loads the model"),
    ],
)
def test_what_a_server_cannot_do_is_refused(argv, message):
    with pytest.raises(InputError, match=message):
        build_engine(parse("--engine", "openai", *argv))


@pytest.mark.parametrize("argv", [["--concurrency", "0"], ["--timeout", "0"], ["--request-retries", "-1"]])
def test_bad_numbers_are_refused(argv, capsys):
    with pytest.raises(SystemExit):
        parse(*argv)
    assert "expected a" in capsys.readouterr().err


def test_a_served_teacher_is_evaluated_without_torch_and_without_perplexity(tmp_path, records):
    import score_predictions
    from distill.evaluation.score_table import gather_scores
    from distill.records.splits import get_chat, get_lines
    from distill.report.score_text import format_text

    fields = ("id", "uid", "origin", "label", "finish_reason")
    lines = []
    for record in records:
        system, prompt, answer = (message["content"] for message in record["messages"])
        answered = {"system": system, "prompt": prompt, "raw_output": answer, "sample": 0}
        lines.append(get_chat({name: record[name] for name in fields} | answered))
    write_jsonl(tmp_path / "test.jsonl", lines)
    for position, ending in enumerate(("source", "target")):
        (tmp_path / f"test.{ending}").write_text(
            "".join(escape_line(get_lines(line)[position]) + "\n" for line in lines)
        )
    out = tmp_path / "teacher/banks.predictions.jsonl"
    argv = ["--test", tmp_path / "test.jsonl", "--category", "banks", "--model", "m", "--engine", "openai"]
    argv += ["--no-likelihood", "--temperature", "0", "--out", out, "--journal", tmp_path / "kept"]
    code = "import sys; sys.modules['torch'] = None; import predict_answers; predict_answers.main(sys.argv[1:])"
    with FakeServer(lambda body, number: completion('<answer>{"holding_log_delta": 0.5}</answer>')) as fake:
        done = run_python(code, *argv, "--base-url", fake.url)
    assert done.returncode == 0, done.stderr
    predictions = [record for _, record in read_jsonl(out)]
    assert [prediction["uid"] for prediction in predictions] == [record["uid"] for record in records]
    assert "nll" not in predictions[0]

    scores = tmp_path / "teacher/banks.metrics.json"
    score_predictions.main(["--predictions", str(out), "--bootstrap", "0", "--out", str(scores)])
    found = gather_scores([scores])
    assert "bleu" in {score.metric for score in found}
    assert "ppl" not in {score.metric for score in found}
    student = [score._replace(model="one") for score in found] + [found[0]._replace(model="one", metric="ppl", value=2)]
    teacher_line = next(line for line in format_text([*found, *student]).splitlines() if line.startswith("teacher"))
    assert "–" in teacher_line


def test_likelihoods_are_not_asked_of_a_server(tmp_path):
    import predict_answers

    argv = ["--test", str(tmp_path / "test.jsonl"), "--category", "banks", "--model", "m", "--out", str(tmp_path / "o")]
    with pytest.raises(InputError, match="expected --no-likelihood with --engine openai"):
        predict_answers.main([*argv, "--engine", "openai", "--base-url", "http://h/v1"])
    assert isinstance(parse("--batch-size", "auto"), Namespace)
