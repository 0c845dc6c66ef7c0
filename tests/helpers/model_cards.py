"""Write the model card of an exported student with the script, from made-up scores."""

from huggingface_hub import ModelCard
from metrics_files import write_metrics

import write_model_card
from distill.plan import command_lines as commands
from distill.plan.schema import check_config
from distill.student.model_card import TrainingFacts, render_card

FACTS = {"base_model": "owner/student", "teachers": ["owner/teacher"], "method": "jsd", "train_records": 90}
FACTS |= {
    "val_records": 10,
    "options": {"beta": 0.3},
    "final": {"steps": 7, "loss": 0.5},
    "warnings": ["The student reads <think>."],
}


def make_config(student=None, export=None, **changes):
    config = {"categories": ["banks"], "teacher": {"model": "owner/teacher"}, "export": export or {}}
    return check_config(config | {"students": {"kd": {"model": "owner/student"} | (student or {})}} | changes)


def write_card(folder, config, variant="gguf"):
    training = folder / "training.md"
    training.write_text(render_card("kd", "banks", TrainingFacts(**FACTS)), encoding="utf-8")
    figures = {"teacher": 30.0, "kd": 25.0, "kd_base": 2.0, "kd_gguf": 24.5}
    files = [write_metrics(folder, name, "banks", bleu=(value, (value - 1, value + 1), 20), ppl=(2.0, (1.5, 3.0), 20))
             for name, value in figures.items()]  # fmt: skip
    options = commands.card_flags(config, "kd", "banks").split()
    given = ["--variant", variant, "--training", str(training), "--metrics", *map(str, files)]
    write_model_card.main([*given, *options, "--out", str(folder / "README.md")])
    return ModelCard.load(folder / "README.md")
