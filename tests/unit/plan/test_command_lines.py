"""Command lines from a configuration: tracked options rerun a rule, untracked ones do not."""

import shlex
from fractions import Fraction
from pathlib import Path

import pytest

import compute_signal
import copy_layers
import find_near_duplicates
import generate_answers
import make_prompts
import mix_records
import predict_answers
import score_predictions
import serve_teacher
import train_student
from distill.plan import command_lines as commands
from distill.plan import experiment
from distill.plan.schema import check_config
from distill.student.student_run import list_card_settings, list_result_settings, read_run


def make_config(**changes):
    student = {"model": "owner/student"}
    config = {"categories": ["banks"], "teacher": {"model": "owner/teacher"}, "students": {"one": student}}
    return check_config(config | changes)


def parse(script, text, *more):
    """Parse the rule's options with its script."""
    return script.parse_args([*shlex.split(text), *more])


def test_flags_write_each_kind_of_value():
    settings = {"batch_size": 2, "lora_rank": None, "fast": True, "slow": False, "names": ["a", "b c"], "key": "x;y"}
    assert commands.flags(settings) == "--batch-size 2 --fast --no-slow --names a 'b c' --key 'x;y'"


def test_prompts_have_the_options_that_they_had_unless_more_is_configured():
    answer = {"key": "v", "label_fields": ["a"]}
    text = commands.prompt_flags(make_config(answer=answer), "banks")
    assert text == "--label-fields a --answer-key v"
    source = {"targets": "all", "teacher_prompt": "You know {category} and {others}."}
    text = commands.prompt_flags(make_config(source=source), "banks")
    args = parse(make_prompts, text, "--mix", "m", "--out", "o")
    assert (args.targets, args.teacher_prompt) == ("all", "You know banks and {others}.")


def test_near_duplicates_are_found_in_the_splits_of_the_answers():
    split = {"val_fraction": 0.2, "test_fraction": 0.3, "seed": 7}
    config = make_config(split=split, near_duplicates={"threshold": 0.9, "action": "drop"})
    files = ["--prompts", "p", "--pairs", "c", "--counts", "j"]
    args = parse(find_near_duplicates, commands.near_duplicate_flags(config, "banks"), *files)
    assert (args.category, args.threshold, args.shingle_size, args.action) == ("banks", 0.9, 3, "drop")
    assert (args.val_fraction, args.test_fraction, args.seed) == (Fraction("0.2"), Fraction("0.3"), 7)


def test_near_duplicates_count_in_the_digest_of_a_card_once_they_are_dropped():
    def digest(options):
        return commands.digest_settings(make_config(near_duplicates=options), "one")

    assert digest(None) == digest({}) == digest({"threshold": 0.9})
    assert len({digest(None), digest({"action": "drop"}), digest({"action": "drop", "threshold": 0.9})}) == 3


def test_the_teacher_alone_predicts_as_the_teacher():
    config = make_config()
    found = [commands.predict_flags(config, model, "banks") for model in ("teacher", "one", "one_base")]
    assert ["--is-teacher" in text for text in found] == [True, False, False]


def test_options_of_conversations_count_in_the_digest_of_a_card_once_they_are_used(monkeypatch):
    """Cards of students that were made before these options are not written again."""
    monkeypatch.setattr(commands, "digest_of", lambda settings: settings["source"])
    assert not {"targets", "teacher_prompt"} & commands.digest_settings(make_config(), "one").keys()
    used = {"targets": "all", "teacher_prompt": "Think."}
    assert used.items() <= commands.digest_settings(make_config(source=used), "one").items()


def test_quantization_aware_training_is_passed_and_counts_only_if_it_is_on(monkeypatch):
    """Trainings and cards of students that were made before this option are not made again."""
    monkeypatch.setattr(commands, "digest_of", lambda settings: settings["students"]["one"]["train"])
    for value in (None, "int4"):
        config = make_config(students={"one": {"model": "s", "train": {"quantization_aware": value}}})
        assert ("--quantization-aware" in commands.training_flags(config, "one", ["banks"])) == (value is not None)
        assert ("quantization_aware" in commands.digest_settings(config, "one")) == (value is not None)


def test_training_options_are_those_of_the_configuration():
    lora = {"rank": 8, "alpha": 16, "dropout": 0.1, "target": ["q_proj", "v_proj"]}
    train = {"epochs": 2, "precision": "fp16", "eval_steps": 7}
    student = {"model": "owner/s", "method": "jsd", "beta": 0.3, "alpha": 0.9, "teacher_quantization": "int8"}
    students = {"one": student | {"lora": lora, "train": train}}
    teacher = {"model": "owner/t", "adapter": "lora/{category}", "quantization": "nf4"}
    config = make_config(students=students, teacher=teacher)
    text = commands.training_flags(config, "one", ["banks"]) + " " + commands.training_run_flags(config, "one")
    args = parse(train_student, text, "--data", "d", "--out", "o", "--name", "one", "--category", "banks")
    assert (args.model, args.method, args.beta, args.alpha) == ("owner/s", "jsd", 0.3, 0.9)
    assert (args.teacher_model, args.teacher_adapter, args.teacher_quantization) == ("owner/t", ["lora/banks"], "int8")
    assert (args.lora_rank, args.lora_alpha, args.lora_dropout) == (8, 16, 0.1)
    assert args.lora_target == ["q_proj", "v_proj"]
    assert (args.epochs, args.precision, args.eval_steps, args.gradient_checkpointing) == (2, "fp16", 7, True)


@pytest.mark.parametrize("options", [{"alpha": 0.1}, {"temperature": 5.0}, {"beta": 0.2}, {"signal": "topk"}])
def test_seqkd_does_not_depend_on_the_divergence_or_the_teacher(options):
    student = {"model": "owner/s", "method": "seqkd"}
    plain = commands.training_flags(make_config(students={"one": student}), "one", ["banks"])
    other = make_config(students={"one": student | options}, teacher={"model": "owner/other"})
    assert commands.training_flags(other, "one", ["banks"]) == plain
    assert "teacher" not in plain


def parse_training(config, name, categories):
    text = commands.training_flags(config, name, categories)
    data = [f"d/{category}" for category in categories]
    return parse(train_student, text, "--data", *data, "--out", "o", "--name", name, "--category", "c")


def test_students_with_a_cached_signal_get_its_folders():
    topk = {"model": "owner/s", "signal": "topk", "top_k": 16, "teacher_quantization": "int8"}
    students = {"topk": topk, "hidden": {"model": "owner/s", "signal": "hidden", "top_k": 16}}
    config = make_config(students=students, teacher={"model": "owner/t", "adapter": "lora/{category}"})
    args = parse_training(config, "topk", ["banks"])
    assert (args.signal, args.top_k, args.tail_samples) == ("topk", 16, 0)
    assert args.signal_folders == ["artifacts/distill_data/teacher_signal/banks/topk_16_t1_int8"]
    assert (args.teacher_model, args.teacher_quantization) == ("owner/t", "int8")
    args = parse_training(config, "hidden", ["banks"])
    assert args.signal_folders == ["artifacts/distill_data/teacher_signal/banks/hidden"]
    other = {"model": "owner/s", "signal": "hidden", "top_k": 99}
    other = make_config(students={"hidden": other}, teacher={"model": "owner/t", "adapter": "lora/{category}"})
    text = commands.training_flags(config, "hidden", ["banks"])
    assert commands.training_flags(other, "hidden", ["banks"]) == text  # top_k only affects signal topk


def test_pooled_students_get_the_folders_of_all_categories():
    pooled = {"model": "owner/s", "signal": "hidden", "pool": True, "pool_balance": "balanced"}
    config = make_config(students={"one": pooled}, categories=["banks", "funds"])
    args = parse_training(config, "one", ["banks", "funds"])
    folders = [f"artifacts/distill_data/teacher_signal/{category}/hidden" for category in ("banks", "funds")]
    assert (args.pool_balance, args.signal_folders, args.teacher_adapter) == ("balanced", folders, None)
    config = make_config(students={"one": pooled}, teacher={"model": "owner/t", "adapter": "lora/{category}"})
    text = commands.training_flags(config, "one", ["banks", "funds"])
    assert "--teacher-adapter lora/banks lora/funds --" in text
    assert "--teacher-adapter lora/banks --" in commands.training_flags(config, "one", ["banks"])
    assert "pool" not in commands.training_flags(make_config(), "one", ["banks"])


def test_on_policy_options_are_passed_only_with_on_policy_training():
    given = {"on_policy_fraction": 0.5, "on_policy_start": 0.25, "on_policy_steps": 3, "on_policy_temperature": 0.8}
    args = parse_training(make_config(students={"one": {"model": "owner/s"} | given}), "one", ["banks"])
    assert {name: getattr(args, name) for name in given} == given
    assert args.on_policy_max_new_tokens == 256
    plain, other = ({"model": "owner/s", "on_policy_steps": steps} for steps in (3, 4))
    plain, other = (make_config(students={"one": student}) for student in (plain, other))
    assert commands.training_flags(plain, "one", ["banks"]) == commands.training_flags(other, "one", ["banks"])


def test_template_arguments_and_date_reach_every_job_with_a_template():
    arguments, own = {"enable_thinking": False}, {"style": "a b", "budget": 512}
    students = {"one": {"model": "owner/s", "signal": "hidden", "template_arguments": own}}
    teacher = {"model": "owner/t", "template_arguments": arguments}
    config = make_config(teacher=teacher, students=students, template_date="2025-01-31")
    args = parse_training(config, "one", ["banks"])
    assert (args.template_arguments, args.teacher_template_arguments) == (own, arguments)
    run = read_run(args)
    assert (run.template_arguments, run.teacher.template_arguments, run.template_date) == (own, arguments, "2025-01-31")
    settings = list_result_settings(run)
    assert (settings["template_arguments"], settings["teacher"]["template_arguments"]) == (own, arguments)
    assert list_card_settings(run)["template_arguments"] == own
    out = ["--out", "o", "--category", "banks"]
    args = parse(predict_answers, commands.predict_flags(config, "one_base", "banks"), "--test", "t", *out)
    assert (args.template_arguments, args.template_date) == (own, "2025-01-31")
    signal = commands.signal_flags(config, "banks", "hidden")
    for text in (
        commands.generate_flags(config, "banks"),
        commands.judge_flags(config, "banks"),
        commands.predict_flags(config, "teacher", "banks"),
        signal,
    ):
        assert "--template-arguments enable_thinking=false" in text
        assert "--template-date 2025-01-31" in text
    assert "--template-arguments" not in commands.training_flags(make_config(), "one", ["banks"])


def test_a_server_gets_the_template_arguments():
    served = {"model": "m", "engine": "openai", "base_url": "http://h/v1", "template_arguments": {"think": True}}
    students = {"one": {"model": "owner/s", "method": "seqkd"}}
    config = make_config(teacher=served, students=students)
    assert "--template-arguments think=true" in commands.generate_flags(config, "banks")


def test_processes_strategy_and_packing_are_untracked():
    train = {"nodes": 2, "gpus_per_node": 4, "strategy": "fsdp", "fsdp_offload": True, "packing": True}
    plain, other = (make_config(students={"one": {"model": "owner/s", "train": changes}}) for changes in ({}, train))
    tracked = commands.training_flags(other, "one", ["banks"])
    assert tracked == commands.training_flags(plain, "one", ["banks"])
    pace = commands.training_run_flags(other, "one")
    args = parse(train_student, f"{tracked} {pace}", "--data", "d", "--out", "o", "--name", "one", "--category", "c")
    assert (args.strategy, args.fsdp_offload, args.packing) == ("fsdp", True, True)
    # The command that launches the processes has these.
    assert "nodes" not in tracked + pace
    assert "gpus" not in tracked + pace


@pytest.mark.parametrize("train", [{"best_checkpoint": True}, {"early_stopping_patience": 2}])
def test_eval_steps_is_tracked_if_validations_select_the_model(train):
    students = {"one": {"model": "owner/s", "train": train | {"eval_steps": 7, "group_by_length": True}}}
    config = make_config(students=students)
    assert "--eval-steps 7" in commands.training_flags(config, "one", ["banks"])
    assert "--eval-steps" not in commands.training_run_flags(config, "one")
    args = parse_training(config, "one", ["banks"])
    assert args.best_checkpoint == ("best_checkpoint" in train)
    assert args.early_stopping_patience == train.get("early_stopping_patience")
    assert args.group_by_length
    students["one"]["train"] = {"eval_steps": 7}
    config = make_config(students=students)
    assert "--eval-steps" not in commands.training_flags(config, "one", ["banks"])
    assert "--eval-steps 7" in commands.training_run_flags(config, "one")


@pytest.mark.parametrize("runaway", ["warn", "stop"])
def test_what_validation_prompts_are_answered_is_tracked_if_runaway_answers_stop_the_training(runaway):
    student = {"model": "owner/s", "on_policy_fraction": 0.5, "on_policy_runaway": runaway}
    student["train"] = {"validation_samples": 7, "eval_steps": 9}
    config = make_config(students={"one": student}, evaluation={"max_new_tokens": 77})
    tracked, run = commands.training_flags(config, "one", ["banks"]), commands.training_run_flags(config, "one")
    for option in ("--validation-samples 7", "--eval-steps 9", "--validation-max-new-tokens 77"):
        assert (option in tracked, option in run) == (runaway == "stop", runaway == "warn")
    args = parse(train_student, f"{tracked} {run}", "--data", "d", "--out", "o", "--name", "one", "--category", "c")
    assert (args.validation_samples, args.validation_max_new_tokens, args.on_policy_runaway) == (7, 77, runaway)


def test_layers_are_copied_in_the_teachers_dtype():
    teacher = {"model": "owner/t", "adapter": "lora/{category}", "dtype": "float16", "quantization": "int8"}
    copied = {"init": "copy_layers", "layers": 4}
    config = make_config(teacher=teacher, students={"one": {"model": copied}})
    args = parse(copy_layers, commands.copy_flags(config, "banks"), "--layers", "4", "--out", "o")
    assert (args.model, args.adapter, args.dtype) == ("owner/t", "lora/banks", "float16")
    assert parse_training(config, "one", ["banks"]).model == "artifacts/initial_students/4_layers/banks"
    text = commands.predict_flags(config, "one_base", "banks")
    assert "--model artifacts/initial_students/4_layers/banks " in text


def test_signal_options_follow_from_the_signals_name():
    train = {"max_length": 4096}
    students = {
        "one": {"model": "s", "signal": "topk"},
        "two": {"model": "s", "signal": "topk", "temperature": 2, "train": train},
        "exact": {"model": "s", "signal": "hidden", "teacher_quantization": "nf4"},
    }
    teacher = {"model": "owner/t", "adapter": "lora/{category}", "generation": {"batch_size": 5}}
    config = make_config(students=students, teacher=teacher)
    for name, temperature in (("topk_64_t2", 2.0), ("topk_64_t1", 1.0)):
        assert commands.signal_flags(config, "banks", name) == (
            "--template-date 2024-07-26 --model owner/t --adapter lora/banks --dtype bfloat16 --quantization none "
            f"--kind topk --top-k 64 --temperatures {temperature}"
        )
    text = commands.signal_flags(config, "banks", "hidden_nf4")
    assert text.endswith("--quantization nf4 --kind hidden")
    assert commands.signal_run_flags(config, "banks", "hidden_nf4") == "--batch-size 5"
    stored = make_config(students=students, teacher=teacher, signals="/large disk/signals")
    run = commands.signal_run_flags(stored, "banks", "hidden_nf4")
    args = parse(compute_signal, f"{text} {run}", "--data", "d", "--out", "o")
    assert args.store == Path("/large disk/signals/banks/hidden_nf4")
    assert commands.signal_flags(stored, "banks", "hidden_nf4") == text
    assert commands.digest_settings(stored, "one") == commands.digest_settings(config, "one")


def test_generation_options_leave_out_the_batch_size():
    teacher = {"model": "owner/t", "generation": {"temperature": 0.0, "batch_size": 5}}
    text = commands.generate_flags(make_config(teacher=teacher), "banks")
    args = parse(generate_answers, text, "--prompts", "p", "--out", "o", "--stats", "s")
    assert (args.model, args.temperature, args.batch_size) == ("owner/t", 0.0, None)
    assert args.answer_key == "holding_log_delta"


def test_predictions_load_each_model_from_its_folder():
    config = make_config(teacher={"model": "owner/t", "adapter": "lora/{category}", "quantization": "int8"})
    found = {}
    for model in experiment.get_models(config):
        text = commands.predict_flags(config, model, "banks")
        found[model] = parse(predict_answers, text, "--test", "t", "--category", "banks", "--out", "o")
    assert (found["teacher"].model, found["teacher"].adapter) == ("owner/t", "lora/banks")
    assert found["teacher"].quantization == "int8"
    assert (found["one"].model, found["one"].dtype) == ("output/one/banks", "bfloat16")
    assert (found["one_base"].model, found["one_base"].adapter) == ("owner/student", None)
    assert found["one"].temperature == 0.0


def test_a_served_teacher_answers_the_test_prompts_through_its_server():
    server = {"base_url": "http://node7:8000/v1", "api_key_env": "K", "concurrency": 64, "timeout": 9.5}
    teacher = {"model": "qwen", "engine": "openai", **server}
    students = {"one": {"model": "owner/student", "method": "seqkd"}}
    config = make_config(teacher=teacher, students=students)
    moved = make_config(teacher=teacher | {"base_url": "http://node8:1/v1"}, students=students)
    found = {}
    for model in experiment.get_models(config):
        tracked, pace = commands.predict_flags(config, model, "banks"), commands.predict_run_flags(config, model)
        assert commands.predict_flags(moved, model, "banks") == tracked
        found[model] = parse(predict_answers, f"{tracked} {pace}", "--test", "t", "--category", "banks", "--out", "o")
    served = found.pop("teacher")
    assert (served.engine, served.model, served.likelihood) == ("openai", "qwen", False)
    assert {name: getattr(served, name) for name in server} == server
    for args in found.values():
        assert (args.engine, args.base_url, args.likelihood) == ("transformers", None, True)


def test_dtype_of_a_served_teacher_is_untracked():
    teacher = {"model": "qwen", "engine": "openai", "base_url": "http://node7:8000/v1"}
    students = {"one": {"model": "owner/student", "method": "seqkd"}}
    one, other = (make_config(teacher=teacher | {"dtype": name}, students=students) for name in ("float16", "float32"))
    assert commands.generate_flags(one, "banks") == commands.generate_flags(other, "banks")
    assert commands.predict_flags(one, "teacher", "banks") == commands.predict_flags(other, "teacher", "banks")
    flags = f"{commands.generate_flags(one, 'banks')} {commands.generate_run_flags(one)}"
    args = parse(generate_answers, flags, "--prompts", "p", "--out", "o", "--stats", "s")
    assert (args.engine, args.model, args.adapter, args.quantization) == ("openai", "qwen", None, "none")


def test_mix_and_score_options_parse():
    config = make_config()
    args = parse(mix_records, commands.mix_flags(config), "--category", "b", "--grpo", "g", "--sft", "s", "--out", "o")
    assert (args.grpo_fraction, args.sft_fraction, args.seed) == (
        Fraction("0.7"),
        Fraction("0.3"),
        42,
    )
    assert args.label_fields == ["holding_log_delta", "label_log_delta", "label_delta"]
    args = parse(score_predictions, commands.score_flags(config), "--predictions", "p", "--out", "o")
    assert (args.bootstrap, args.seed, args.answer_key) == (1000, 42, "holding_log_delta")


def test_students_of_one_model_and_precision_share_their_base():
    students = {
        "a": {"model": "owner/s"},
        "b": {"model": "owner/s", "method": "seqkd"},
        "c": {"model": "owner/s", "train": {"precision": "fp32"}},
        "d": {"model": "owner/other"},
        "e": {"model": {"init": "copy_layers", "layers": 2}},
        "f": {"model": {"init": "copy_layers", "layers": 2}, "method": "seqkd"},
        "g": {"model": {"init": "copy_layers", "layers": 3}},
    }
    config = make_config(students=students)
    assert experiment.get_sharing_students(config) == ["b", "f"]
    assert experiment.get_first_base(config, "b_base") == "a_base"
    assert experiment.get_first_base(config, "f_base") == "e_base"
    alone = ["teacher", "a", "a_base", "b", "c", "c_base", "d", "d_base", "e", "e_base", "f", "g", "g_base"]
    assert experiment.get_evaluated_models(config) == alone


def test_a_pooled_students_one_model_answers_in_every_category():
    students = {"one": {"model": "owner/s", "pool": True}, "two": {"model": "owner/s"}}
    config = make_config(students=students, categories=["banks", "funds"])
    for category in ("banks", "funds"):
        assert "--model output/one/all " in commands.predict_flags(config, "one", category)
        assert f"--model output/two/{category} " in commands.predict_flags(config, "two", category)
    assert experiment.get_sharing_students(config) == ["two"]


def test_a_source_with_fraction_0_needs_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts/grpo").mkdir(parents=True)
    (tmp_path / "artifacts/grpo/grpo_banks.jsonl").write_text("")
    sft = "artifacts/sft/sft_train_banks.jsonl"
    assert experiment.get_missing_files(make_config()) == {"banks": [sft]}
    assert experiment.get_missing_files(make_config(mix={"sft_fraction": 0})) == {}


def test_greedy_predictions_do_not_depend_on_the_seed():
    one, other = (make_config(evaluation={"seed": seed}) for seed in (1, 2))
    assert commands.predict_flags(one, "one", "banks") == commands.predict_flags(other, "one", "banks")
    one, other = (make_config(evaluation={"seed": seed, "temperature": 0.5}) for seed in (1, 2))
    assert commands.predict_flags(one, "one", "banks") != commands.predict_flags(other, "one", "banks")


VLLM = {
    "model": "owner/t",
    "engine": "vllm",
    "adapter": "lora/{category}",
    "vllm": {
        "arguments": {"max_model_len": 4096, "quantization": "fp8", "gpu_memory_utilization": 0.5},
        "executable": "/opt/vllm",
    },
}
GENERATE = ("--prompts", "p", "--out", "o", "--stats", "s")


def test_a_vllm_server_gets_all_arguments_and_only_what_decides_results_is_tracked():
    config = make_config(teacher=VLLM)
    tracked, untracked = commands.generate_flags(config, "banks"), commands.generate_run_flags(config)
    args = parse(generate_answers, f"{tracked} {untracked}", *GENERATE)
    assert args.vllm_arguments == VLLM["vllm"]["arguments"]
    assert (args.engine, args.adapter, args.vllm_executable) == ("vllm", "lora/banks", "/opt/vllm")
    assert (args.concurrency, args.vllm_server) == (None, None)
    assert "quantization=" in tracked
    assert "max_model_len=" in tracked  # it cuts answers
    assert "gpu_memory_utilization" not in tracked
    assert "/opt" not in tracked


def test_jobs_with_the_teacher_share_a_server_by_purpose():
    config = make_config(teacher=VLLM | {"vllm": VLLM["vllm"] | {"share": True}})
    found = {
        "answers": commands.generate_run_flags(config),
        "signals": commands.signal_run_flags(config, "banks", "topk_64_t2"),
        "predictions": commands.predict_run_flags(config, "teacher"),
        "judgements": commands.judge_run_flags(config),
    }
    assert tuple(found) == experiment.SERVER_PURPOSES
    for purpose, text in found.items():
        assert f"--vllm-server artifacts/vllm/{purpose}.json" in text
    assert "--vllm-server" not in commands.predict_run_flags(config, "one")
    assert "--vllm-server" not in commands.generate_run_flags(make_config(teacher=VLLM))


def test_a_shared_server_has_the_adapters_of_all_categories():
    students = {
        "exact": {"model": "s", "signal": "hidden"},
        "one": {"model": "s", "signal": "topk", "temperature": 1, "top_k": 50},
    }
    config = make_config(teacher=VLLM, students=students)
    for purpose, (has_states, top) in {"answers": (False, 1), "signals": (True, 50)}.items():
        text = commands.serve_flags(config, ["banks", "households"], purpose)
        args = parse(serve_teacher, text, "--out", "o")
        assert args.adapters == ["lora/banks", "lora/households"]
        assert (args.hidden_states, args.top_logprobs) == (has_states, top)
        assert args.vllm_arguments == VLLM["vllm"]["arguments"]


def test_a_training_knows_what_a_server_changes_about_the_signal():
    students = {"exact": {"model": "s", "signal": "hidden"}, "online": {"model": "s", "teacher_quantization": "int8"}}
    config = make_config(teacher=VLLM, students=students)
    assert "--teacher-serving 'engine=\"vllm\"' 'quantization=\"fp8\"'" in commands.training_flags(
        config, "exact", ["banks"]
    )
    assert "--teacher-serving" not in commands.training_flags(config, "online", ["banks"])
    plain = make_config(teacher={"model": "owner/t", "engine": "vllm"}, students=students)
    assert "--teacher-serving" not in commands.training_flags(plain, "exact", ["banks"])


def test_each_category_may_have_a_model_of_its_own_on_a_server():
    teacher = {"model": "q-{category}", "engine": "openai", "base_url": "http://n:1/v1", "tokenizer": "owner/t"}
    students = {"one": {"model": "s", "signal": "topk", "temperature": 1}}
    config = make_config(teacher=teacher, students=students)
    args = parse(generate_answers, commands.generate_flags(config, "banks"), *GENERATE)
    assert (args.model, args.tokenizer) == ("q-banks", "owner/t")
    text = commands.signal_flags(config, "banks", "topk_64_t1")
    assert text == (
        "--template-date 2024-07-26 --model q-banks --tokenizer owner/t --kind topk --top-k 64 --temperatures 1.0 "
        "--engine openai"
    )
    text = commands.training_flags(config, "one", ["banks"])
    assert (
        "--teacher-model q-banks --teacher-tokenizer owner/t --teacher-serving 'engine=\"openai\"' 'weights=\"served\"'"
        in text
    )
    text = commands.predict_flags(config, "teacher", "banks")
    assert "--likelihood" in text
    assert experiment.is_judging(make_config(teacher=teacher, evaluation={"metrics": ["fdistill"]}, students=students))


def test_the_digest_of_a_card_leaves_out_how_a_server_runs():
    def digest(**vllm):
        return commands.digest_settings(make_config(teacher=VLLM | {"vllm": vllm}), "one")

    plain = digest()
    assert plain == digest(start_timeout=5, executable="/opt/vllm", arguments={"gpu_memory_utilization": 0.5})
    assert plain != digest(arguments={"quantization": "fp8"})
    teacher = {"model": "owner/t"}
    without = commands.digest_settings(make_config(teacher=teacher), "one")
    assert without == commands.digest_settings(make_config(teacher=teacher | {"vllm": {"share": True}}), "one")


def test_trackers_are_tracked_by_no_rule_and_reach_the_scripts():
    student = {"model": "owner/s", "signal": "topk"}
    plain = make_config(students={"one": student})
    config = make_config(students={"one": student}, report_to=["tensorboard", "mlflow"], tracking_project="holdings")
    signal = ["banks", "topk_64_t1"]
    for make, names in (
        (commands.generate_flags, ["banks"]),
        (commands.signal_flags, signal),
        (commands.training_flags, ["one", ["banks"]]),
        (commands.digest_settings, ["one"]),
        (commands.card_flags, ["one", "banks"]),
    ):
        assert make(config, *names) == make(plain, *names)
    training = ["--data", "d", "--out", "o", "--name", "one", "--category", "banks"]
    answers, signals = ["--prompts", "p", "--stats", "s", "--out", "o"], ["--data", "d", "--out", "o"]
    for script, tracked, run, names, others in (
        (generate_answers, commands.generate_flags(config, "banks"), commands.generate_run_flags, [], answers),
        (compute_signal, commands.signal_flags(config, *signal), commands.signal_run_flags, signal, signals),
        (
            train_student,
            commands.training_flags(config, "one", ["banks"]),
            commands.training_run_flags,
            ["one"],
            training,
        ),
    ):
        args = parse(script, f"{tracked} {run(config, *names)}", *others)
        assert (args.report_to, args.tracking_project) == (["tensorboard", "mlflow"], "holdings")
        assert parse(script, f"{tracked} {run(plain, *names)}", *others).report_to == []
