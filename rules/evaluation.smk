rule predict_answers:
    input:
        multiext(
            "artifacts/distill_data/processed/{category}/",
            test="test.jsonl",
            test_source="test.source",
            test_target="test.target",
        ),
        model=get_predicting_files,
    output:
        predictions="output/evaluation/{model}/{category}.predictions.jsonl",
    log:
        "logs/predict_answers/{model}/{category}.log",
    benchmark:
        "logs/predict_answers/{model}/{category}.benchmark.tsv"
    wildcard_constraints:
        model="|".join(experiment.get_evaluated_models(config)),
    conda:
        "../envs/torch.yaml"
    threads: get_asking_threads
    resources:
        gpu=get_asking_gpus,
        group_slots=1,
        mem_mb=32000,
        runtime=240,
    params:
        script=get_script("predict_answers"),
        code=get_code("predict_answers"),
        models=get_predicting_digests,
        options=get_predict_options,
        pace=get_predict_pace,
        device=Untracked(config["device"]),
    shell:
        "python {params.script} --test {input.test:q} --category {wildcards.category} {params.options}"
        " {params.pace} --device {params.device} --out {output.predictions:q} > {log:q} 2>&1"


# Fixed questions, to be read side by side.
rule answer_questions:
    input:
        model=get_predicting_files,
    output:
        answers="output/evaluation/{model}/{category}.questions.jsonl",
    log:
        "logs/answer_questions/{model}/{category}.log",
    benchmark:
        "logs/answer_questions/{model}/{category}.benchmark.tsv"
    wildcard_constraints:
        model="|".join(experiment.get_evaluated_models(config)),
    conda:
        "../envs/torch.yaml"
    threads: get_asking_threads
    resources:
        gpu=get_asking_gpus,
        group_slots=1,
        mem_mb=32000,
        runtime=60,
    params:
        script=get_script("answer_questions"),
        code=get_code("answer_questions"),
        models=get_predicting_digests,
        options=get_question_options,
        pace=get_predict_pace,
        device=Untracked(config["device"]),
    shell:
        "python {params.script} --category {wildcards.category} {params.options} {params.pace}"
        " --device {params.device} --out {output.answers:q} > {log:q} 2>&1"


# How likely the teacher finds the answers of all models: it is loaded once for them.
rule judge_answers:
    input:
        predictions=expand(
            "output/evaluation/{model}/{category}.predictions.jsonl",
            model=experiment.get_models(config),
            allow_missing=True,
        ),
        teacher=get_teacher_files,
    output:
        judged="output/evaluation/teacher/{category}.judged.jsonl",
    log:
        "logs/judge_answers/{category}.log",
    benchmark:
        "logs/judge_answers/{category}.benchmark.tsv"
    conda:
        "../envs/torch.yaml"
    threads: get_model_threads()
    resources:
        gpu=get_gpus(),
        group_slots=1,
        mem_mb=64000,
        runtime=240,
    params:
        script=get_script("judge_answers"),
        code=get_code("judge_answers"),
        teacher=get_teacher_digests,
        options=get_judge_options,
        pace=Untracked(commands.judge_pace_flags(config)),
        device=Untracked(config["device"]),
    shell:
        "python {params.script} --predictions {input.predictions:q} {params.options} {params.pace}"
        " --device {params.device} --out {output.judged:q} > {log:q} 2>&1"


rule share_base_answers:
    input:
        get_shared_answers,
    output:
        "output/evaluation/{student}_base/{category}.{kind}.jsonl",
    log:
        "logs/share_base_answers/{student}/{category}.{kind}.log",
    benchmark:
        "logs/share_base_answers/{student}/{category}.{kind}.benchmark.tsv"
    wildcard_constraints:
        student="|".join(experiment.get_sharing_students(config)) or "(?!)",
    conda:
        "../envs/data.yaml"
    resources:
        group_slots=1,
        mem_mb=100,
        runtime=10,
    shell:
        "cp {input:q} {output:q} 2> {log:q}"


rule score_predictions:
    input:
        predictions=collect(
            "output/evaluation/{{model}}/{member}.predictions.jsonl",
            member=get_scored_categories,
        ),
        judged=collect(
            "output/evaluation/teacher/{member}.judged.jsonl",
            member=get_judged_categories,
        ),
    output:
        metrics="output/evaluation/{model}/{category}.metrics.json",
        answers="output/evaluation/{model}/{category}.hyp.txt",
        references="output/evaluation/{model}/{category}.ref.txt",
    log:
        "logs/score_predictions/{model}/{category}.log",
    benchmark:
        "logs/score_predictions/{model}/{category}.benchmark.tsv"
    conda:
        "../envs/data.yaml"
    resources:
        group_slots=1,
        mem_mb=2000,
        runtime=30,
    params:
        script=get_script("score_predictions"),
        code=get_code("score_predictions"),
        options=get_score_options,
        judged="--judged" if experiment.is_judging(config) else "",
    shell:
        "python {params.script} --predictions {input.predictions:q} {params.judged} {input.judged:q}"
        " {params.options} --out {output.metrics:q}"
        " --answers-out {output.answers:q} --references-out {output.references:q} > {log:q} 2>&1"
