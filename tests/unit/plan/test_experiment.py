"""Which models a job loads, and which of them the workflow makes itself."""

import copy

import pytest
import yaml
from running import ROOT

from distill.common.variants import VARIANTS, Variant
from distill.plan import command_lines, experiment
from distill.plan.schema import check_config

DEMO = ROOT / "config/demo.yaml"


@pytest.fixture
def config():
    students = {
        "kd": {"model": "models/student"},
        "seqkd": {"model": "owner/student", "method": "seqkd"},
        "further": {"model": "output/kd/banks", "method": "seqkd"},
    }
    teacher = {"model": "models/teacher", "adapter": "lora/{category}"}
    return check_config({"categories": ["banks", "funds"], "teacher": teacher, "students": students})


def test_students_with_other_template_arguments_share_no_base():
    students = {
        name: {"model": "owner/student", "template_arguments": {"think": name == "two"}} for name in ("one", "two")
    }
    config = check_config({"categories": ["banks"], "teacher": {"model": "t"}, "students": students})
    assert experiment.get_first_base(config, "two_base") == "two_base"


def test_the_teacher_is_described_with_its_engine(config):
    assert experiment.describe_teacher(config) == "Teacher: models/teacher, engine transformers"
    shared = {"engine": "vllm", "vllm": config["teacher"]["vllm"] | {"share": True}}
    served = config | {"teacher": config["teacher"] | shared}
    expected = "Teacher: models/teacher, engine vllm, one vLLM server for all categories"
    assert experiment.describe_teacher(served) == expected


def test_jobs_load_the_models_that_they_name(config):
    teacher = ["models/teacher", "lora/banks"]
    assert experiment.get_teacher_models(config, "banks") == teacher
    assert experiment.get_training_models(config, "kd", "banks") == ["models/student", *teacher]
    assert experiment.get_training_models(config, "seqkd", "banks") == ["owner/student"]
    found = [experiment.get_predicting_models(config, name, "banks") for name in ("teacher", "kd", "seqkd_base")]
    assert found == [teacher, ["output/kd/banks"], ["owner/student"]]


def test_several_categories_are_pooled():
    assert experiment.get_score_categories(["banks", "funds"]) == ["banks", "funds", "all"]
    assert experiment.get_score_categories(["banks"]) == ["banks"]


COPIED = {"init": "copy_layers", "layers": 3}


def make_config(students, adapter="lora/{category}", quantization="none"):
    teacher = {"model": "owner/t", "adapter": adapter, "quantization": quantization}
    return check_config({"categories": ["banks", "funds"], "teacher": teacher, "students": students})


def test_trainings_without_samples_are_not_on_their_page():
    train = {"kd": {}, "silent": {"validation_samples": 0}, "sharded": {"strategy": "fsdp"}}
    students = {name: {"model": "owner/s", "train": one} for name, one in train.items()}
    config = make_config(students | {"pooled": {"model": "owner/s", "method": "seqkd", "pool": True}})
    # A sharded training writes no samples, but its strategy does not decide what the page is made from.
    folders = [f"output/{name}/{category}" for name in ("kd", "sharded") for category in ("banks", "funds")]
    folders.append("output/pooled/all")
    assert experiment.get_sampled_folders(config, ["banks", "funds"]) == folders
    assert "output/report/samples.html" in experiment.get_targets(config, ["banks", "funds"])
    none = make_config({"silent": students["silent"]})
    unvalidated = config | {"split": config["split"] | {"val_fraction": 0}}
    for other in (none, unvalidated):
        assert experiment.get_sampled_folders(other, ["banks"]) == []
        assert "output/report/samples.html" not in experiment.get_targets(other, ["banks"])


def test_the_teacher_is_asked_the_prompts_that_are_kept():
    config = make_config({"one": {"model": "owner/s"}})
    page = "output/report/near_duplicates.html"
    for options, kind, is_shown in ((None, "base", False), ({}, "base", True), ({"action": "drop"}, "kept", True)):
        own = check_config(config | {"near_duplicates": options})
        path = f"artifacts/distill_data/raw/banks_teacher_prompts_{kind}.jsonl"
        assert experiment.get_prompts(own, "banks") == path
        kept = {"kept": path.replace("banks", "{category}")} if kind == "kept" else {}
        assert experiment.get_kept_prompts(own) == kept
        assert (page in experiment.get_targets(own, ["banks"])) == is_shown


def test_a_pooled_student_must_not_know_held_out_prompts_of_other_categories():
    alone = make_config({"one": {"model": "owner/s"}})
    pooled = make_config({"one": {"model": "owner/s"}, "two": {"model": "owner/s", "method": "seqkd", "pool": True}})
    assert experiment.get_other_categories(alone, "banks", ["banks", "funds"]) == []
    assert experiment.get_other_categories(pooled, "banks", ["banks", "funds"]) == ["funds"]


def test_a_further_file_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text("[]")
    config = make_config({"one": {"model": "owner/s"}})
    assert experiment.find_missing_prompts(config) is None
    own = check_config(config | {"near_duplicates": {"against": ["a.json", "b.json"]}})
    said = "near_duplicates.against[1]: expected a file, found 'b.json' (relative to "
    assert experiment.find_missing_prompts(own).startswith(said)


def test_a_package_is_missing_only_where_it_is_needed(monkeypatch):
    monkeypatch.setattr(experiment, "find_spec", lambda name: None)
    config = make_config({"one": {"model": "owner/s"}})
    assert experiment.find_missing_package(config) is None
    own = check_config(config | {"near_duplicates": {}})
    assert "near_duplicates: expected the package rensa" in experiment.find_missing_package(own)
    monkeypatch.setattr(experiment, "find_spec", lambda name: object())
    assert experiment.find_missing_package(own) is None


def test_packages_that_round_weights_are_needed_where_weights_are_rounded(monkeypatch):
    monkeypatch.setattr(experiment, "find_spec", lambda name: None)
    aware = make_config({"one": {"model": "owner/s", "train": {"quantization_aware": "int4", "seeds": [1, 2]}}})
    assert experiment.find_missing_package(aware) == (
        "students.one.train.quantization_aware needs torchao, which is not installed: run `pip install torchao` "
        "(requirements-extra.txt has tested versions)"
    )
    config = make_config({"one": {"model": "owner/s"}})
    assert experiment.find_missing_package(check_config(config | {"export": {}})) is None
    exported = check_config(config | {"export": {"variants": ["full", "nvfp4a16"]}})
    assert "needs torchao and compressed-tensors, which are" in experiment.find_missing_package(exported)
    monkeypatch.setattr(experiment, "find_spec", lambda name: object() if name == "torchao" else None)
    assert experiment.find_missing_package(aware) is None
    assert "run `pip install compressed-tensors`" in experiment.find_missing_package(exported)


def test_a_student_starts_from_another_one():
    """Its base is the other student, which the workflow trains first, in the same category."""
    config = make_config(
        {
            "kd": {"model": "owner/s"},
            "qat": {"model": "output/kd/{category}", "train": {"quantization_aware": "int4", "seeds": [1, 2]}},
            "more": {"model": "output/qat-seed2/{category}"},
        }
    )
    assert experiment.get_training_models(config, "qat-seed1", "banks")[0] == "output/kd/banks"
    assert experiment.get_predicting_models(config, "qat_base", "funds") == ["output/kd/funds"]
    assert "output/kd/banks/model.safetensors" in experiment.get_made_files(config, "output/kd/banks")
    assert [experiment.get_start(config, name) for name in ("kd", "qat", "more")] == [None, "kd", "qat-seed2"]
    assert experiment.get_origin(config, "more") == "owner/s"
    pooled = make_config(
        {"kd": {"model": "owner/s", "method": "seqkd", "pool": True}, "qat": {"model": "output/kd/all"}}
    )
    assert experiment.get_training_models(pooled, "qat", "banks")[0] == "output/kd/all"
    assert experiment.get_made_files(pooled, "output/kd/all")


def test_a_training_with_a_cached_signal_loads_no_teacher():
    config = make_config({"one": {"model": "owner/s", "signal": "hidden"}})
    assert experiment.get_training_models(config, "one", "banks") == ["owner/s"]


@pytest.mark.parametrize(("adapter", "name"), [("lora/{category}", "banks"), ("lora", "all"), (None, "all")])
def test_a_category_has_a_copy_of_its_own_where_its_teacher_is_another_one(adapter, name):
    config = make_config({"one": {"model": COPIED}, "two": {"model": COPIED, "method": "seqkd"}}, adapter)
    folder = f"artifacts/initial_students/3_layers/{name}"
    for student in ("one", "two"):
        assert experiment.get_training_models(config, student, "banks")[0] == folder
        assert experiment.get_predicting_models(config, f"{student}_base", "banks") == [folder]
    names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json"]
    assert experiment.get_made_files(config, folder) == [f"{folder}/{name}" for name in names]
    assert experiment.get_made_files(config, "artifacts/initial_students/4_layers/banks") == []


def test_a_pooled_student_is_one_model():
    students = {"one": {"model": "s", "signal": "topk", "pool": True}, "two": {"model": "s"}}
    config, categories = make_config(students), ["banks", "funds"]
    assert experiment.get_training_categories(config, "one", categories) == ["all"]
    assert experiment.get_training_categories(config, "two", categories) == categories
    folders = ["output/one/all", "output/two/banks", "output/two/funds"]
    assert experiment.get_student_folders(config, categories) == folders
    assert experiment.get_predicting_models(config, "one", "funds") == ["output/one/all"]
    assert "output/one/all/model.safetensors" in experiment.get_made_files(config, "output/one/all")
    assert experiment.get_made_files(config, "output/one/banks") == []
    assert experiment.get_made_files(config, "output/two/all") == []
    targets = experiment.get_targets(config, categories)
    assert targets[:3] == [f"{folder}/model.safetensors" for folder in folders]
    assert "output/report/values/funds.svg" in targets


def make_seeds(**more):
    """A student with two seeds, and one with a seed of its own that starts from the same model."""
    students = {"one": {"model": "s", "train": {"seeds": [7, 8]}}, "two": {"model": "s", "train": {"seed": 3}}}
    config = {"categories": ["banks"], "teacher": {"model": "owner/t"}, "students": students}
    return check_config(config | more)


@pytest.mark.parametrize(
    ("size", "batches"),
    [
        (1, []),
        (2, [["one-seed7", "one-seed8"], ["one_base", "two"]]),
        (3, [["one-seed7", "one-seed8", "one_base"], ["two"]]),
        (9, [["one-seed7", "one-seed8", "one_base", "two"]]),
    ],
)
def test_students_answer_in_batches_and_the_teacher_alone(size, batches):
    """A `_base` that shares another's answers is in no batch."""
    config = make_seeds(evaluation={"models_per_job": size})
    assert experiment.get_model_batches(config) == batches
    alone = experiment.get_models_alone(config)
    assert alone == (["teacher"] if batches else experiment.get_evaluated_models(config))


def test_a_student_with_seeds_is_replicas_that_share_a_base():
    config = make_seeds()
    seeds = {name: student["train"]["seed"] for name, student in config["students"].items()}
    assert seeds == {"one-seed7": 7, "one-seed8": 8, "two": 3}
    assert not any("seeds" in student["train"] for student in config["students"].values())
    models = ["teacher", "one-seed7", "one-seed8", "one_base", "two", "two_base"]
    assert experiment.get_models(config) == models
    assert experiment.get_evaluated_models(config) == models[:-1]
    assert experiment.get_sharing_students(config) == ["two"]
    assert experiment.get_averaged_students(config) == ["one"]
    assert experiment.get_replicas(config, "one") == ["one-seed7", "one-seed8"]
    assert experiment.get_replicas(config, "two") == ["two"]
    assert experiment.get_predicting_models(config, "one_base", "banks") == ["s"]
    assert experiment.get_predicting_models(config, "one-seed8", "banks") == ["output/one-seed8/banks"]
    targets = experiment.get_targets(config, ["banks"])
    assert [target for target in targets if target.endswith(".safetensors")] == [
        f"output/{name}/banks/model.safetensors" for name in ("one-seed7", "one-seed8", "two")
    ]


def test_means_over_seeds_are_compared_and_each_variant_with_its_own_replica():
    config = make_seeds(export={"variants": ["full", "int8"], "students": ["one-seed8"]})
    assert list(experiment.get_exports(config, ["banks"])) == [
        f"output/export/one-seed8/banks/{variant}" for variant in ("full", "int8")
    ]
    pairs = [("one", "one_base"), ("one", "teacher"), ("one", "two"), ("two", "two_base"), ("two", "teacher")]
    assert experiment.get_compared_models(config) == [*pairs, ("one-seed8_int8", "one-seed8")]
    assert experiment.get_student(config, "one-seed8_int8")["train"]["seed"] == 8
    card = ["teacher", "one-seed8", "one", "one_base", "one-seed8_int8"]
    assert experiment.get_card_models(config, "one-seed8", "int8") == card


def test_replicas_differ_in_the_seed_alone():
    config = make_seeds()
    flags = [command_lines.training_flags(config, f"one-seed{seed}", ["banks"]) for seed in (7, 8)]
    assert flags[0] == flags[1].replace("--seed 8", "--seed 7") != flags[1]
    more = copy.deepcopy(config)
    del more["students"]["one-seed7"]
    for digest in (command_lines.digest_settings, lambda *args: command_lines.training_flags(*args, ["banks"])):
        assert digest(config, "one-seed8") == digest(more, "one-seed8")


def test_a_servers_model_is_loaded_by_no_job(config):
    config["teacher"] |= {"engine": "openai", "adapter": None}
    assert experiment.get_teacher_models(config, "banks") == []


def test_only_the_workflows_own_models_are_inputs(config):
    names = ("models/teacher", "models/student", "models/adapters/banks", "owner/student", "output/other/banks")
    assert [experiment.get_made_files(config, name) for name in names] == [[]] * 5
    assert "output/kd/banks/model.safetensors" in experiment.get_made_files(config, "output/kd/banks")
    demo = check_config(yaml.safe_load(DEMO.read_text()))
    assert experiment.get_made_files(demo, "models/teacher")[1] == "models/teacher/model.safetensors"
    assert experiment.get_made_files(demo, "models/adapters/banks")[1].endswith("banks/adapter_model.safetensors")
    assert experiment.get_made_files(demo, "models/mine") == []


def test_exports_are_targets_scored_models_and_inputs():
    students = {"one": {"model": "s", "signal": "topk", "pool": True}, "two": {"model": "s"}}
    config, categories = make_config(students), ["banks", "funds"]
    assert experiment.get_exports(config, categories) == {}
    config["export"] = {"variants": ["full", "gguf"], "students": None}
    folders = [f"output/export/{name}/{variant}" for name in ("one/all", "two/banks", "two/funds")
               for variant in ("full", "gguf")]  # fmt: skip
    assert list(experiment.get_exports(config, categories)) == folders
    assert {f"{folder}/README.md" for folder in folders} < set(experiment.get_targets(config, categories))
    models = ["teacher", "one", "one_base", "one_gguf", "two", "two_base", "two_gguf"]
    assert experiment.get_models(config) == models
    assert experiment.get_evaluated_models(config) == [name for name in models if name != "two_base"]
    assert experiment.get_predicting_models(config, "one_gguf", "funds") == ["output/export/one/all/gguf"]
    assert experiment.get_student(config, "one_gguf") is config["students"]["one"]
    assert "output/export/two/funds/gguf/model.gguf" in experiment.get_made_files(config, folders[-1])
    assert "output/export/two/funds/full/model.safetensors" in experiment.get_made_files(config, folders[-2])
    assert experiment.get_made_files(config, "output/export/two/funds/nf4") == []


def test_gguf_variants_share_a_rule_and_are_scored_by_their_whole_name():
    assert experiment.list_variants("model.gguf") == ["gguf", "gguf_f16", "gguf_q4_k_m"]
    config = make_config({"one": {"model": "s"}})
    config["export"] = {"variants": ["gguf", "gguf_f16"], "students": None}
    assert experiment.get_models(config) == ["teacher", "one", "one_base", "one_gguf", "one_gguf_f16"]
    folder = "output/export/one/banks/gguf_f16"
    assert experiment.get_predicting_models(config, "one_gguf_f16", "banks") == [folder]
    assert f"{folder}/model.gguf" in experiment.get_made_files(config, folder)
    assert experiment.get_student(config, "one_gguf_f16") is config["students"]["one"]
    assert ("one_gguf_f16", "one") in experiment.get_compared_models(config)


def test_a_new_safetensors_variant_needs_no_rule(monkeypatch):
    rounded = ["w4a16", "w8a16", "nvfp4a16"]
    assert experiment.list_variants("model.safetensors") == ["full", "nf4", "int8", "gptq", "fp8", *rounded]
    ours = ["full", "nf4", "int8", "gptq", "fp8", "gguf", "gguf_f16", "gguf_q4_k_m", *rounded]
    assert experiment.list_variants() == ours
    monkeypatch.setitem(VARIANTS, "bits8", Variant("Weights in 8-bit floating point.", largest_distance=0.5))
    assert experiment.list_variants("model.safetensors") == ["full", "nf4", "int8", "gptq", "fp8", *rounded, "bits8"]
    config = make_config({"one": {"model": "s"}})
    config["export"] = {"variants": ["full", "bits8"], "students": None}
    assert experiment.get_models(config) == ["teacher", "one", "one_base", "one_bits8"]
    folder = "output/export/one/banks/bits8"
    assert experiment.get_predicting_models(config, "one_bits8", "banks") == [folder]
    assert f"{folder}/model.safetensors" in experiment.get_made_files(config, folder)
    cards = [experiment.get_card_models(config, "one", variant) for variant in ("full", "bits8")]
    assert cards == [["teacher", "one", "one_base"], ["teacher", "one", "one_base", "one_bits8"]]
