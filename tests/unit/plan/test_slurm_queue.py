"""The queue below the status table, from the output of squeue."""

from distill.plan.status import find_directory, render_queue, select_jobs

QUEUE = """\
12|PENDING|0:00||Resources|{here}|rule_generate_answers_wildcards_banks_2-of-8
9|RUNNING|1:05:02|n1|None|{here}|rule_train_student_wildcards_student_kd_banks
101|RUNNING|0:20|n2|None|{here}/|rule_evaluate_banks_predict_answers_score_predictions
13|RUNNING|0:20|n2|None|{elsewhere}|rule_train_student_wildcards_student_kd_banks
14|RUNNING|0:20|n2|None|{here}|(null)
"""


def test_jobs_of_the_working_directory_are_listed_running_ones_first(tmp_path):
    queue = QUEUE.format(here=tmp_path, elsewhere=tmp_path / "other")
    lines = render_queue(select_jobs(queue, str(tmp_path))).splitlines()
    assert lines[0] == "Slurm: 2 running, 1 pending"
    assert [line.split(maxsplit=4) for line in lines[1:]] == [
        ["9", "running", "n1", "1:05:02", "train_student: student_kd_banks"],
        ["101", "running", "n2", "0:20", "evaluate_banks_predict_answers_score_predictions"],
        ["12", "pending", "Resources", "0:00", "generate_answers: banks_2-of-8"],
    ]


def test_a_link_to_the_working_directory_is_the_same(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    queue = f"1|RUNNING|0:01|n1|None|{tmp_path / 'link'}|rule_mix_records_wildcards_banks\n"
    assert len(select_jobs(queue, str(tmp_path / "real"))) == 1


def test_an_empty_queue_is_not_shown():
    assert render_queue(select_jobs("", "/work")) == ""


def test_the_working_directory_is_read_off_a_dry_run():
    assert find_directory("SNAKEMAKE\n  Run directory: /a\n  Working directory: /b c\n") == "/b c"
    assert find_directory("Building DAG of jobs...\n") is None
