"""Listing and pruning use exactly the folders that the jobs use."""

import json
import os
import shlex
import shutil

import pytest
import yaml
from running import CONFIG
from tiny import save_model

import cache as script
import generate_answers
from distill.common.errors import InputError
from distill.common.files import write_jsonl
from distill.generation.answer_cache import CacheWriter, read_cache
from distill.generation.chat_client import ChatClient
from distill.generation.openai_engine import OpenAIEngine
from distill.generation.sampling import Sampling
from distill.plan.command_lines import generate_flags, generate_run_flags
from distill.plan.experiment import get_category_config
from distill.plan.prune_cache import find_uses
from distill.plan.schema import check_config

UNUSED = "0123456789abcdef" * 2


def answer(uid):
    return {"uid": uid, "sample": 0, "raw_output": "text", "finish_reason": "stop"} | {
        "generated_tokens": 1,
        "prompt_tokens": 1,
    }


@pytest.fixture
def directory(tmp_path, tokenizer, monkeypatch):
    """A working directory with a teacher and raw files of two categories, and an unused folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    save_model(tmp_path / "models/own", tokenizer)
    for category in ("banks", "households"):
        for name in (f"grpo/grpo_{category}", f"sft/sft_train_{category}"):
            (tmp_path / f"artifacts/{name}.jsonl").parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / f"artifacts/{name}.jsonl").write_text("")
    with CacheWriter(tmp_path / "artifacts/cache/teacher" / UNUSED) as writer:
        writer.add([answer("a"), answer("b")])
    return tmp_path


@pytest.fixture
def configure(directory):
    def write(name="own.yaml", students=CONFIG["students"], cache="artifacts/cache/teacher", **teacher):
        settings = {"model": "models/own", "adapter": None} | teacher
        config = CONFIG | {"teacher": CONFIG["teacher"] | settings, "students": students, "cache": str(cache)}
        (directory / name).write_text(yaml.safe_dump(config))
        return check_config(config)

    return write


@pytest.fixture
def ask(directory, prompts, monkeypatch):
    """Generate answers as the rule's job does."""

    def run(config, category="banks"):
        monkeypatch.chdir(directory)
        write_jsonl("prompts.jsonl", [prompt | {"id": 0, "label": None, "origin": "sft"} for prompt in prompts[:3]])
        line = f"{generate_flags(config, category)} {generate_run_flags(config)} --device cpu"
        line += " --prompts prompts.jsonl --out out.jsonl --stats stats.json"
        before = set(os.listdir("artifacts/cache/teacher"))
        generate_answers.main(shlex.split(line))
        (folder,) = set(os.listdir("artifacts/cache/teacher")) - before
        return folder

    return run


@pytest.fixture
def run(directory, capsys):
    def call(command, *arguments, files=("own.yaml",)):
        capsys.readouterr()
        named = [str(directory / name) for name in files]
        script.main([command, "--configfile", *named, "--directory", str(directory), *arguments])
        return capsys.readouterr().out

    return call


def folders(directory):
    return set(os.listdir(directory / "artifacts/cache/teacher"))


def test_a_jobs_folder_is_listed_with_the_configurations_that_use_it(configure, ask, run):
    folder = ask(configure())
    text = run("list")
    assert "artifacts/cache/teacher: 2 teachers, 5 answers, " in text
    ours, description, other, no_description = text.splitlines()[1:]
    assert ours.startswith(f"{folder}: 3 answers, 0.0 MiB, last answer 2")
    assert ours.endswith("used by own.yaml (banks, households, pension_funds)")
    assert description.startswith("  engine transformers, model models/own, adapter None, dtype float32,")
    assert "max_new_tokens 24, temperature 1.0" in description
    assert other.startswith(f"{UNUSED}: 2 answers")
    assert other.endswith("not used by these configurations")
    assert no_description == "  no description"


def test_the_folder_of_a_categorys_own_teacher_is_listed(configure, ask, run, directory):
    config = configure()
    common = ask(config)
    text = (directory / "own.yaml").read_text() + "teachers: {households: {dtype: float16}}\n"
    (directory / "own.yaml").write_text(text)
    own = ask(get_category_config(check_config(yaml.safe_load(text)), "households"), "households")
    lines = run("list").splitlines()
    users = {folder: next(line for line in lines if line.startswith(folder)) for folder in (common, own)}
    assert users[common].endswith("used by own.yaml (banks, pension_funds)")
    assert users[own].endswith("used by own.yaml (households)")


def test_an_answer_that_two_jobs_gave_counts_once(configure, directory, run):
    configure()
    with CacheWriter(directory / "artifacts/cache/teacher" / UNUSED) as writer:
        writer.add([answer("b"), answer("c")])
    assert f"{UNUSED}: 3 answers" in run("list")


def test_prune_removes_what_no_configuration_uses_once_it_is_confirmed(configure, ask, run, directory):
    folder = ask(configure())
    (directory / "artifacts/cache/teacher/notes").mkdir()
    (directory / "artifacts/cache/teacher" / ("f" * 32)).write_text("a file")
    kept = folders(directory) - {UNUSED}
    text = run("prune")
    assert f"artifacts/cache/teacher/{UNUSED}: 2 answers" in text
    assert folder not in text
    assert "1 teacher, 2 answers, 0.0 MiB would be removed: pass --yes to remove them" in text
    assert folders(directory) == kept | {UNUSED}
    assert "1 teacher, 2 answers, 0.0 MiB removed" in run("prune", "--yes")
    assert folders(directory) == kept
    assert len(read_cache(directory / "artifacts/cache/teacher" / folder)) == 3
    assert "no answers to remove" in run("prune", "--yes")


@pytest.mark.parametrize(
    "teacher",
    [
        {"dtype": "float16"},
        {"generation": {"max_new_tokens": 24, "temperature": 0.9}},
        {"generation": {"max_new_tokens": 24, "temperature": 1.0, "seed": 7}},
        {"quantization": "nf4"},
    ],
    ids=str,
)
def test_another_setting_is_another_folder(configure, ask, run, directory, teacher):
    before = ask(configure())
    configure(**teacher)
    configure("before.yaml")
    assert before in run("prune")
    assert before not in run("prune", files=("own.yaml", "before.yaml"))


@pytest.mark.parametrize(
    "teacher", [{"generation": CONFIG["teacher"]["generation"] | {"batch_size": 3}}, {"retries": 0}]
)
def test_settings_that_affect_no_answer_share_a_folder(configure, ask, run, teacher):
    folder = ask(configure())
    configure(**teacher)
    assert folder not in run("prune")


def test_answers_in_bfloat16_are_kept_for_gpus_with_and_without_it(configure, ask, run):
    config = configure(dtype="bfloat16")
    found = {ask(config), ask(configure("half.yaml", dtype="float16"))}
    assert len(found) == 2
    assert not any(folder in run("prune") for folder in found)


def test_answers_from_a_server_are_found_without_the_server(configure, run, directory):
    students = {"student": {"model": "models/student", "method": "seqkd"}}
    configure(engine="openai", base_url="http://127.0.0.1:9/v1", model="served", students=students)
    engine = OpenAIEngine(ChatClient("served", Sampling(24, 1.0), "http://elsewhere/v1"))
    with CacheWriter(directory / "artifacts/cache/teacher" / engine.fingerprint(), engine.describe()) as writer:
        writer.add([answer("a")])
    text = run("list")
    assert f"{engine.fingerprint()}: 1 answers" in text
    assert "engine openai, model served, max_new_tokens 24" in text
    assert engine.fingerprint() not in run("prune")


def test_nothing_is_removed_if_a_configurations_folders_are_unknown(configure, run, directory):
    configure()
    configure("gone.yaml", model="models/absent/model")
    configure("half.yaml", model="hf:a/b")
    shutil.copytree(directory / "models/own", directory / "models/hf/a/b")  # a complete download has a download.json
    (directory / "broken.yaml").write_text("teacher: [")
    (directory / "wrong.yaml").write_text("categories: 3")
    (directory / "empty.yaml").write_text("")
    names = ("own", "gone", "half", "broken", "wrong", "empty", "none")
    files = tuple(f"{name}.yaml" for name in names)
    with pytest.raises(InputError, match="nothing is removed") as error:
        run("prune", "--yes", files=files)
    text = str(error.value)
    for part in (
        "gone.yaml (banks): models/absent/model: expected",
        "half.yaml (banks): models/hf/a/b: expected a downloaded model",
        "broken.yaml: expected YAML",
        "wrong.yaml: ",
        "empty.yaml: ",
    ):
        assert part in text
    assert "none.yaml" in text
    assert "--configfile" in text
    assert "own.yaml" not in text
    assert folders(directory) == {UNUSED}
    # The list still shows what is known.
    assert "unknown use: gone.yaml (banks): " in run("list", files=files)


def test_a_category_that_is_skipped_needs_no_adapter_but_another_does(configure, run, directory):
    """pension_funds has no raw files."""
    configure(adapter="adapters/{category}")
    for category in ("banks", "households"):
        (directory / "adapters" / category).mkdir(parents=True)
        (directory / "adapters" / category / "adapter_config.json").write_text(json.dumps({"r": category}))
    assert UNUSED in run("prune")
    (directory / "adapters/households/adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"own.yaml \(households\): adapters/households: expected a LoRA checkpoint"):
        run("prune")


def test_each_adapter_has_a_folder_of_its_own(configure, directory):
    configure(adapter="adapters/{category}")
    for category in ("banks", "households"):
        (directory / "adapters" / category).mkdir(parents=True)
        (directory / "adapters" / category / "adapter_config.json").write_text(json.dumps({"r": category}))
    uses = find_uses([directory / "own.yaml"], [directory], generate_answers.parse_args)
    assert sorted(uses.get_users(folder) for folder in uses.folders) == [
        ("own.yaml (banks)",),
        ("own.yaml (households)",),
    ]


def test_relative_and_absolute_spellings_of_a_cache_are_one(configure, run, directory):
    configure()
    configure("absolute.yaml", cache=directory / "artifacts/grpo/../cache/teacher")
    files = ("own.yaml", "absolute.yaml")
    assert run("list", files=files).count("1 teacher, 2 answers") == 1
    assert "1 teacher, 2 answers, 0.0 MiB removed" in run("prune", "--yes", files=files)


@pytest.fixture
def shared(directory, tmp_path_factory, tokenizer):
    """Return a cache shared by two working directories, the second directory, and a function that fills the cache.

    Each directory has its own teacher under the same name.
    """
    cache, other = tmp_path_factory.mktemp("shared"), tmp_path_factory.mktemp("other")
    save_model(other / "models/own", tokenizer, seed=1)
    shutil.copytree(directory / "artifacts/grpo", other / "artifacts/grpo")
    shutil.copytree(directory / "artifacts/sft", other / "artifacts/sft")

    def use(configfile):
        found = [find_uses([configfile], [place], generate_answers.parse_args) for place in (directory, other)]
        names = [name for uses in found for name in uses.folders]
        assert len(set(names)) == 2
        for name in [*names, UNUSED]:
            with CacheWriter(cache / name) as writer:
                writer.add([answer("a")])
        return names

    return cache, other, use


def test_a_cache_elsewhere_is_pruned_only_where_its_directories_are_named(configure, shared, directory, monkeypatch):
    cache, other, use = shared
    configure(cache=cache)
    names = use(directory / "own.yaml")
    monkeypatch.chdir(directory)
    line = ["prune", "--yes", "--configfile", "own.yaml"]
    with pytest.raises(InputError, match="nothing is removed: other working directories may share") as error:
        script.main(line)
    assert str(cache) in str(error.value)
    assert "--directory" in str(error.value)
    assert set(os.listdir(cache)) == {*names, UNUSED}
    script.main([*line, "--directory", str(directory), str(other)])
    assert set(os.listdir(cache)) == set(names)


def test_a_linked_cache_is_elsewhere(configure, shared, directory, monkeypatch):
    cache, _, _ = shared
    (directory / "linked").symlink_to(cache)
    configure(cache="linked")
    monkeypatch.chdir(directory)
    with pytest.raises(InputError, match="other working directories may share"):
        script.main(["prune", "--configfile", "own.yaml"])


def test_a_configuration_is_looked_for_in_every_directory(configure, directory, tmp_path):
    """It suffices that one directory has the model; if none has it, nothing is pruned."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    configure(adapter="adapters/{category}")
    (directory / "adapters/banks").mkdir(parents=True)
    (directory / "adapters/banks/adapter_config.json").write_text("{}")
    (directory / "adapters/households").symlink_to("banks")
    named = ["--configfile", str(directory / "own.yaml"), "--directory"]
    both = [str(elsewhere), str(directory)]
    with pytest.raises(InputError, match=rf"own.yaml: no category has its raw files in {elsewhere}\n"):
        script.main(["prune", *named, str(elsewhere)])
    script.main(["prune", *named, *both])
    configure("gone.yaml", model="models/absent/model")
    with pytest.raises(InputError, match=r"gone.yaml \(banks\): models/absent/model: expected"):
        script.main(["prune", "--configfile", str(directory / "gone.yaml"), "--directory", *both])


def test_by_default_the_projects_own_configurations_count():
    args = script.parse_args(["list"])
    assert {path.name for path in args.configfile} >= {"config.yaml", "demo.yaml"}
