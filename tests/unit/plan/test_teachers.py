"""Categories with a teacher of their own: how their entries are merged, and what follows for their jobs."""

import json
import shlex

import pytest

import train_student
from distill.plan import command_lines as commands
from distill.plan import experiment, job_resources, signals
from distill.plan.schema import check_config
from distill.plan.stages import StageLister
from distill.student.student_run import list_card_settings, list_result_settings, read_run

SERVED = {"engine": "openai", "base_url": "http://s/v1", "tokenizer": "owner/tokenizer", "adapter": None}


def make_config(teachers=None, teacher=None, **students):
    common = {"model": "owner/common", "adapter": "lora/{category}", "generation": {"max_new_tokens": 9, "seed": 3}}
    students = students or {"one": {}}
    return check_config(
        {
            "categories": ["banks", "funds"],
            "teacher": common | (teacher or {}),
            "teachers": teachers or {},
            "students": {name: {"model": "owner/student"} | student for name, student in students.items()},
        }
    )


def view(config, category):
    return experiment.get_category_config(config, category)


def test_an_entry_contains_only_what_differs():
    vllm = {"arguments": {"max_model_len": 99}, "start_timeout": 5}
    own = {"generation": {"seed": 4}, "template_arguments": {"think": True}, "vllm": {"arguments": {"kv_dtype": "a"}}}
    config = make_config({"banks": own}, {"template_arguments": {"style": "brief"}, "vllm": vllm})
    teacher = view(config, "banks")["teacher"]
    assert (teacher["model"], teacher["adapter"]) == ("owner/common", "lora/{category}")
    assert teacher["generation"] == config["teacher"]["generation"] | {"seed": 4}
    # Names that the user chooses are replaced as a whole, groups of options are not.
    assert teacher["template_arguments"] == {"think": True}
    assert teacher["vllm"] == config["teacher"]["vllm"] | {"arguments": {"kv_dtype": "a"}}
    assert view(config, "funds") == config
    assert view(config, "all") == config


def test_merging_again_changes_nothing():
    config = make_config({"banks": {"model": "owner/other", "adapter": None}})
    assert check_config(config) == config


def test_each_category_has_its_own_models_and_options():
    config = make_config({"banks": {"model": "hf:owner/big", "adapter": None, "dtype": "float16", "samples": 2}})
    assert experiment.get_teacher_models(view(config, "banks"), "banks") == ["models/hf/owner/big"]
    assert experiment.get_teacher_models(view(config, "funds"), "funds") == ["owner/common", "lora/funds"]
    flags = {category: commands.generate_flags(view(config, category), category) for category in config["categories"]}
    assert "--model models/hf/owner/big --dtype float16" in flags["banks"]
    assert "--samples 2" in flags["banks"]
    assert flags["funds"] == commands.generate_flags(make_config(), "funds")
    expected = "Teacher: owner/common, engine transformers; banks: models/hf/owner/big, engine transformers"
    assert experiment.describe_teacher(config) == expected


def test_an_entry_may_change_the_engine():
    config = make_config({"banks": SERVED}, one={"method": "seqkd"})
    gpus = [job_resources.get_answering_gpus(view(config, category)) for category in config["categories"]]
    assert gpus == [0, 1]
    assert "--base-url http://s/v1" in commands.generate_run_flags(view(config, "banks"))
    assert "--base-url" not in commands.generate_run_flags(view(config, "funds"))
    evaluation = config["evaluation"] | {"metrics": ["fdistill"]}
    without = make_config({"banks": SERVED | {"tokenizer": None}}, one={"method": "seqkd"}) | {"evaluation": evaluation}
    assert not experiment.are_judged(without, ["banks", "funds"])
    assert experiment.are_judged(without, ["funds"])


def test_only_categories_with_an_entry_have_a_copy_of_their_own():
    copied = {"model": {"init": "copy_layers", "layers": 2}}
    config = make_config({"banks": {"model": "owner/other"}}, {"adapter": None}, one=copied)
    folders = [experiment.get_initial_model(view(config, category), "one", category) for category in ("banks", "funds")]
    assert folders == [f"artifacts/initial_students/2_layers/{name}" for name in ("banks", "all")]
    assert all(experiment.get_made_files(config, folder) for folder in folders)
    assert commands.copy_flags(view(config, "banks"), "banks") == "--model owner/other --dtype bfloat16"
    (model, *_) = experiment.get_training_models(view(config, "banks"), "one", "banks")
    assert f"--model {model} " in commands.training_flags(config, "one", ["banks"])


def test_a_signal_has_the_quantization_of_the_category():
    config = make_config({"banks": {"quantization": "nf4"}}, one={"signal": "hidden"})
    assert {name: signals.get_signals(view(config, name))["hidden"]["quantization"] for name in ("banks", "funds")} == {
        "banks": "nf4",
        "funds": "none",
    }


def parse_training(config, name, categories):
    text = commands.training_flags(config, name, categories)
    data = [f"d/{category}" for category in categories]
    argv = [*shlex.split(text), "--data", *data, "--out", "o", "--name", name, "--category", "c"]
    return read_run(train_student.parse_args(argv))


def test_a_student_of_one_category_has_one_teacher():
    config = make_config({"banks": {"model": "owner/other", "dtype": "float16"}})
    for name, model, dtype in (("banks", "owner/other", "float16"), ("funds", "owner/common", "bfloat16")):
        teacher = parse_training(config, "one", [name]).teacher
        assert (teacher.model, teacher.dtype, teacher.adapters) == (model, dtype, (f"lora/{name}",))
        assert teacher.by_folder == ()


@pytest.mark.parametrize("signal", ["hidden", "topk"])
def test_a_pooled_student_has_the_teacher_of_each_category(signal):
    own = {"model": "owner/other", "adapter": None, "template_arguments": {"think": False}}
    config = make_config({"funds": own}, one={"signal": signal, "pool": True})
    run = parse_training(config, "one", ["banks", "funds"])
    first, second = run.teacher.list_by_folder()
    assert (first.model, first.adapters, first.template_arguments) == ("owner/common", ("lora/banks",), {})
    assert (second.model, second.adapters, second.template_arguments) == ("owner/other", (), {"think": False})
    assert [one.signal_folders[0].parent.name for one in (first, second)] == ["banks", "funds"]
    assert list_card_settings(run)["teachers"] == [
        "owner/common (adapter lora/banks, bfloat16, quantization none)",
        "owner/other (bfloat16, quantization none, think=False)",
    ]
    models = [one["model"] for one in list_result_settings(run)["teacher"]["by_folder"]]
    assert models == ["owner/common", "owner/other"]
    assert "--teacher 'owner/common, owner/other' " in commands.card_flags(config, "one", "all")


def test_adapters_alone_need_no_list_of_teachers():
    config = make_config(one={"signal": "topk", "pool": True})
    run = parse_training(config, "one", ["banks", "funds"])
    assert run.teacher.by_folder == ()
    assert [one.adapters for one in run.teacher.list_by_folder()] == [("lora/banks",), ("lora/funds",)]
    assert "by_folder" not in list_result_settings(run)["teacher"]


def test_an_adapter_of_one_category_alone_is_listed():
    config = make_config({"funds": {"adapter": "lora/x"}}, {"adapter": None}, one={"signal": "topk", "pool": True})
    run = parse_training(config, "one", ["banks", "funds"])
    assert [one.adapters for one in run.teacher.list_by_folder()] == [(), ("lora/x",)]


@pytest.mark.parametrize(
    ("teachers", "said"),
    [
        (["{"], "expected a JSON object"),
        (['{"adapter": "a"}'], "expected a JSON object with a model"),
        (['{"model": "m", "modle": "n"}'], "found 'modle'"),
        (['{"model": "m", "dtype": 3}'], "dtype: expected text or null, found 3"),
        ([json.dumps({"model": "m"})] * 2, "one teacher for each --data"),
    ],
)
def test_a_wrong_list_of_teachers_is_refused(teachers, said, capsys):
    argv = ["--data", "d", "--out", "o", "--name", "n", "--category", "c", "--model", "m", "--method", "jsd"]
    argv += ["--signal", "topk", "--signal-folders", "s", "--teacher-model", "t", "--teachers", *teachers]
    with pytest.raises(SystemExit):
        train_student.parse_args(argv)
    assert said in capsys.readouterr().err


def test_a_card_depends_on_the_teachers_of_its_categories():
    def make_flags(category, **own):
        student = {"signal": "topk", "pool": category == "all"}
        config = make_config({"banks": {"model": "owner/other"} | own}, one=student)
        return commands.card_flags(view(config, category), "one", category)

    for category, changes in (("banks", True), ("funds", False), ("all", True)):
        assert (make_flags(category) != make_flags(category, samples=2)) == changes
        assert make_flags(category) == make_flags(category, concurrency=3)
    assert make_flags("funds") == commands.card_flags(make_config(one={"signal": "topk"}), "one", "funds")


def test_the_memory_plan_has_the_stages_of_another_teacher():
    def list_stages(teachers, **student):
        config = make_config(teachers, {"model": "Qwen/Qwen2.5-7B"}, one={"model": "Qwen/Qwen2.5-0.5B"} | student)
        return [stage for stage in StageLister(config).list_stages() if not isinstance(stage, str)]

    big = {"funds": {"model": "Qwen/Qwen2.5-14B"}}
    common = list_stages({})
    stages = list_stages(big)
    assert stages[: len(common)] == common
    own = stages[len(common) :]
    assert [(stage.rule, stage.wildcards) for stage in own] == [
        ("generate_answers", {"category": "funds"}),
        ("train_student", {"student": "one", "category": "funds"}),
        ("predict_answers", {"model": "teacher", "category": "funds"}),
    ]
    assert [stage.work[0].models[-1].config["num_hidden_layers"] for stage in own] == [48, 48, 48]
    assert list_stages({"funds": {"generation": {"seed": 9}}}) == common
    pooled = list_stages(big, pool=True, signal="hidden")
    (training,) = [stage.work[0] for stage in pooled if stage.rule == "train_student"]
    assert [head.config["hidden_size"] for head in (training.teacher, *training.more_heads)] == [3584, 5120]
