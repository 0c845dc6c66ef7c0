"""Task files of lm-evaluation-harness for tests, which need no network."""

import json

QUESTIONS = [
    {"question": f"What is {number} plus 1?", "choices": [str(number + 1), str(number + 2), "none"], "answer": 0}
    for number in range(12)
]
CHOICE = """\
task: plus_one
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/questions.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
GENERATED = """\
task: plus_one_text
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/questions.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
TEXTS = """\
task: plus_one_likelihood
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/questions.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}]
"""
GROUP = """\
group: plus
task: [plus_one, plus_one_text]
aggregate_metric_list:
  - {metric: acc, aggregation: mean, weight_by_size: true}
"""


def write_tasks(folder):
    """Write three tasks and a group into a folder; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(question) + "\n" for question in QUESTIONS)
    (folder / "questions.jsonl").write_text(text, encoding="utf-8")
    for name, text in (("choice", CHOICE), ("generated", GENERATED), ("texts", TEXTS), ("group", GROUP)):
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)), encoding="utf-8")
    return folder
