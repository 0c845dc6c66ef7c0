"""What a judge costs, before anything runs, and the command lines and files of its jobs."""

import re
import shlex

import pytest
from judges import prefer_longer
from serving import FakeServer

import judge_pairs
from distill.common.errors import InputError
from distill.common.files import write_jsonl
from distill.plan import command_lines as commands
from distill.plan import experiment
from distill.plan.pairwise import describe_pairwise
from distill.plan.schema import check_config
from distill.plan.start_cache import StartCache

JUDGE = {"base_url": "http://localhost:1/v1", "model": "m", "records": 5}


def make_config(judge=JUDGE, **changes):
    students = {"one": {"model": "s"}, "two": {"model": "s", "method": "seqkd"}}
    evaluation = {"max_new_tokens": 100, "pairwise": judge}
    config = {"categories": ["banks"], "teacher": {"model": "t"}, "students": students, "evaluation": evaluation}
    return check_config(config | changes)


def write_prompts(count):
    path = "artifacts/distill_data/raw/banks_teacher_prompts_base.jsonl"
    write_jsonl(path, ({"uid": f"{number:032x}", "system": "s" * 400, "prompt": "p"} for number in range(count)))


def write_answers(model, text, count=8):
    record = {"category": "banks", "reference": "r", "finish_reason": "stop", "usable": True, "label": None}
    record |= {"parsed_value": None, "system": "s" * 400, "prompt": "p"}
    records = [record | {"id": n, "uid": f"{n:032x}", "prediction": f"{text} {n}"} for n in range(count)]
    write_jsonl(f"output/evaluation/{model}/banks.predictions.jsonl", records)


def describe(config, cache=None):
    (line,) = describe_pairwise(config, config["categories"], cache or StartCache())
    return line


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in (
        "artifacts/distill_data/raw",
        *(f"output/evaluation/{m}" for m in ("teacher", "one", "one_base", "two")),
    ):
        (tmp_path / step).mkdir(parents=True)


# The plan


def test_without_a_judge_nothing_is_said():
    assert describe_pairwise(make_config(judge=None), ["banks"], StartCache()) == []


def test_before_the_prompts_exist_the_requests_alone_are_known():
    assert describe(make_config()) == (
        "Judge m: at most 30 requests for 3 models against teacher in 1 category, tokens unknown until the prompts "
        "exist and at most 30,720 to write; for the answers as they are now, at most 30 are still to be sent"
    )


def test_before_the_answers_exist_the_test_prompts_are_counted():
    write_prompts(20)
    config = make_config(split={"test_fraction": 0.1, "val_fraction": 0.2})
    line = describe(config)
    requests, tokens = (
        int(re.search(text, line)[1].replace(",", "")) for text in ("most (\\d+) req", "about ([\\d,]+) t")
    )
    assert 0 < requests <= 30
    assert requests % 6 == 0
    assert line.count(f"at most {requests} ") == 2
    assert tokens // requests in range(450, 700)  # 100 of the system text, 200 of both answers, the instruction
    whole = describe(make_config(JUDGE | {"records": 10**6}, split={"test_fraction": 0.5}))
    assert int(re.search(r"most (\d+) req", whole)[1]) > 30


def test_stored_verdicts_are_not_asked_again_and_a_changed_answer_is():
    for model, text in (("teacher", "long answer"), ("one", "answer"), ("one_base", "long answer"), ("two", "an")):
        write_answers(model, text)
    config, cache = make_config(), StartCache()
    assert " at most 20 are still to be sent (about " in describe(config, cache)  # those of one_base are identical
    with FakeServer(prefer_longer) as server:
        for model in ("one", "two"):
            out = f"output/evaluation/{model}/banks.verdicts.jsonl"
            files = ["--predictions", f"output/evaluation/{model}/banks.predictions.jsonl", "--out", out]
            files += ["--against", "output/evaluation/teacher/banks.predictions.jsonl"]
            run = shlex.split(commands.pairwise_run_flags(config).replace(JUDGE["base_url"], server.url))
            judge_pairs.main([*files, *shlex.split(commands.pairwise_flags(config)), *run])
            left = "all verdicts are stored" if model == "two" else "at most 10 are still to be sent (about "
            assert left in describe(config, cache)
    assert len(server.bodies) == 20
    write_answers("two", "another")
    assert "at most 10 are still to be sent (about " in describe(config, cache)
    assert "at most 10 are still to be sent (about " in describe(config)
    for change in ({"model": "other"}, {"max_new_tokens": 9}, {"structured": False}):
        assert "at most 20 are still to be sent (about " in describe(make_config(JUDGE | change), cache)


def test_files_that_do_not_belong_together_yet_count_whole():
    write_answers("teacher", "answer", 4)
    write_answers("one", "another", 8)
    assert "at most 24 requests" in describe(make_config())
    assert "at most 24 are still to be sent" in describe(make_config())


def test_malformed_files_are_left_to_the_jobs_that_read_them(tmp_path):
    write_prompts(20)
    write_answers("one", "answer")
    for line in ('{"uid": "a"}\n', "torn", '{"uid": 3, "system": 4, "prompt": []}\n'):
        (tmp_path / "output/evaluation/teacher/banks.predictions.jsonl").write_text(line)
        assert re.search(r"at most (\d+) requests", describe(make_config()))


def test_the_users_instruction_must_exist(tmp_path):
    config = make_config(JUDGE | {"prompt": "judge.txt"})
    with pytest.raises(InputError, match=r"judge.txt: expected the instruction of a judge, .*, found no file"):
        describe(config)
    (tmp_path / "judge.txt").write_text("Judge.")
    assert describe(config)
    assert experiment.get_judge_prompt(config) == ["judge.txt"]


# Models


def test_models_without_answers_of_their_own_are_not_judged():
    assert experiment.get_judged_models(make_config()) == ["one", "one_base", "two"]
    assert experiment.get_judged_models(make_config(JUDGE | {"against": "one"})) == ["teacher", "one_base", "two"]
    assert experiment.get_judged_models(make_config(JUDGE | {"against": "two_base"})) == ["teacher", "one", "two"]
    assert experiment.get_judged_models(make_config(None)) == []
    students = {"kd": {"model": "s", "train": {"seeds": [1, 2]}}}
    config = make_config(JUDGE | {"against": "kd-seed2"}, students=students)
    assert experiment.get_judged_models(config) == ["teacher", "kd-seed1", "kd_base"]


def test_every_name_that_is_checked_is_that_of_a_model():
    """`against` is checked before the models are known; both lists are the same."""
    students = {"kd": {"model": "s", "train": {"seeds": [1, 2]}}, "other": {"model": "s"}}
    export = {"students": ["kd-seed2", "other"], "variants": ["full", "nf4", "gguf"]}
    plain = make_config(students=students, export=export)
    with pytest.raises(InputError) as raised:
        make_config(JUDGE | {"against": "x"}, students=students, export=export)
    listed = re.search(r"one of (.*), found x", str(raised.value))[1].split(", ")
    assert sorted(listed) == sorted(experiment.get_models(plain))
    for model in listed:
        make_config(JUDGE | {"against": model}, students=students, export=export)


# Command lines


def test_only_what_decides_the_verdicts_is_tracked():
    config = make_config(JUDGE | {"concurrency": 3, "template_arguments": {"think": False}, "prompt": "p"})
    tracked, untracked = commands.pairwise_flags(config), commands.pairwise_run_flags(config)
    files = ["--predictions", "a/b", "--against", "c/d", "--out", "o"]
    args = judge_pairs.parse_args([*files, *shlex.split(f"{tracked} {untracked}")])
    assert (args.model, args.records, args.structured, args.max_new_tokens) == ("m", 5, True, 1024)
    assert (args.base_url, args.concurrency, args.timeout) == (JUDGE["base_url"], 3, 600)
    assert args.template_arguments == {"think": False}
    for name in ("base-url", "concurrency", "timeout", "api-key-env", "request-retries", "prompt"):
        assert f"--{name}" not in tracked


def test_the_judge_adds_its_group_to_the_scores():
    assert " pairwise " in commands.score_flags(make_config())
    assert "pairwise" not in commands.score_flags(make_config(judge=None))
    metrics = {"metrics": ["pairwise", "bleu"], "pairwise": JUDGE}
    assert make_config(evaluation=metrics)["evaluation"]["metrics"] == ["pairwise", "bleu"]


def test_the_digest_of_a_card_leaves_out_a_judge_that_is_not_there_and_its_server(monkeypatch):
    monkeypatch.setattr(commands, "digest_of", lambda settings: settings["evaluation"])
    assert "pairwise" not in commands.digest_settings(make_config(judge=None), "one")
    found = commands.digest_settings(make_config(), "one")["pairwise"]
    assert (found["model"], found["records"]) == ("m", 5)
    assert not {"base_url", "timeout"} & found.keys()
