"""The registry of export variants: a made-up entry is found everywhere, and editing the registry retrains nothing."""

import shutil

import pytest
from model_cards import make_config, write_card
from running import ROOT

import export_model as export_script
import write_model_card
from distill.common.digest import code_digest
from distill.common.errors import InputError
from distill.common.quantization_schemes import SCHEMES
from distill.common.variants import (
    FULL,
    VARIANTS,
    Variant,
    get_evaluated_name,
    get_variant,
    is_base,
    list_suffixes,
    split_name,
)
from distill.export.export_model import WRITERS
from distill.export.serving import find_variant, list_servers
from distill.plan import experiment
from distill.plan.config_reference import render_schema, render_section

SCRIPTS = ROOT / "workflow/scripts"


@pytest.fixture
def made_up(monkeypatch):
    """A variant `bits8` in a file of its own."""
    variant = Variant(
        "Weights in 8-bit floating point.",
        weights_file="model.bin",
        largest_distance=0.5,
        library="eight",
        load_code="import eight",
        servers=("eight {weights} --on {port} --as {name} {modelfile}",),
    )
    monkeypatch.setitem(VARIANTS, "bits8", variant)
    return variant


def test_every_variant_has_a_writer():
    assert WRITERS.keys() == VARIANTS.keys()


def test_names_of_evaluated_models():
    rounded = [scheme.variant for scheme in SCHEMES.values()]
    assert rounded == ["w4a16", "w8a16", "nvfp4a16"]
    assert list_suffixes() == ["base", "nf4", "int8", "gptq", "fp8", "gguf", "gguf_f16", "gguf_q4_k_m", *rounded]
    assert split_name("kd_nf4") == ("kd", "nf4")
    assert split_name("kd_gguf_f16") == ("kd", "gguf_f16")
    assert split_name("kd_gguf_q4_k_m") == ("kd", "gguf_q4_k_m")
    assert split_name("kd_f16") == ("kd_f16", None)
    assert split_name("kd_full") == ("kd_full", None)
    assert split_name("_nf4") == ("_nf4", None)
    assert is_base("kd_base")
    assert not is_base("kd")
    assert [get_variant(name) for name in ("kd", "kd_base", "teacher", "kd_int8")] == [None, None, None, "int8"]
    assert [get_evaluated_name("kd", name) for name in VARIANTS] == [
        "kd",
        "kd_nf4",
        "kd_int8",
        "kd_gptq",
        "kd_fp8",
        "kd_gguf",
        "kd_gguf_f16",
        "kd_gguf_q4_k_m",
        *(f"kd_{name}" for name in rounded),
    ]


def test_a_made_up_variant_names_models_and_reserves_its_suffix(made_up):
    assert list_suffixes()[-1] == "bits8"
    assert split_name("kd_bits8") == ("kd", "bits8")
    assert get_variant("kd_bits8") == "bits8"
    config = make_config(export={"variants": ["full", "bits8"]})
    assert experiment.get_models(config) == ["teacher", "kd", "kd_base", "kd_bits8"]
    assert "output/export/kd/banks/bits8/model.bin" in experiment.get_made_files(config, "output/export/kd/banks/bits8")
    with pytest.raises(InputError, match="students.other_bits8: expected another name, reserved are .*_bits8"):
        make_config(students={"other_bits8": {"model": "owner/student"}})


def test_a_made_up_variant_is_a_choice_of_configuration_and_command_lines(made_up, capsys):
    assert "`bits8`: Weights in 8-bit floating point." in render_section("export")
    assert "- bits8\n" in render_schema()
    given = ["--student", "student", "--out", "out", "--variant"]
    assert export_script.parse_args([*given, "bits8"]).variant == "bits8"
    for script in (export_script, write_model_card):
        with pytest.raises(SystemExit):
            script.parse_args([*given, "fp16"])
        assert "bits8" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        export_script.parse_args(["--help"])
    assert "bits8: Weights in 8-bit floating point." in capsys.readouterr().out


def test_a_made_up_variant_has_card_and_commands(made_up, tmp_path):
    card = write_card(tmp_path, make_config(), "bits8")
    data = card.data.to_dict()
    assert (data["library_name"], data["tags"]) == ("eight", ["distillation", "stillhouse", "bits8"])
    assert "Weights in 8-bit floating point." in card.text
    assert "```python\nimport eight\n```" in card.text
    assert "eight FOLDER/model.bin --on 8000 --as student 'FROM FOLDER/model.bin'" in card.text
    assert "transformers serve" not in card.text
    assert list_servers(made_up, "/out put/kd/banks/bits8", 80) == [
        "eight '/out put/kd/banks/bits8/model.bin' --on 80 --as kd-banks 'FROM /out put/kd/banks/bits8/model.bin'"
    ]


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["model.gguf"], "gguf"),
        (["model.safetensors"], FULL),
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json"], FULL),
        (["model.gguf", "model.safetensors"], FULL),
        (["pytorch_model.bin"], FULL),
        ([], FULL),
    ],
)
def test_the_variant_of_a_folder_is_known_by_its_weights(tmp_path, files, name):
    with pytest.raises(InputError, match="expected a model folder, found no config.json in it"):
        find_variant(str(tmp_path))
    for file in ["config.json", *files]:
        (tmp_path / file).touch()
    assert find_variant(str(tmp_path)) is VARIANTS[name]


def test_editing_the_registry_retrains_nothing(tmp_path):
    copy = shutil.copytree(SCRIPTS, tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    with open(copy / "distill/common/variants.py", "a", encoding="utf-8") as file:
        file.write("\nVARIANTS['bits8'] = VARIANTS['nf4']\n")

    def is_changed(script):
        return code_digest(copy / script) != code_digest(SCRIPTS / script)

    kept = ("generate_answers.py", "compute_signal.py", "train_student.py", "predict_answers.py", "judge_answers.py")
    assert not any(map(is_changed, kept))
    assert all(map(is_changed, ("export_model.py", "write_model_card.py")))
