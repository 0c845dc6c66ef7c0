"""Generation of the teacher's answers: which prompts it runs for, what is cached, and the errors of bad input."""

import json
import re
import shutil

import pytest
from running import TEACHER, make_records, read_lines

RAW = "artifacts/distill_data/raw"
TARGETS = {category: f"{RAW}/teacher_outputs_{category}.jsonl" for category in ("banks", "households", "pension_funds")}
SHORT = {"generation": {"max_new_tokens": 4, "temperature": 0.0, "batch_size": 8}}


@pytest.fixture
def directory(fresh, tmp_path):
    """Records and models, with a teacher that has no adapters and gives short answers."""
    directory = fresh.copy(tmp_path / "run")
    directory.configure(directory.config | {"teacher": TEACHER | SHORT})
    return directory


def change_teacher(directory, **settings):
    directory.configure(directory.config | {"teacher": directory.config["teacher"] | settings})


def stats_of(directory, category="banks"):
    return json.loads((directory / f"{RAW}/teacher_outputs_{category}.stats.json").read_text())


def counts(directory, category="banks"):
    return tuple(stats_of(directory, category)[name] for name in ("prompts", "from_cache", "generated"))


def uids(directory, category="banks"):
    return {record["uid"] for record in read_lines(directory / TARGETS[category])}


def cached(directory):
    """Return the cached answers by file."""
    return {path: read_lines(path) for path in directory.path.glob("artifacts/cache/teacher/*/*.jsonl")}


def test_five_more_records_generate_their_own_answers_only(directory):
    make_records(directory.path, grpo=205)
    raw = directory / "artifacts/grpo/grpo_banks.jsonl"
    lines = raw.read_text().splitlines(keepends=True)
    raw.write_text("".join(lines[:200]))
    directory.run(TARGETS["banks"])
    before, kept = uids(directory), cached(directory)
    assert counts(directory) == (152, 0, 152)  # int(200 · 0.7) + int(40 · 0.3)

    raw.write_text("".join(lines))
    directory.run(TARGETS["banks"])
    new = uids(directory) - before
    assert 3 <= len(new) <= 5  # the mix takes int(205 · 0.7), so a new record may replace an old one
    assert counts(directory) == (155, 155 - len(new), len(new))
    (added,) = [answers for path, answers in cached(directory).items() if path not in kept]
    assert {answer["uid"] for answer in added} == new
    assert len(added) == len(new)


@pytest.mark.slow
def test_two_jobs_at_a_time_share_a_cache(directory):
    change_teacher(directory, generation=SHORT["generation"] | {"max_new_tokens": 64})
    # A third category with prompts of the other two.
    shutil.copyfile(
        directory / "artifacts/grpo/grpo_banks.jsonl", directory / "artifacts/grpo/grpo_pension_funds.jsonl"
    )
    sft = directory / "artifacts/sft"
    shutil.copyfile(sft / "sft_train_households.jsonl", sft / "sft_train_pension_funds.jsonl")
    prompts = [f"{RAW}/{category}_teacher_prompts_base.jsonl" for category in TARGETS]
    directory.run(*prompts)
    both = TARGETS["banks"], TARGETS["households"]
    output = directory.run("--cores", 2, *both)
    assert "Execute 2 jobs..." in output
    files = cached(directory)
    assert len(files) == 2
    assert len({path.parent for path in files}) == 1
    assert {frozenset(answer["uid"] for answer in answers) for answers in files.values()} == {
        frozenset(uids(directory, category)) for category in ("banks", "households")
    }
    before = {path: (directory / path).read_bytes() for path in both}

    directory.run("--cores", 2, "--forcerun", "generate_answers", "--", *TARGETS.values())
    assert all(counts(directory, category) == (33, 33, 0) for category in TARGETS)
    assert {path: (directory / path).read_bytes() for path in both} == before
    assert cached(directory) == files


def test_a_server_needs_no_gpu(directory):
    students = {"student": directory.config["students"]["student_seqkd"]}
    directory.configure(directory.config | {"device": "auto", "students": students})

    def resources():
        """Return the resources and the command of the job that generates the answers."""
        output = directory.run("-n", TARGETS["banks"])
        return re.search(
            r"^rule generate_answers:.*?resources: (.*?)\nShell command: (.*?)$", output, re.M | re.S
        ).groups()

    assert "gpu=1," in resources()[0]
    change_teacher(directory, engine="openai", base_url="http://localhost:8000/v1")
    asked, command = resources()
    assert "gpu=0," in asked
    assert "--base-url http://localhost:8000/v1" in command
    assert "--concurrency auto" in command


def add_long_record(directory, times):
    path = directory / "artifacts/sft/sft_train_banks.jsonl"
    record = json.loads(path.read_text().splitlines()[0])
    record["messages"][1]["content"] *= times
    path.write_text(path.read_text() + json.dumps(record) + "\n")
    directory.configure(directory.config | {"mix": {"grpo_fraction": 1.0, "sft_fraction": 1.0}})


def test_a_prompt_longer_than_the_context(directory):
    add_long_record(directory, times=40)
    limit = json.loads((directory / "models/teacher/config.json").read_text())["max_position_embeddings"]
    output = directory.run(TARGETS["banks"], check=False)
    log = (directory / "logs/generate_answers/banks.log").read_text()
    for text in (output, log):
        assert "error: 1 of 71 prompts are longer than the teacher's context" in text
        found = re.search(rf"id 70: (\d+) tokens, the limit is {limit - 1}\b", text)
        assert int(found[1]) > limit
        assert "Traceback" not in text
    assert "set teacher.overlong to skip" in log
    assert not (directory / TARGETS["banks"]).exists()

    change_teacher(directory, overlong="skip", shards=2)
    directory.run(TARGETS["banks"])
    stats = stats_of(directory)
    assert (stats["prompts"], stats["overlong"], stats["generated"]) == (71, 1, 70)
    assert [record["id"] for record in read_lines(directory / TARGETS["banks"])] == list(range(70))
    logs = [path.read_text() for path in directory.path.glob("logs/generate_answers/banks.*-of-2.log")]
    assert sum("id 70: " in text and "they are skipped" in text for text in logs) == 1


def save_foreign_adapter(folder):
    """Replace an adapter with LoRA weights of a GPT-2."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    shutil.rmtree(folder)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2))
    lora = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    get_peft_model(model, lora).save_pretrained(folder)


def forget_answers(directory, category):
    """Remove a category's answers and its part of the cache."""
    known = uids(directory, category)
    (directory / TARGETS[category]).unlink()
    for path, answers in cached(directory).items():
        if {answer["uid"] for answer in answers} & known:
            path.unlink()


def test_bad_adapters_fail_their_own_category_and_lose_nothing(copy):
    """Banks' adapter is missing, then of another model, then restored; households is generated meanwhile.

    The plan refuses the adapter of another model.
    """
    answers = (copy / TARGETS["banks"]).read_bytes()
    adapter, aside = copy / "models/adapters/banks", copy / "models/aside"
    forget_answers(copy, "households")

    shutil.move(adapter, aside)
    output = copy.run(TARGETS["banks"], TARGETS["households"], check=False)
    assert re.search(r"error: .*models/adapters/banks", output)
    assert "Traceback" not in output
    assert counts(copy, "households") == (33, 0, 33)

    shutil.copytree(aside, adapter)
    save_foreign_adapter(adapter)
    output = copy.run(TARGETS["banks"], check=False)
    place = "teacher.adapter: models/adapters/banks/adapter_config.json: target_modules"
    assert f"{place}: expected modules of models/teacher, found none of them there" in output
    assert "Traceback" not in output

    shutil.rmtree(adapter)
    shutil.move(aside, adapter)
    copy.run(TARGETS["banks"])
    assert counts(copy) == (33, 33, 0)
    assert (copy / TARGETS["banks"]).read_bytes() == answers
