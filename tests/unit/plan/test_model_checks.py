"""What the files of local models show before anything runs."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from distill.common.errors import InputError
from distill.common.files import write_json
from distill.models.architectures import UNSUPPORTED
from distill.plan.model_checks import find_model_problems
from distill.plan.schema import check_config


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A configuration with a local teacher and a local student."""
    monkeypatch.chdir(tmp_path)
    for name in ("teacher", "student"):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
        (folder / "vocab.json").write_text("{}")
        weights = {f"model.layers.0.self_attn.{part}_proj.weight": torch.zeros(2, 2) for part in "qkvo"}
        save_file(weights, folder / "model.safetensors")
    settings = {"categories": ["banks"], "teacher": {"model": "models/teacher", "adapter": "adapters/{category}"}}
    return check_config(settings | {"students": {"kd": {"model": "models/student"}}})


def write_adapter(folder, **settings):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings}))


def test_good_models_have_no_problems(config, tmp_path):
    write_adapter(tmp_path / "adapters/banks", target_modules=["q_proj", "gate_proj"])
    assert find_model_problems(config, ["banks"]) == []


@pytest.mark.parametrize("name", ["teacher", "student"])
@pytest.mark.parametrize("nested", [False, True])
def test_an_unsupported_architecture_is_named(config, tmp_path, name, nested):
    settings = {"model_type": "bert"}
    path = tmp_path / f"models/{name}/config.json"
    path.write_text(json.dumps({"model_type": "some_vl", "text_config": settings} if nested else settings))
    (problem,) = find_model_problems(config, ["banks"])
    place = {"teacher": "teacher.model", "student": "students.kd.model"}[name]
    assert problem == f"{place}: models/{name}/config.json: model_type: bert is not supported: {UNSUPPORTED['bert']}"


@pytest.mark.parametrize("place", ["teacher", "student"])
@pytest.mark.parametrize("is_alone", [False, True])
def test_a_chat_template_without_an_argument_is_named(config, tmp_path, place, is_alone):
    folder = tmp_path / "models" / place
    template = "{{ messages }}{% if enable_thinking %}<think>{% endif %}"
    name = "chat_template.jinja" if is_alone else "tokenizer_config.json"
    (folder / name).write_text(template if is_alone else json.dumps({"chat_template": template}))
    settings = config["teacher"] if place == "teacher" else config["students"]["kd"]
    settings["template_arguments"] = {"enable_thinking": False}
    assert find_model_problems(config, ["banks"]) == []
    settings["template_arguments"] = {"enable_thinking": False, "thinking": True}
    (problem,) = find_model_problems(config, ["banks"])
    owner = "teacher" if place == "teacher" else "students.kd"
    expected = "expected variables of the chat template, found 'thinking'"
    assert problem == f"{owner}.template_arguments: models/{place}/{name}: {expected}"


def test_a_tokenizer_without_a_chat_template_is_named(config, tmp_path):
    (tmp_path / "models/student/tokenizer_config.json").write_text("{}")
    (problem,) = find_model_problems(config, ["banks"])
    path = "models/student/tokenizer_config.json"
    assert problem == f"students.kd.model: {path}: chat_template: expected a chat template, found none"
    (tmp_path / "models/student/chat_template.jinja").write_text("{{ messages }}")
    assert find_model_problems(config, ["banks"]) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, None),
        ({"attention_bias": True}, "expected attention_bias False in config.json, found True"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, None),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}},
         "expected rope_type default or linear or yarn in config.json, found 'dynamic'"),
        ({"rope_parameters": {"rope_type": "llama3"}},
         "expected rope_type default or linear or yarn in config.json, found 'llama3'"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 4096, "max_position_embeddings": 32768},
         "expected sliding_window None in config.json, found 4096"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None, "max_position_embeddings": 32768}, None),
        ({"architectures": ["MistralForCausalLM"]}, None),  # the defaults of transformers are not on disk
        ({"architectures": ["Gemma3ForCausalLM"], "num_attention_heads": 4}, None),
    ],
)  # fmt: skip
def test_settings_that_gguf_cannot_hold_are_named(config, tmp_path, settings, message):
    path = "models/student/config.json"
    known = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 2}
    (tmp_path / path).write_text(json.dumps(known | settings))
    config["export"] = {"variants": ["gguf"], "students": None}
    problems = find_model_problems(config, ["banks"])
    expected = f"students.kd.model: {path}: variant gguf: {message}; remove the gguf variants from export.variants"
    assert problems == ([expected] if message else [])


@pytest.mark.parametrize(
    ("place", "quantization", "message"),
    [
        (
            "student",
            "none",
            "students.kd.model: {path}: quantization_config: expected a student with weights that are not",
        ),
        (
            "teacher",
            "int8",
            "teacher.quantization: {path}: expected none, since the weights are quantized already (gptq)",
        ),
        ("teacher", "none", None),
    ],
)
def test_weights_that_are_quantized_already_are_named(config, tmp_path, place, quantization, message):
    path = f"models/{place}/config.json"
    (tmp_path / path).write_text(json.dumps({"model_type": "qwen2", "quantization_config": {"quant_method": "gptq"}}))
    config["teacher"]["quantization"] = quantization
    problems = find_model_problems(config, ["banks"])
    assert len(problems) == bool(message)
    assert not message or problems[0].startswith(message.format(path=path))


def test_quantized_weights_are_neither_quantized_again_nor_copied(config, tmp_path):
    path = "models/teacher/config.json"
    (tmp_path / path).write_text(json.dumps({"model_type": "qwen2", "quantization_config": {"quant_method": "gptq"}}))
    config["students"]["kd"]["teacher_quantization"] = "int8"
    config["students"]["copy"] = config["students"]["kd"] | {"model": {"init": "copy_layers", "layers": 2}}
    config["students"]["copy"]["teacher_quantization"] = None
    expected = "expected none, since the weights are quantized already (gptq)"
    assert find_model_problems(config, ["banks"]) == [
        f"students.kd.teacher_quantization: {path}: {expected}, found int8",
        f"students.copy.model: {path}: expected a teacher with layers to copy, found gptq weights",
    ]


def test_lora_targets_that_fit_nothing_are_named(config):
    targets = ["q_proj", "self_attn.v_proj", "lm_head", "c_attn"]
    lora = config["students"]["kd"]["lora"] = {"target": targets, "dropout": 0.05}
    (problem,) = find_model_problems(config, ["banks"])
    assert problem == "students.kd.lora.target: expected modules of models/student, found none there named 'c_attn'"
    lora["target"] = "all"
    assert find_model_problems(config, ["banks"]) == []


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("mlp.experts.0.up_proj.weight", torch.zeros(2, 2)),
        ("block_sparse_moe.input_linear.weight", torch.zeros(2, 2, 2)),
    ],
)
def test_dropout_for_experts_is_named(config, tmp_path, name, weight):
    lora = config["students"]["kd"]["lora"] = {"target": "all", "dropout": 0.05}
    name = "model.layers.0." + name
    save_file({name: weight}, tmp_path / "models/student/model.safetensors")
    (problem,) = find_model_problems(config, ["banks"])
    expected = "expected 0, since the adapter includes the weights of experts in models/student"
    assert problem == f"students.kd.lora.dropout: {expected} ({name}), found 0.05"
    for change in ({"dropout": 0.0}, {"dropout": 0.05, "target": ["q_proj"]}):
        lora |= change
        assert find_model_problems(config, ["banks"]) == []


def test_a_part_of_a_model_is_a_teacher_only(config, tmp_path):
    for name in ("teacher", "student"):
        (tmp_path / f"models/{name}/config.json").write_text(json.dumps({"model_type": "mllama"}))
    (problem,) = find_model_problems(config, ["banks"])
    reason = "its text part cannot be loaded alone"
    assert problem == f"students.kd.model: models/student/config.json: model_type: mllama is not supported: {reason}"


def test_an_adapter_without_a_module_in_the_model_is_named(config, tmp_path):
    write_adapter(tmp_path / "adapters/banks", target_modules=["query_key_value", "dense"])
    (problem,) = find_model_problems(config, ["banks"])
    place = "teacher.adapter: adapters/banks/adapter_config.json: target_modules"
    expected = "expected modules of models/teacher, found none of them there: dense, query_key_value"
    assert problem == f"{place}: {expected}"


def test_a_model_without_weights_is_named(config, tmp_path):
    (tmp_path / "models/student/model.safetensors").unlink()
    (problem,) = find_model_problems(config, ["banks"])
    assert problem.startswith("students.kd.model: models/student: expected weights (.safetensors, ")


def test_an_adapter_in_the_folder_of_a_model_is_named(config, tmp_path):
    write_json(tmp_path / "models/student/adapter_config.json", {})
    (problem,) = find_model_problems(config, ["banks"])
    expected = "expected a model without an adapter, found adapter_config.json beside config.json"
    assert problem == f"students.kd.model: models/student: {expected}"


def test_a_chat_template_with_a_syntax_error_is_named(config, tmp_path):
    (tmp_path / "models/student/chat_template.jinja").write_text("{% for m in messages %}\n{{ m.content }")
    (problem,) = find_model_problems(config, ["banks"])
    assert problem.startswith("students.kd.model: models/student/chat_template.jinja: chat_template: expected a Jinja ")
    assert problem.endswith("(line 2)")


def test_a_model_without_a_tokenizer_is_named(config, tmp_path):
    (tmp_path / "models/student/vocab.json").unlink()
    (problem,) = find_model_problems(config, ["banks"])
    assert problem.startswith("students.kd.model: models/student: expected a tokenizer (tokenizer.json, ")


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_an_adapter_of_prompts_is_named(config, tmp_path, kind):
    write_adapter(tmp_path / "adapters/banks", peft_type=kind)
    (problem,) = find_model_problems(config, ["banks"])
    path = "adapters/banks/adapter_config.json"
    assert problem == f"teacher.adapter: {path}: peft_type: expected an adapter of weights, such as LORA, found {kind}"


def test_an_activated_adapter_is_named(config, tmp_path):
    write_adapter(tmp_path / "adapters/banks", target_modules=["q_proj"], alora_invocation_tokens=[1])
    (problem,) = find_model_problems(config, ["banks"])
    assert "alora_invocation_tokens: expected none, since the adapter is merged" in problem


@pytest.mark.parametrize(
    ("prefix", "rows", "said"),
    [
        ("model.layers.0", 2, None),
        ("model.language_model.layers.0", 2, "expected weights of modules of models/teacher, found none there named "),
        ("model.layers.0", 3, "self_attn.q_proj: expected 2 rows as in models/teacher, found 3"),
    ],
)
def test_weights_of_an_adapter_that_are_not_the_models_are_named(config, tmp_path, prefix, rows, said):
    folder = tmp_path / "adapters/banks"
    write_adapter(folder, target_modules=["q_proj"])
    name = f"base_model.model.{prefix}.self_attn.q_proj"
    weights = {f"{name}.lora_A.weight": torch.zeros(1, 2), f"{name}.lora_B.weight": torch.zeros(rows, 1)}
    save_file(weights, folder / "adapter_model.safetensors")
    problems = find_model_problems(config, ["banks"])
    assert len(problems) == bool(said)
    assert not said or said in problems[0]


@pytest.mark.parametrize("name", ["adapters/banks/adapter_model.safetensors", "models/teacher/model.safetensors"])
def test_a_file_of_weights_that_was_cut_off_is_named(config, tmp_path, name):
    folder = tmp_path / "adapters/banks"
    write_adapter(folder, target_modules=["q_proj"])
    save_file({"base_model.model.q_proj.lora_B.weight": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{name}: expected "):
        find_model_problems(config, ["banks"])


@pytest.mark.parametrize(
    ("names", "settings"),
    [
        (["model.layers.0.self_attn.q_proj.qweight"], {"quantization_config": {"quant_method": "gptq"}}),
        (["model.layers.0.self_attn.q_proj.weight"], {"quantization_config": {"quant_method": "bitsandbytes"}}),
        (["h.0.attn.c_attn.weight"], {}),
        (["model.layers.0.self_attn.k_proj.weight"], {"text_config": {}}),
        (["model.layers.0.mlp.experts.0.up_proj.weight"], {}),
    ],
    ids=["GPTQ", "packed", "GPT-2", "parts", "experts"],
)
def test_weights_with_other_names_or_shapes_in_the_file_are_left_to_the_job(config, tmp_path, names, settings):
    folder = tmp_path / "adapters/banks"
    write_adapter(folder)
    path = tmp_path / "models/teacher/config.json"
    path.write_text(json.dumps({"model_type": "qwen2"} | settings))
    save_file({name: torch.zeros(7, 1) for name in names}, tmp_path / "models/teacher/model.safetensors")
    weights = {"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": torch.zeros(2, 1)}
    save_file(weights, folder / "adapter_model.safetensors")
    assert find_model_problems(config, ["banks"]) == []


def test_named_chat_templates_are_read(config, tmp_path):
    template = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + \"\\n\" + m['content'] }}{% endfor %}"
    named = [{"name": "default", "template": template}, {"name": "tool_use", "template": template + "{{ tools }}"}]
    (tmp_path / "models/student/tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert find_model_problems(config, ["banks"]) == []


def test_an_adapter_of_a_tied_head_is_fine(config, tmp_path):
    write_adapter(tmp_path / "adapters/banks", target_modules=["lm_head"])
    assert find_model_problems(config, ["banks"]) == []


@pytest.mark.parametrize("targets", ["all-linear", "layers.*q_proj", ["layers.0.self_attn.q_proj"], []])
def test_other_ways_to_name_modules_are_left_to_peft(config, tmp_path, targets):
    write_adapter(tmp_path / "adapters/banks", target_modules=targets)
    assert find_model_problems(config, ["banks"]) == []


@pytest.mark.parametrize(("name", "is_known"), [("Qwen2ForCausalLM", True), ("MambaForCausalLM", False), (None, False)])
@pytest.mark.parametrize("variants", [["full", "gguf_f16"], ["full"]])
def test_a_student_without_a_gguf_layout_is_named(config, tmp_path, name, is_known, variants):
    path = tmp_path / "models/student/config.json"
    path.write_text(json.dumps({"model_type": "qwen2"} | ({"architectures": [name]} if name else {})))
    config["export"] = {"variants": variants, "students": None}
    problems = find_model_problems(config, ["banks"])
    if is_known or "gguf_f16" not in variants:
        assert problems == []
    else:
        (problem,) = problems
        assert problem.startswith(
            "students.kd.model: models/student/config.json: architectures: expected Qwen2ForCausalLM"
        )
        assert problem.endswith(f"for the variant gguf_f16, found {name or 'none'}")


def write_tokenizer(folder, tokens, added=()):
    vocabulary = {token: index for index, token in enumerate(tokens)}
    extra = [{"content": token, "id": len(tokens) + index} for index, token in enumerate(added)]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": extra}))


@pytest.mark.parametrize(("tokens", "is_shared"), [("abcde", True), ("abcdefgh", True), ("abdce", False)])
@pytest.mark.parametrize("method", ["forward_kl", "seqkd"])
def test_a_student_with_another_tokenizer_is_named(config, tmp_path, tokens, is_shared, method):
    config["students"]["kd"]["method"] = method
    write_tokenizer(tmp_path / "models/teacher", "abcde", added="fg")
    write_tokenizer(tmp_path / "models/student", tokens, added="" if "f" in tokens else "fg")
    problems = find_model_problems(config, ["banks"])
    if is_shared or method == "seqkd":
        assert problems == []
    else:
        (problem,) = problems
        assert problem.startswith("students.kd.model: teacher (models/teacher) and student (models/student) must have")
        assert "2 of 7 token ids stand for different tokens, first 2 ('c' and 'd')" in problem
        assert "set cross_tokenizer: true" in problem


@pytest.mark.parametrize(("tokens", "is_shared"), [("abcde", True), ("abdce", False)])
def test_a_tokenizer_that_does_not_differ_is_named(config, tmp_path, tokens, is_shared):
    config["students"]["kd"]["cross_tokenizer"] = True
    write_tokenizer(tmp_path / "models/teacher", "abcde", added="fg")
    write_tokenizer(tmp_path / "models/student", tokens, added="fg")
    problems = find_model_problems(config, ["banks"])
    if not is_shared:
        assert problems == []
    else:
        (problem,) = problems
        assert problem.startswith("students.kd.cross_tokenizer: expected cross_tokenizer: false, since teacher")
        assert "have the same tokenizer: all of their 7 shared token ids stand for the same tokens" in problem


def test_the_teacher_of_every_category_is_checked(config, tmp_path):
    shutil.copytree(tmp_path / "models/teacher", tmp_path / "models/other")
    config["teachers"] = {"funds": config["teacher"] | {"model": "models/other"}}
    for name, tokens in (("teacher", "abcde"), ("student", "abcde"), ("other", "abdce")):
        write_tokenizer(tmp_path / "models" / name, tokens)
    assert find_model_problems(config, ["banks"]) == []
    (tmp_path / "models/other/config.json").write_text(json.dumps({"model_type": "bert"}))
    write_adapter(tmp_path / "adapters/funds", peft_type="P_TUNING")
    problems = find_model_problems(config, ["banks", "funds"])
    for part in (
        f"teachers.funds.model: models/other/config.json: model_type: bert is not supported: {UNSUPPORTED['bert']}",
        "students.kd.model: teacher (models/other) and student (models/student) must have the same tokenizer: 2 of 5",
        "teachers.funds.adapter: adapters/funds/adapter_config.json: peft_type: expected an adapter of weights",
    ):
        assert sum(problem.startswith(part) for problem in problems) == 1
    assert len(problems) == 3


def test_a_student_of_the_teachers_layers_has_its_tokenizer(config, tmp_path):
    config["students"]["copied"] = config["students"]["kd"] | {"model": {"layers": 1}}
    write_tokenizer(tmp_path / "models/teacher", "abcde")
    write_tokenizer(tmp_path / "models/student", "abcde")
    assert find_model_problems(config, ["banks"]) == []


def test_a_broken_config_is_named(config, tmp_path):
    (tmp_path / "models/student/config.json").write_text("{")
    with pytest.raises(InputError, match="models/student/config.json: expected a JSON object"):
        find_model_problems(config, ["banks"])


def test_hub_ids_and_models_of_a_server_are_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"categories": ["banks"], "students": {"kd": {"model": "owner/student", "method": "seqkd"}}}
    server = {"model": "name", "engine": "openai", "base_url": "http://localhost:1/v1"}
    for teacher in ({"model": "owner/teacher"}, server):
        assert find_model_problems(check_config(settings | {"teacher": teacher}), ["banks"]) == []
