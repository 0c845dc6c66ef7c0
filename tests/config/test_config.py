"""The configuration: examples that hold, defaults, every kind of error, and a README in step with the schema."""

import copy
import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from running import merge

import write_config_reference
from distill.common.errors import InputError
from distill.common.options import option
from distill.common.variants import list_suffixes
from distill.generation.engine import ENGINES
from distill.plan import settings
from distill.plan.config_reference import render_schema, update_reference
from distill.plan.schema import (
    check_config,
    describe_allowed,
    format_place,
    format_value,
    load_schema,
    walk_schema,
)
from distill.plan.settings import NAME_PATTERN
from distill.records.source_formats import SOURCE_FORMATS
from distill.student.divergences import METHODS

CONFIG = Path(__file__).resolve().parents[2] / "config"
EXAMPLES = sorted(CONFIG.glob("*.yaml"))


def make_config(text: str = "") -> dict:
    """The smallest configuration, with changes given as YAML (mappings are merged, all else is replaced)."""
    config = {"categories": ["banks"], "teacher": {"model": "t"}, "students": {"kd": {"model": "s"}}}
    return merge(config, yaml.safe_load(text) or {})


def get_problems(text: str) -> dict[str, str]:
    """Place → message of each problem of the smallest configuration with these changes."""
    with pytest.raises(InputError) as error:
        check_config(make_config(text))
    first, *lines = str(error.value).split("\n")
    assert first == f"{len(lines)} problem{'s' if len(lines) > 1 else ''} in the configuration:"
    return dict(line.strip().split(": ", 1) for line in lines)


def test_the_default_configuration_only_needs_another_engine_for_vllm():
    config = yaml.safe_load((CONFIG / "config.yaml").read_text(encoding="utf-8"))
    config["teacher"]["engine"] = "vllm"
    assert check_config(config)["teacher"]["vllm"]["nodes"] == 1


def test_a_date_needs_no_quotes():
    assert check_config(make_config("template_date: 2025-01-31"))["template_date"] == "2025-01-31"
    assert "found '31.1.2025'" in get_problems("template_date: 31.1.2025")["template_date"]
    assert "expected a date, found 2025-02-30" in get_problems("template_date: '2025-02-30'")["template_date"]


def test_template_arguments_are_plain_values():
    arguments = {"enable_thinking": False, "budget": 5}
    text = "teacher: {template_arguments: {enable_thinking: false, budget: 5}}"
    assert check_config(make_config(text))["teacher"]["template_arguments"] == arguments
    found = get_problems("teacher: {template_arguments: {nested: {a: 1}}}")
    assert "expected text | true | false | an integer | a number" in found["teacher.template_arguments.nested"]
    assert (
        "a mapping of names to text" in get_problems("teacher: {template_arguments: 1}")["teacher.template_arguments"]
    )


def get_leaves() -> dict[str, dict]:
    """Place → schema of every key that holds a value."""
    return {
        format_place(place): schema
        for place, schema in walk_schema(load_schema())
        if "properties" not in schema and "properties" not in (schema.get("additionalProperties") or {})
    }


def test_schema_is_a_schema_and_closed():
    Draft202012Validator.check_schema(load_schema())
    for place, schema in [((), load_schema()), *walk_schema(load_schema())]:
        if "properties" in schema:
            assert schema["additionalProperties"] is False, place


def test_every_key_has_a_description_and_a_default_or_is_required():
    model = "students.NAME.model"
    required = {"categories", "teacher.model", f"{model}.init", f"{model}.layers"}
    required |= {"mix_targets.teacher", "mix_targets.original"}
    required |= {"evaluation.pairwise.base_url", "evaluation.pairwise.model"}
    for place, schema in get_leaves().items():
        assert schema["description"], place
        assert ("default" in schema) != (place in required), place


def test_defaults_are_valid():
    filled = check_config(make_config("demo: {}\nexport: {}\nnear_duplicates: {}\nstudents: {kd: {lora: {}}}"))
    assert check_config(filled) == filled


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(path):
    check_config(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_holdings_experiment_says_what_the_defaults_say():
    written = yaml.safe_load((CONFIG / "config.yaml").read_text(encoding="utf-8"))
    # Two settings of its own: so that teacher and student fit a 40 GB card together.
    own = {"teacher_quantization": "int8", "train": {"optimizer": "adamw_bnb_8bit"}}
    smallest = {
        "categories": written["categories"],
        "teacher": {"model": "Qwen/Qwen2.5-7B-Instruct"},
        "students": {"student_kd": {"model": "Qwen/Qwen1.5-1.8B-Chat", **own}},
    }
    assert check_config(written) == check_config(smallest)


def test_defaults_are_filled_in_and_the_given_config_is_left_alone():
    config = make_config("students: {kd: {lora: {rank: 8}, train: {epochs: 1}}}")
    before = copy.deepcopy(config)
    filled = check_config(config)
    assert config == before
    assert filled["mix"] == {"grpo_fraction": 0.7, "sft_fraction": 0.3, "seed": 42}
    assert filled["device"] == "auto"
    assert filled["teacher"]["generation"]["top_k"] == 0
    assert filled["students"]["kd"]["lora"] == {"rank": 8, "alpha": 128, "dropout": 0.05, "target": "all"}
    assert filled["students"]["kd"]["train"]["epochs"] == 1
    assert filled["students"]["kd"]["train"]["learning_rate"] == 5e-5
    assert "demo" not in filled
    filled["answer"]["label_fields"].append("x")
    filled["evaluation"]["metrics"].clear()
    assert check_config(config)["answer"]["label_fields"] == ["holding_log_delta", "label_log_delta", "label_delta"]
    assert check_config(config)["evaluation"]["metrics"] == ["bleu", "rouge", "ppl", "answer"]


def test_whole_floats_become_integers_where_integers_are_meant():
    filled = check_config(
        make_config("students: {kd: {train: {batch_size: 4.0, epochs: 1.5}}}\nmix: {grpo_fraction: 1.0}")
    )
    assert repr(filled["students"]["kd"]["train"]["batch_size"]) == "4"
    assert filled["students"]["kd"]["train"]["epochs"] == 1.5
    assert repr(filled["mix"]["grpo_fraction"]) == "1.0"


def test_no_answer_contract():
    assert check_config(make_config("answer: null"))["answer"] == {"key": None, "label_fields": []}
    assert check_config(make_config("answer: {key: null, label_fields: []}"))["answer"]["key"] is None


COPIED = "{init: copy_layers, layers: 2}"
ADAPTERS = "{teacher: {adapter: 'a/{category}'}, students: {kd: {SETTINGS}}}"
VLLM = "{teacher: {engine: vllm, generation: {max_new_tokens: 8}, vllm: {arguments: {max_model_len: 64}}}}"
TOKENS = (
    "{teacher: {engine: openai, base_url: http://s/v1, tokenizer: t}, students: {kd: {signal: topk, temperature: 1}}}"
)
SERVED = "{teacher: {engine: openai, base_url: http://s/v1}, students: {kd: {method: seqkd}}}"

ERRORS = [
    # unknown keys
    ("teacher: {adaptor: x}", "teacher.adaptor", "unknown key (value 'x'), expected one of model, adapter,"),
    ("teacher: {adaptor: x}", "teacher.adaptor", "; did you mean adapter?"),
    ("epochs: 3", "epochs", "; epochs belongs under students.NAME.train"),
    ("students: {kd: {epochs: 3}}", "students.kd.epochs", "; epochs belongs under students.NAME.train"),
    (
        "students: {kd: {learning_rat: 1.0}}",
        "students.kd.learning_rat",
        "; did you mean students.NAME.train.learning_rate?",
    ),
    ("students: {kd: {train: {learning_rat: 1.0}}}", "students.kd.train.learning_rat", "; did you mean learning_rate?"),
    ("near_duplicates: {threshold: 0.3}", "near_duplicates.threshold", "a number >= 0.5 and <= 1, found 0.3"),
    ("near_duplicates: {action: remove}", "near_duplicates.action", "expected report | drop, found 'remove'"),
    ("mix: {zzz: 3}", "mix.zzz", "unknown key (value 3), expected one of grpo_fraction, sft_fraction, seed"),
    ("targets: {teacher: 0.7}", "targets", "unknown key"),
    # missing and empty
    ("students: {b: {}}", "students.b.model", "missing, expected text that is not empty"),
    ("students: null", "students", "expected a mapping of keys, found None"),
    ("categories: []", "categories", "expected at least 1, found []"),
    ("mix: null", "mix", "(the key has no value: remove it to use the defaults)"),
    ("teacher: {model: ''}", "teacher.model", "expected text that is not empty, found ''"),
    ("answer: {label_fields: []}", "answer.label_fields", "expected at least one field name, since answer.key is set"),
    # not in this version
    ("source: {format: parquet}", "source.format", f"expected {' | '.join(SOURCE_FORMATS)}, found 'parquet'"),
    ("teacher: {engine: tgi}", "teacher.engine", f"expected {' | '.join(ENGINES)}, found 'tgi'"),
    ("teacher: {shards: 0}", "teacher.shards", "expected an integer >= 1, found 0"),
    ("students: {kd: {signal: cached}}", "students.kd.signal", "expected online | hidden | topk, found 'cached'"),
    ("students: {kd: {top_k: 0}}", "students.kd.top_k", "expected an integer >= 1, found 0"),
    # the teacher's settings beside each other
    (SERVED.replace("base_url: http://s/v1", "base_url: null"), "teacher.base_url", "http://… or https://…"),
    (SERVED.replace("http://s/v1", "localhost:8000"), "teacher.base_url", "found 'localhost:8000'"),
    (
        SERVED.replace("http://s/v1", "'http://'"),
        "teacher.base_url",
        "expected an address like http://localhost:8000/v1",
    ),
    (SERVED.replace("http://s/v1", "'http://a b/v1'"), "teacher.base_url", "expected an address like http://localhost"),
    (SERVED.replace("http://s/v1", "'http://s:port/v1'"), "teacher.base_url", "expected an address like http://"),
    (SERVED.replace("engine: openai, ", ""), "teacher.base_url", "expected engine openai where base_url is set"),
    (SERVED.replace("engine", "overlong: skip, engine"), "teacher.overlong", "expected error with engine openai"),
    ("teacher: {api_key_env: 'my key'}", "teacher.api_key_env", "expected text that matches ^[A-Za-z_][A-Za-z0-9_]*$"),
    ("teacher: {api_key_env: ''}", "teacher.api_key_env", "expected text that matches ^[A-Za-z_][A-Za-z0-9_]*$"),
    (SERVED.replace("engine", "adapter: a, engine"), "teacher.adapter", "the server loads the model, found 'a'"),
    (SERVED.replace("engine", "quantization: nf4, engine"), "teacher.quantization", "expected none with engine openai"),
    (SERVED.replace("seqkd", "jsd"), "students.kd.method", "expected seqkd with engine openai"),
    (SERVED.replace("seqkd", "forward_kl, signal: topk"), "students.kd.method", "expected seqkd with engine openai"),
    (SERVED.replace("seqkd", f"seqkd, model: {COPIED}"), "students.kd.model", "expected a hub id or local folder with"),
    (SERVED, "", None),
    (SERVED.replace("engine", "model: 'qwen-{category}', engine"), "", None),
    (SERVED.replace("engine", "model: 'qwen-{name}', engine"), "teacher.model", "expected {category} as the only"),
    ("teacher: {model: 'qwen-{category}'}", "teacher.model", "expected no placeholder"),
    # servers that say how likely tokens are
    (TOKENS, "", None),
    (TOKENS.replace("tokenizer: t", "tokenizer: null"), "students.kd.method", "with teacher.tokenizer, signal topk"),
    (TOKENS.replace("topk", "hidden"), "students.kd.signal", "expected topk with engine openai, found hidden"),
    (TOKENS.replace("topk", "online"), "students.kd.signal", "expected topk with engine openai, found online"),
    (
        TOKENS.replace("topk", "topk, tail_samples: 8"),
        "students.kd.tail_samples",
        "expected 0 with engine openai, whose server gives the most likely tokens alone; use a larger top_k, found 8",
    ),
    (
        TOKENS.replace("temperature: 1", "temperature: 2"),
        "students.kd.temperature",
        "expected 1 with signal topk and engine openai, whose server gives log-probabilities at 1 alone, found 2",
    ),
    (
        TOKENS.replace("tokenizer", "model: 'q-{category}', tokenizer").replace("signal", "pool: true, signal"),
        "",
        None,
    ),
    (
        "teacher: {tokenizer: t}",
        "teacher.tokenizer",
        "expected null with engine transformers, which reads the tokenizer",
    ),
    # a vLLM server of the job's own
    (VLLM, "", None),
    (VLLM.replace("engine", "quantization: int8, engine"), "teacher.quantization", "has quantizations of its own"),
    (VLLM.replace("max_model_len", "max-model-len"), "teacher.vllm.arguments.max-model-len", "with underscores"),
    (VLLM.replace("max_model_len", "served_model_name"), "teacher.vllm.arguments.served_model_name", "sets this one"),
    (VLLM.replace("vllm: {", "vllm: {nodes: 2, "), "teacher.vllm.nodes", "expected a divisor of tensor_parallel_size"),
    (
        VLLM.replace("vllm: {arguments: {", "vllm: {share: true, nodes: 2, arguments: {tensor_parallel_size: 2, "),
        "teacher.vllm.share",
        "expected false with 2 nodes",
    ),
    (VLLM.replace("vllm: {", "vllm: {nodes: 0, "), "teacher.vllm.nodes", "expected an integer >= 1, found 0"),
    (
        VLLM.replace("max_model_len: 64", "tensor_parallel_size: 2.5"),
        "teacher.vllm.arguments.tensor_parallel_size",
        "expected a whole number >= 1, found 2.5",
    ),
    (
        VLLM.replace("max_model_len", "served_model"),
        "teacher.vllm.arguments.served_model",
        "expected a whole name such as",
    ),
    (VLLM.replace("max_model_len: 64", "config: serve.yaml"), "teacher.vllm.arguments.config", "sets this one itself"),
    (
        VLLM.replace("max_new_tokens: 8", "max_new_tokens: 64"),
        "teacher.vllm.arguments.max_model_len",
        "expected more than generation.max_new_tokens (64), found 64",
    ),
    (TOKENS.replace("tokenizer: t", "tokenizer: 'hf:owner/t'"), "teacher.tokenizer", "without hf:"),
    (
        "{teacher: {engine: vllm}, students: {kd: {signal: topk, temperature: 2}}}",
        "students.kd.temperature",
        "whose server gives log-probabilities at 1 alone; use signal hidden, found 2",
    ),
    (
        "{teacher: {engine: vllm}, students: {kd: {signal: topk, temperature: 1, tail_samples: 8}}}",
        "students.kd.tail_samples",
        "expected 0 with engine vllm",
    ),
    ("students: {kd: {signal: topk, tail_samples: 8}}", "", None),
    ("students: {kd: {method: seqkd, signal: hidden, tail_samples: 8}}", "", None),
    ("students: {kd: {signal: topk, tail_samples: -1}}", "students.kd.tail_samples", "expected an integer >= 0"),
    ("students: {kd: {tail_samples: 8}}", "students.kd.tail_samples", "than topk, which alone has sampled tokens"),
    (
        "students: {kd: {signal: topk, method: jsd, tail_samples: 8}}",
        "students.kd.tail_samples",
        "expected 0 with method jsd: a sampled tail is unbiased for forward_kl only, found 8",
    ),
    (
        "{teacher: {engine: vllm}, students: {kd: {signal: hidden, teacher_quantization: int8}}}",
        "students.kd.teacher_quantization",
        "expected null with engine vllm and signal hidden: the server quantizes, found int8",
    ),
    (
        "{teacher: {engine: vllm, vllm: {nodes: 2, arguments: {pipeline_parallel_size: 2}}}, "
        "students: {kd: {signal: hidden}}}",
        "students.kd.signal",
        "expected topk with pipeline_parallel_size over several nodes",
    ),
    ("{teacher: {engine: vllm}, students: {kd: {signal: online, teacher_quantization: int8}}}", "", None),
    (
        "teacher: {samples: 2, generation: {temperature: 0}}",
        "teacher.samples",
        "(greedy decoding repeats the same answer), found 2",
    ),
    ("teacher: {retries: 1, generation: {temperature: 0}}", "teacher.retries", "expected 0, since generation.temper"),
    ("{answer: null, teacher: {retries: 1}}", "teacher.retries", "expected 0, since answer.key is null"),
    ("{answer: null, teacher: {keep: best}}", "teacher.keep", "expected all, since answer.key is null"),
    ("teacher: {samples: 3, retries: 2, keep: best}", "", None),
    # teachers of categories
    ("teachers: {bank: {model: o}}", "teachers.bank", "of the categories (banks), found bank; did you mean banks?"),
    ("teachers: {banks: {modle: o}}", "teachers.banks.modle", "did you mean model?"),
    ("teachers: {banks: {model: 3}}", "teachers.banks.model", "expected text that is not empty, found 3"),
    ("teachers: {banks: {shards: 2}}", "teachers.banks.shards", "(teacher.shards), found 2"),
    ("teachers: {banks: {model: 'a{b}'}}", "teachers.banks.model", "expected no placeholder, found 'a{b}'"),
    (
        "{teacher: {adapter: lora}, teachers: {banks: {model: o}}}",
        "teachers.banks.adapter",
        "missing, expected the adapter of o or null, since lora belongs to t",
    ),
    ("{teacher: {adapter: lora}, teachers: {banks: {model: o, adapter: null}}}", "", None),
    ("{teacher: {adapter: 'lora/{category}'}, teachers: {banks: {model: o}}}", "", None),
    (
        "{teachers: {banks: {engine: openai}}, students: {kd: {method: seqkd}}}",
        "teachers.banks.base_url",
        "expected the server's address",
    ),
    (
        "{teacher: {engine: vllm, vllm: {share: true}}, teachers: {banks: {vllm: {share: false}}}}",
        "teacher.vllm.share",
        "expected false with `teachers`",
    ),
    (
        "{categories: [banks, funds], teachers: {funds: {engine: openai, base_url: http://s/v1}}}",
        "students.kd.method",
        "expected seqkd with engine openai, which returns answers but no distributions; with teacher.tokenizer, signal "
        "topk, found forward_kl (with teachers.funds)",
    ),
    # a common teacher that no category uses may be incomplete
    ("{teacher: {engine: openai}, teachers: {banks: {engine: transformers}}}", "", None),
    (
        "{teachers: {banks: {model: o}}, students: {kd: {pool: true, signal: online}}}",
        "students.kd.signal",
        "expected hidden | topk with pool: true and `teachers` that differ",
    ),
    ("{teachers: {banks: {generation: {seed: 1}}}, students: {kd: {pool: true, signal: online}}}", "", None),
    (
        f"{{teachers: {{banks: {{model: o}}}}, students: {{kd: {{pool: true, signal: topk, model: {COPIED}}}}}}}",
        "students.kd.model",
        "no single teacher can be copied",
    ),
    (
        "{categories: [banks, funds], teachers: {funds: {quantization: nf4}}, "
        "students: {kd: {teacher_quantization: int8}}}",
        "students.kd.teacher_quantization",
        "expected null where the quantizations of `teachers` differ",
    ),
    # values
    ("device: gpu", "device", "expected auto | cpu | cuda, found 'gpu'"),
    ("mix: {grpo_fraction: 1.2}", "mix.grpo_fraction", "expected a number >= 0 and <= 1, found 1.2"),
    ("mix: {seed: -1}", "mix.seed", "expected an integer >= 0 and <= 4294967295, found -1"),
    ("mix: {seed: 1.5}", "mix.seed", "expected an integer >= 0"),
    ("mix: {seed: true}", "mix.seed", "expected an integer >= 0 and <= 4294967295, found True"),
    (
        "teacher: {generation: {batch_size: 0}}",
        "teacher.generation.batch_size",
        "expected an integer >= 1 | auto, found 0",
    ),
    ("teacher: {generation: {batch_size: big}}", "teacher.generation.batch_size", "expected an integer >= 1 | auto"),
    ("teacher: {generation: {top_p: 0}}", "teacher.generation.top_p", "expected a number > 0 and <= 1, found 0"),
    ("teacher: {generation: {top_p: .nan}}", "teacher.generation.top_p", "expected a finite number, found nan"),
    ("students: {kd: {alpha: -.inf}}", "students.kd.alpha", "expected a finite number, found -inf"),
    (
        "students: {kd: {method: kl}}",
        "students.kd.method",
        f"expected {' | '.join(METHODS)}, found 'kl'",
    ),
    (
        "students: {kd: {teacher_quantization: int4}}",
        "students.kd.teacher_quantization",
        "expected null | none | int8 | nf4",
    ),
    (
        "students: {kd: {lora: {target: most}}}",
        "students.kd.lora.target",
        "expected all | a list of text that is not empty",
    ),
    ("students: {kd: {lora: {target: []}}}", "students.kd.lora.target", "expected at least 1, found []"),
    (
        "students: {kd: {lora: 64}}",
        "students.kd.lora",
        "expected the keys rank, alpha, dropout, target | null, found 64",
    ),
    (
        "students: {kd: {train: {eval_steps: 0}}}",
        "students.kd.train.eval_steps",
        "expected an integer >= 1 | null, found 0",
    ),
    (
        "evaluation: {metrics: [bleu, rougeL]}",
        "evaluation.metrics[1]",
        "expected answer | ppl | pairwise | bleu | chrf | rouge | fdistill | shape, found 'rougeL'",
    ),
    ("evaluation: {metrics: [bleu, bleu]}", "evaluation.metrics", "expected each value once"),
    (
        "evaluation: {metrics: bleu}",
        "evaluation.metrics",
        "expected a list of answer, ppl, pairwise, bleu, chrf, rouge, fdistill, shape, found 'bleu'",
    ),
    (
        "teacher: {model: 'hf:Qwen'}",
        "teacher.model",
        "expected hf:OWNER/NAME | modelscope:OWNER/NAME, optionally with @REVISION",
    ),
    ("teacher: {adapter: 'hg:a/lora-{category}'}", "teacher.adapter", "expected hf:OWNER/NAME | modelscope:OWNER/NAME"),
    ("students: {kd: {model: 'hf:a/b/c'}}", "students.kd.model", "optionally with @REVISION, found 'hf:a/b/c'"),
    ("evaluation: {questions: [Why]}", "evaluation.system", "expected text, since evaluation.questions is set"),
    (
        "evaluation: {metrics: [pairwise]}",
        "evaluation.pairwise",
        "expected the judge of the metrics pairwise: at least",
    ),
    ("evaluation: {pairwise: {model: m}}", "evaluation.pairwise.base_url", "missing, expected text"),
    (
        "evaluation: {pairwise: {base_url: 'ftp://h/v1', model: m}}",
        "evaluation.pairwise.base_url",
        "expected an address like http://localhost:8000/v1, found 'ftp://h/v1'",
    ),
    (
        "evaluation: {pairwise: {base_url: 'http://h/v1', model: m, against: kd_bse}}",
        "evaluation.pairwise.against",
        "expected an evaluated model, one of teacher, kd, kd_base, found kd_bse; did you mean kd_base?",
    ),
    (
        "evaluation: {pairwise: {base_url: 'http://h/v1', model: m, against: kd}}\n"
        "students: {kd: {model: s, train: {seeds: [1, 2]}}}",
        "evaluation.pairwise.against",
        "kd-seed1, kd-seed2, kd_base, found kd; did you mean kd-seed1?",
    ),
    (
        "evaluation: {pairwise: {base_url: 'http://h/v1', model: m, against: kd_gguf}}\n"
        "export: {variants: [full, nf4]}",
        "evaluation.pairwise.against",
        "one of teacher, kd, kd_base, kd_nf4, found kd_gguf",
    ),
    (
        "evaluation: {pairwise: {base_url: 'http://h/v1', model: m, max_tokens: 9}}",
        "evaluation.pairwise.max_tokens",
        "did you mean max_new_tokens?",
    ),
    ("evaluation: {questions: [Why, Why], system: s}", "evaluation.questions", "expected each value once"),
    # what YAML makes of it
    ("students: {kd: {train: {learning_rate: 5e-5}}}", "students.kd.train.learning_rate", "text: write 5.0e-5)"),
    ("students: {kd: {train: {learning_rate: 5.e-5}}}", "students.kd.train.learning_rate", None),
    ("students: {kd: {train: {learning_rate: 1E5}}}", "students.kd.train.learning_rate", "text: write 1.0e+5)"),
    ("students: {kd: {train: {epochs: '3'}}}", "students.kd.train.epochs", "(text: write 3 without quotes)"),
    ("teacher: {quantization: off}", "teacher.quantization", "found False (YAML 1.1 reads yes, no, on and off as"),
    (
        "teacher: {adapter: None}",
        "teacher.adapter",
        "expected a path | null, found 'None' (the empty value in YAML is null)",
    ),
    ("categories: [2020]", "categories[0]", '(a number: write "2020" in quotes)'),
    ("2020: x", "2020", "expected text as a key, found 2020 (put it in quotes)"),
    ("students: {no: {model: s}}", "students.False", "expected text as a key, found False (put it in quotes)"),
    # names
    ("categories: [banks, banks]", "categories", "expected each value once"),
    (
        "categories: [banks, 'a b']",
        "categories[1]",
        "expected text that matches ^[A-Za-z0-9][A-Za-z0-9_-]*$, found 'a b'",
    ),
    ("categories: [../banks]", "categories[0]", "expected text that matches"),
    ('categories: ["banks\\n"]', "categories[0]", "expected text that matches"),
    ("categories: [all]", "categories[0]", "expected another name, all is reserved"),
    (
        "students: {teacher: {model: s}}",
        "students.teacher",
        "expected another name, reserved are evaluation, export, report, teacher",
    ),
    ("students: {report: {model: s}}", "students.report", "expected another name"),
    ("students: {kd_base: {model: s}}", "students.kd_base", "expected another name"),
    ("students: {kd_gguf: {model: s}}", "students.kd_gguf", f"names that end in _{', _'.join(list_suffixes())}"),
    ("students: {kd-seed1: {model: s}}", "students.kd-seed1", "names that end in -seed and a number are those of rep"),
    (
        "students: {kd: {train: {seed: 1, seeds: [2, 3]}}}",
        "students.kd.train.seeds",
        "expected no seeds beside seed, found [2, 3] and 1: remove one of both keys",
    ),
    ("students: {kd: {train: {seed: 42, seeds: null}}}", "", None),
    ("students: {kd: {train: {seeds: [1, 2, 1]}}}", "students.kd.train.seeds", "expected each value once"),
    ("students: {kd: {train: {seeds: []}}}", "students.kd.train.seeds", "expected at least 1, found []"),
    (
        "students: {kd: {train: {seeds: [-1]}}}",
        "students.kd.train.seeds[0]",
        "expected an integer >= 0 and <= 4294967295",
    ),
    (
        "students: {kd: {train: {seeds: 3}}}",
        "students.kd.train.seeds",
        "expected a list of an integer >= 0 and <= 4294967295 | null",
    ),
    (
        "export: {}\nstudents: {kd: {train: {seeds: [1, 2]}}}",
        "export.students",
        "since kd has several seeds, found null: choose among kd-seed1, kd-seed2",
    ),
    ("export: {}\nstudents: {kd: {train: {seeds: [1]}}}", "", None),
    ("export: {students: [kd-seed2]}\nstudents: {kd: {train: {seeds: [1, 2]}}}", "", None),
    (
        "export: {students: [kd]}\nstudents: {kd: {train: {seeds: [1, 2]}}}",
        "export.students[0]",
        "expected one of kd-seed1, kd-seed2, found kd",
    ),
    ("export: {students: [other]}", "export.students[0]", "expected one of kd, found other"),
    ("export: {push_to: 'o/{student}-{category}-{variant}'}", "", None),
    ("export: {push_to: model}", "export.push_to", "expected text that matches ^[^/]+/[^/]+$"),
    (
        "export: {push_to: 'o/{model}'}",
        "export.push_to",
        "expected no other names in braces than {student}, {category}, {variant}, found o/{model}",
    ),
    ("export: {push_to: 'o/{student'}", "export.push_to", "expected no other names in braces than {student}"),
    ("export: {push_to: 'o/{student.x}'}", "export.push_to", "expected no other names in braces than {student}"),
    ("export: {push_to: 'o/a--{student}'}", "export.push_to", "expected a name without --, .. and .git at its end"),
    ("export: {push_to: 'o/my {student}'}", "export.push_to", "expected OWNER/NAME of letters, digits, dots, hyphens"),
    ("export: {}", "", None),
    ("export: {variants: []}", "export.variants", "expected at least 1, found []"),
    (
        "export: {variants: [q4]}",
        "export.variants[0]",
        "expected full | nf4 | int8 | gptq | fp8 | gguf | gguf_f16 | gguf_q4_k_m | w4a16 | w8a16 | nvfp4a16, found",
    ),
    ("export: {language: [English]}", "export.language[0]", "expected text that matches ^[a-z]{2,3}$"),
    (
        "export: [full]",
        "export",
        "expected the keys variants, students, license, datasets, language, calibration_records, quantizer, push_to",
    ),
    ("students: {a.b: {model: s}}", "students.a.b", "expected a name that matches"),
    # paths
    ("source: {grpo: a.jsonl}", "source.grpo", "expected a path that contains {category}, found 'a.jsonl'"),
    ("source: {sft: 'a_{cat}.jsonl'}", "source.sft", "expected {category} as the only placeholder"),
    ("teacher: {adapter: 'a/{student}'}", "teacher.adapter", "expected {category} as the only placeholder"),
    ("teacher: {model: 'a/{category}'}", "teacher.model", "expected no placeholder"),
    ("source: {grpo: 'a/{category}', sft: 'a/{category}'}", "source.sft", "expected another file than source.grpo"),
    # students that are text or a mapping
    (f"students: {{kd: {{model: {COPIED}}}}}", "", None),
    ("students: {b: {model: null}}", "students.b.model", "expected text that is not empty | the keys init, layers, f"),
    ("students: {b: {model: null}}", "students.b.model", "layers, found None"),
    ("students: {b: {model: [s]}}", "students.b.model", "expected text that is not empty | the keys init, layers, f"),
    ("students: {b: {model: ''}}", "students.b.model", "expected text that is not empty | the keys init, layers, f"),
    ("students: {b: {model: 7}}", "students.b.model", '(a number: write "7" in quotes)'),
    ("students: {b: {model: 'a/{category}'}}", "students.b.model", "expected no placeholder"),
    ("students: {b: {model: {layers: 3}}}", "students.b.model.init", "missing, expected copy_layers"),
    ("students: {b: {model: {init: copy_layers}}}", "students.b.model.layers", "missing, expected an integer >= 1"),
    ("students: {b: {model: {init: copy, layers: 3}}}", "students.b.model.init", "expected copy_layers, found 'copy'"),
    (
        "students: {b: {model: {init: copy_layers, layers: 0}}}",
        "students.b.model.layers",
        "expected an integer >= 1, found 0",
    ),
    (
        "students: {b: {model: {init: copy_layers, layer: 3, layers: 3}}}",
        "students.b.model.layer",
        "expected one of init, layers; did you mean layers?",
    ),
    # a student's settings beside each other
    ("students: {kd: {cross_tokenizer: true}}", "", None),
    ("students: {kd: {cross_tokenizer: yes please}}", "students.kd.cross_tokenizer", "expected true | false"),
    (
        "students: {kd: {cross_tokenizer: true, method: seqkd}}",
        "students.kd.cross_tokenizer",
        "expected false with method seqkd, which works across tokenizers by itself, found true",
    ),
    (
        "students: {kd: {cross_tokenizer: true, on_policy_fraction: 0.5}}",
        "students.kd.cross_tokenizer",
        "expected false with on_policy_fraction above 0",
    ),
    (
        "students: {kd: {cross_tokenizer: true, model: {init: copy_layers, layers: 2}}}",
        "students.kd.cross_tokenizer",
        "expected false with a copy of the teacher's layers",
    ),
    ("students: {kd: {on_policy_fraction: 0.5}}", "", None),
    (
        "students: {kd: {on_policy_fraction: 0.5, method: seqkd}}",
        "students.kd.on_policy_fraction",
        "expected 0 with method seqkd",
    ),
    (
        "students: {kd: {on_policy_fraction: 1, signal: hidden}}",
        "students.kd.on_policy_fraction",
        "expected 0 with signal hidden: only a teacher in memory (online) can score new answers, found 1",
    ),
    (
        "students: {kd: {on_policy_start: 0.25}}",
        "students.kd.on_policy_start",
        "expected 0 without on_policy_fraction, found 0.25; set on_policy_fraction above 0",
    ),
    (
        "students: {kd: {on_policy_runaway: stop}}",
        "students.kd.on_policy_runaway",
        "expected warn without on_policy_fraction, found stop; set on_policy_fraction above 0",
    ),
    ("students: {kd: {on_policy_fraction: 0.5, on_policy_runaway: stop}}", "", None),
    (
        "students: {kd: {on_policy_fraction: 0.5, on_policy_runaway: stop, train: {validation_samples: 0}}}",
        "students.kd.on_policy_runaway",
        "expected warn, since train.validation_samples is 0 (no prompts are answered during the training), found stop",
    ),
    (
        "{split: {val_fraction: 0}, students: {kd: {on_policy_fraction: 0.5, on_policy_runaway: stop}}}",
        "students.kd.on_policy_runaway",
        "expected warn, since split.val_fraction is 0",
    ),
    ("students: {kd: {on_policy_fraction: 0.5, on_policy_start: 1}}", "students.kd.on_policy_start", "expected a numb"),
    ("students: {kd: {on_policy_fraction: 2}}", "students.kd.on_policy_fraction", "expected a number >= 0 and <= 1"),
    ("students: {kd: {on_policy_temperature: 0}}", "students.kd.on_policy_temperature", "expected a number > 0"),
    ("students: {kd: {pool_balance: balanced}}", "students.kd.pool_balance", "expected proportional without pool: tru"),
    ("students: {kd: {pool: true, pool_balance: balanced}}", "", None),
    ("students: {kd: {pool: 'yes'}}", "students.kd.pool", "expected true | false, found 'yes'"),
    ("{teacher: {adapter: a}, students: {kd: {pool: true}}}", "", None),
    (
        ADAPTERS.replace("SETTINGS", "pool: true"),
        "students.kd.signal",
        "expected hidden | topk with pool: true and a te",
    ),
    (ADAPTERS.replace("SETTINGS", "pool: true, signal: topk"), "", None),
    (ADAPTERS.replace("SETTINGS", "pool: true, method: seqkd"), "", None),
    (
        ADAPTERS.replace("SETTINGS", f"pool: true, signal: topk, model: {COPIED}"),
        "students.kd.model",
        "(no single teacher can be copied)",
    ),
    (ADAPTERS.replace("SETTINGS", f"model: {COPIED}"), "", None),
    (
        "{split: {val_fraction: 0}, students: {kd: {train: {best_checkpoint: true}}}}",
        "students.kd.train.best_checkpoint",
        "expected false, since split.val_fraction is 0 (there is no validation loss), found True",
    ),
    (
        "{split: {val_fraction: 0}, students: {kd: {train: {early_stopping_patience: 2}}}}",
        "students.kd.train.early_stopping_patience",
        "expected null, since split.val_fraction is 0",
    ),
    ("students: {kd: {train: {best_checkpoint: true, early_stopping_patience: 2}}}", "", None),
    (
        "students: {kd: {train: {early_stopping_patience: 0}}}",
        "students.kd.train.early_stopping_patience",
        "expected an integer >= 1 | null, found 0",
    ),
    ("students: {kd: {train: {nodes: 2, strategy: fsdp, fsdp_offload: true}}}", "", None),
    ("students: {kd: {train: {nodes: 2}, on_policy_fraction: 0.5}}", "", None),
    ("students: {kd: {train: {nodes: 0}}}", "students.kd.train.nodes", "expected an integer >= 1, found 0"),
    ("students: {kd: {train: {nodes: 2, gpus_per_node: 8}}}", "", None),
    (
        "students: {kd: {train: {gpus_per_node: 0}}}",
        "students.kd.train.gpus_per_node",
        "expected an integer >= 1, found 0",
    ),
    (
        "students: {kd: {train: {fsdp_offload: true}}}",
        "students.kd.train.fsdp_offload",
        "expected false with strategy ddp, which does not shard the weights, found true",
    ),
    (
        "students: {kd: {train: {strategy: fsdp, optimizer: adamw_bnb_8bit}}}",
        "students.kd.train.optimizer",
        "expected adamw_torch | adamw_torch_fused | adafactor with strategy fsdp",
    ),
    (
        "students: {kd: {train: {quantization_aware: int3}}}",
        "students.kd.train.quantization_aware",
        "expected null | int4 | int8 | nvfp4, found 'int3'",
    ),
    (
        "students: {kd: {lora: {}, train: {quantization_aware: int4}}}",
        "students.kd.train.quantization_aware",
        "expected null with lora, since the weights below an adapter are not trained, found int4; set lora: null",
    ),
    (
        "students: {kd: {train: {quantization_aware: nvfp4, strategy: fsdp}}}",
        "students.kd.train.quantization_aware",
        "expected null with strategy fsdp, which shards the groups of weights, found nvfp4; set strategy: ddp",
    ),
    ("students: {kd: {method: seqkd}, two: {model: 'output/kd/{category}'}}", "", None),
    ("students: {kd: {method: seqkd}, two: {model: output/kd/banks, pool: true}}", "", None),
    ("students: {kd: {pool: true}, two: {model: output/kd/all, pool: true}}", "", None),
    ("students: {kd: {train: {seeds: [1, 2]}}, two: {model: 'output/kd-seed2/{category}'}}", "", None),
    (
        "students: {kd: {model: 'output/kd/{category}'}}",
        "students.kd.model",
        "expected a student that is trained before this one, found output/kd/{category} (kd → kd)",
    ),
    (
        "students: {kd: {model: 'output/two/{category}'}, two: {model: 'output/kd/banks'}}",
        "students.kd.model",
        "expected a student that is trained before this one, found output/two/{category} (kd → two → kd)",
    ),
    (
        "students: {kd: {train: {seeds: [1, 2]}}, two: {model: 'output/kd/{category}'}}",
        "students.two.model",
        "expected output/kd-seed1/{category} | output/kd-seed2/{category}, found output/kd/{category}",
    ),
    (
        "students: {kd: {method: seqkd}, two: {model: output/kd/all}}",
        "students.two.model",
        "expected output/kd/{category}, found output/kd/all",
    ),
    (
        "students: {kd: {method: seqkd}, two: {model: 'output/kd/{category}', pool: true}}",
        "students.two.model",
        "expected a student with pool: true or another model, since two is pooled and kd has a model for each category",
    ),
    (
        "students: {kd: {method: seqkd}, two: {model: 'output/other/{category}'}}",
        "students.two.model",
        "expected no placeholder, found 'output/other/{category}'",
    ),
    (
        "students: {kd: {train: {strategy: fsdp}, on_policy_fraction: 0.5}}",
        "students.kd.on_policy_fraction",
        "expected 0 with train.strategy fsdp",
    ),
    # values that do not fit together
    (
        "split: {val_fraction: 0.5, test_fraction: 0.5}",
        "split.val_fraction",
        "below 1, found 0.5 + 0.5: no training records remain",
    ),
    ("mix: {grpo_fraction: 0, sft_fraction: 0}", "mix", "expected grpo_fraction or sft_fraction above 0"),
    (
        "demo: {teacher: {vocab_size: 512}}",
        "demo.teacher.vocab_size",
        "expected at least tokenizer_size (1024), found 512",
    ),
]


@pytest.mark.parametrize(
    ("text", "place", "said"), ERRORS, ids=[f"{place}-{i}" for i, (_, place, _) in enumerate(ERRORS)]
)
def test_error(text, place, said):
    if said is None:
        check_config(make_config(text))
        return
    problems = get_problems(text)
    assert list(problems) == [place]
    assert said in problems[place]


@pytest.mark.parametrize(
    "base_url",
    ["http://me:sesame@s/v1", "http://sesame@s/v1", "me:sesame@s/v1", "http://s/v1?key=sesame", "http://s/v1#sesame"],
)
def test_a_secret_in_the_servers_address_is_refused_and_not_shown(base_url):
    problems = get_problems(SERVED.replace("http://s/v1", f"'{base_url}'"))
    assert list(problems) == ["teacher.base_url"]
    assert "found one with user, password, query or fragment" in problems["teacher.base_url"]
    assert "sesame" not in problems["teacher.base_url"]


def test_a_key_in_the_place_of_its_variable_is_not_shown():
    problems = get_problems("teacher: {api_key_env: sk-sesame}")
    assert "found something else (not shown: it may be a secret)" in problems["teacher.api_key_env"]
    assert "sesame" not in problems["teacher.api_key_env"]


def test_all_errors_are_listed_at_once_however_many():
    text = (
        "{"
        + ", ".join(f"wrong{i}: {i}" for i in range(40))
        + ", mix: {seed: x, zzz: 1}, categories: [all], students: {a_base: {}}}"
    )
    problems = get_problems(text)
    assert len(problems) == 40 + 5
    assert {"mix.seed", "mix.zzz", "categories[0]", "students.a_base", "students.a_base.model"} <= set(problems)


@pytest.mark.parametrize(
    "config", [None, [], {}, "text", {"teacher": 3, "students": [1], "categories": "banks", "mix": []}]
)
def test_anything_is_answered_with_a_list_of_problems(config):
    with pytest.raises(InputError, match="in the configuration:"):
        check_config(config)


def test_name_pattern_is_one_for_schema_and_wildcards():
    assert load_schema()["properties"]["categories"]["items"]["pattern"] == f"^{NAME_PATTERN}$"
    for name in ("banks", "pension_funds", "a-b", "7b"):
        assert re.fullmatch(NAME_PATTERN, name)
    for name in ("", "_a", "a/b", "a.b", "a b", "ä"):
        assert not re.fullmatch(NAME_PATTERN, name)


def read_table(text: str) -> dict[str, list[str]]:
    """Key → the other cells of its row, of all tables of config/README.md that explain keys."""
    rows = [line.strip("| ").split(" | ") for line in text.split("\n") if line.startswith("| `")]
    return {cells[0].strip("`"): cells[1:] for cells in rows if not cells[0].endswith(".yaml`")}


def test_readme_explains_exactly_the_keys_of_the_schema():
    leaves = get_leaves()
    table = read_table((CONFIG / "README.md").read_text(encoding="utf-8"))
    groups = {"students.NAME.lora", "students.NAME.model", "teachers", "mix_targets", "near_duplicates"}
    groups |= {"export", "answer", "evaluation.pairwise"}
    assert set(table) == set(leaves) | groups
    for place, (default, allowed, meaning, when) in table.items():
        schema = leaves.get(place) or {format_place(p): s for p, s in walk_schema(load_schema())}[place]
        assert default == (f"`{format_value(schema['default'])}`" if "default" in schema else "required"), place
        assert allowed == describe_allowed(schema).replace(" | ", " or "), place
        assert meaning == schema["description"], place
        assert when, place


def test_the_reference_is_up_to_date():
    """After a change run `python workflow/scripts/write_config_reference.py`."""
    text = (CONFIG / "README.md").read_text(encoding="utf-8")
    assert update_reference(text) == text


def test_the_exported_schema_checks_the_examples(tmp_path):
    shutil.copy(CONFIG / "README.md", tmp_path)
    write_config_reference.main(["--readme", str(tmp_path / "README.md"), "--schema", str(tmp_path / "schema.yaml")])
    schema = yaml.safe_load((tmp_path / "schema.yaml").read_text(encoding="utf-8"))
    for path in EXAMPLES:
        Draft202012Validator(schema).validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert not Draft202012Validator(schema).is_valid({"categories": [], "teacher": {"model": "t"}, "students": {}})


def test_a_changed_option_changes_the_reference(monkeypatch):
    """So that the test above can fail."""
    text = (CONFIG / "README.md").read_text(encoding="utf-8")
    field = next(one for one in dataclasses.fields(settings.Source) if one.name == "missing")
    other = option("What happens.", "stop", choices=("stop", "wait"))
    monkeypatch.setattr(field, "metadata", other.metadata)
    assert "| `source.missing` | `skip` | stop or wait | What happens. | — |" in update_reference(text)
    assert "What happens." in render_schema()


def test_every_description_is_a_sentence():
    for place, schema in walk_schema(load_schema()):
        if place[-1] != "NAME":
            assert schema["description"][0].isupper() or schema["description"][0] == "`", place
            assert schema["description"].endswith("."), place


def test_readme_names_every_example():
    text = (CONFIG / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES:
        assert f"`{path.name}`" in text


@pytest.mark.parametrize("path", ["a/{category}{.jsonl", "a/{category}}.jsonl", "a/{category}/{"])
def test_unbalanced_braces_are_told_of(path):
    with pytest.raises(InputError, match="source.grpo"):
        check_config(make_config(f"source: {{grpo: '{path}'}}"))


ALPACA = "source: {format: alpaca, path: 'data/{category}.json', system: Be brief.}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source: {format: alpaca, system: Be brief.}", "source.path: expected text, since source.format is alpaca"),
        ("source: {format: alpaca, path: 'd/{category}.json'}", "source.system: expected text"),
        (
            "categories: [a, b]\nsource: {format: alpaca, path: d.json, system: x}",
            "source.path: expected a path that contains {category}",
        ),
        (
            "mix_targets: {teacher: 0.7, original: 0.3}",
            "mix_targets: expected null: only source.format alpaca | prompt_",
        ),
        (ALPACA + "\nmix_targets: {teacher: 0.7, original: 0.2}", "mix_targets: expected shares that sum to 1"),
        (ALPACA + "\nmix_targets: {teacher: 0.7}", "original"),
        (ALPACA.replace("{", "{targets: all, ", 1), "source.targets: expected last: records of source.format alpaca"),
        (ALPACA + "\ndemo: {}", "demo: expected no demo models with source.format alpaca: they train on SFT records"),
    ],
)
def test_what_alpaca_needs_and_what_needs_alpaca(text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        check_config(make_config(text))
    check_config(make_config(ALPACA + "\nmix_targets: {teacher: 0.7, original: 0.3}"))
    check_config(make_config("source: {format: alpaca, path: d.json, system: x}"))  # a single category


@pytest.mark.parametrize("text", ["a\ud83d b", "a\0b"], ids=ascii)
def test_texts_that_a_command_line_cannot_hold_are_named(text):
    config = {"categories": ["banks"], "teacher": {"model": "m/t"}, "students": {"kd": {"model": "m/s"}}}
    source = {"format": "alpaca", "path": "q_{category}.json", "system": text}
    with pytest.raises(InputError, match=r"source.system: expected text without null characters and lone surrogates"):
        check_config(config | {"source": source})
