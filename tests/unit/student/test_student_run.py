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
