"""A training run as typed options: what its model card lists, and what its checkpoints are named after."""

import pytest

import train_student
from distill.student.student_run import list_card_settings, list_result_settings, read_run

ARGV = ["--data", "d", "--out", "o", "--name", "n", "--category", "c", "--model", "m", "--method", "seqkd"]


@pytest.mark.parametrize(
    ("options", "counts"),
    [([], False), (["--best-checkpoint"], True), (["--early-stopping-patience", "2"], True)],
)
def test_the_validation_interval_counts_if_validations_choose_the_model(options, counts):
    run = read_run(train_student.parse_args([*ARGV, "--eval-steps", "7", *options]))
    assert ("eval_steps" in list_card_settings(run)) == counts
    assert ("eval_steps" in list_result_settings(run)["train"]) == counts


@pytest.mark.parametrize("runaway", ["warn", "stop"])
def test_the_validation_prompts_count_if_runaway_answers_stop_the_training(runaway):
    options = ["--on-policy-fraction", "0.5", "--teacher-model", "t", "--on-policy-runaway", runaway]
    argv = [*ARGV[:-1], "jsd", "--eval-steps", "7", *options]
    run = read_run(train_student.parse_args(argv))
    for name in ("eval_steps", "validation_samples"):
        assert (name in list_card_settings(run)) == (runaway == "stop")
        assert (name in list_result_settings(run)["train"]) == (runaway == "stop")
    assert ("validation_max_new_tokens" in list_result_settings(run)) == (runaway == "stop")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--on-policy-start", "0.5"], "need --on-policy-fraction"),
        (["--on-policy-runaway", "stop"], "need --on-policy-fraction"),
        (
            ["--on-policy-runaway", "stop", "--on-policy-fraction", "1", "--validation-samples", "0"],
            "--on-policy-runaway stop needs --validation-samples",
        ),
    ],
)
def test_options_of_on_policy_training_that_do_nothing_alone_are_refused(options, text, capsys):
    with pytest.raises(SystemExit):
        train_student.parse_args([*ARGV[:-1], "jsd", "--teacher-model", "t", *options])
    assert text in capsys.readouterr().err
