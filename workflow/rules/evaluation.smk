rule predict_answers:
    input:
        multiext(
            "artifacts/distill_data/processed/{category}/",
            test="test.jsonl",
            test_source="test.source",
            test_target="test.target",
        ),
        model=model_files(experiment.get_predicting_models, "model", "category"),
        server=shared_server("predictions"),
    output:
        predictions="output/evaluation/{model}/{category}.predictions.jsonl",
    log:
        "logs/predict_answers/{model}/{category}.log",
    benchmark:
        "logs/predict_answers/{model}/{category}.benchmark.tsv"
    wildcard_constraints:
        model="|".join(experiment.get_models_alone(config)),
    conda:
        "../envs/torch.yaml"
    threads: from_config(job_resources.get_answering_threads, "model")
    resources:
        **serving_nodes(),
        gpu=from_config(job_resources.get_answering_gpus, "model"),
        group_slots=1,
        mem_mb=planned_memory("predict_answers", 32000),
        runtime=240,
    params:
        **job("predict_answers"),
        test=get_test_option,
        models=model_digests(experiment.get_predicting_models, "model", "category"),
        options=from_config(command_lines.predict_flags, "model", "category"),
        run_options=untracked(command_lines.predict_run_flags, "model"),
        device=Untracked(config["device"]),
    shell:
        "python {params.script} {params.test} --category {wildcards.category} {params.options}"
        " {params.run_options} --device {params.device} --out {output:q} > {log:q} 2>&1"


# Answers to fixed questions, shown side by side in the report.
use rule predict_answers as answer_questions with:
    input:
        model=model_files(experiment.get_predicting_models, "model", "category"),
        server=shared_server("predictions"),
    output:
        answers="output/evaluation/{model}/{category}.questions.jsonl",
    log:
        "logs/answer_questions/{model}/{category}.log",
    benchmark:
        "logs/answer_questions/{model}/{category}.benchmark.tsv"
    resources:
        **serving_nodes(),
        gpu=from_config(job_resources.get_answering_gpus, "model"),
        group_slots=1,
        mem_mb=planned_memory("answer_questions", 32000),
        runtime=60,
    params:
        **job("answer_questions"),
        test="",
        options=from_config(command_lines.question_flags, "model", "category"),


# Both of the above for several models of a category in one process.
for number, models in enumerate(experiment.get_model_batches(config), start=1):

    rule:
        name:
            f"predict_models_{number}"
        input:
            multiext(
                "artifacts/distill_data/processed/{category}/",
                test="test.jsonl",
                test_source="test.source",
                test_target="test.target",
            ),
            models=model_files(partial(experiment.get_batch_sources, models=models), "category"),
        output:
            predictions=expand(
                "output/evaluation/{model}/{category}.predictions.jsonl",
                model=models,
                allow_missing=True,
            ),
            answers=expand(
                "output/evaluation/{model}/{category}.questions.jsonl",
                model=models if config["evaluation"]["questions"] else [],
                allow_missing=True,
            ),
        log:
            f"logs/predict_models/{number}/{{category}}.log",
        benchmark:
            f"logs/predict_models/{number}/{{category}}.benchmark.tsv"
        conda:
            "../envs/torch.yaml"
        threads: from_config(partial(job_resources.get_answering_threads, model=models[0]))
        resources:
            gpu=from_config(partial(job_resources.get_answering_gpus, model=models[0])),
            group_slots=1,
            mem_mb=planned_batch_memory(models, 32000),
            runtime=240 * len(models),
        params:
            **job("predict_models"),
            models=model_digests(partial(experiment.get_batch_sources, models=models), "category"),
            runs=from_config(partial(command_lines.batch_flags, models=models), "category"),
            run_options=untracked(partial(command_lines.predict_run_flags, model=models[0])),
            device=Untracked(config["device"]),
        shell:
            "python {params.script} {params.runs} --category {wildcards.category}"
            " {params.run_options} --device {params.device} > {log:q} 2>&1"


# Scores all models' answers by the teacher's likelihoods, in one job that loads the teacher once.
rule judge_answers:
    input:
        predictions=expand(
            "output/evaluation/{model}/{category}.predictions.jsonl",
            model=experiment.get_models(config),
            allow_missing=True,
        ),
        teacher=model_files(experiment.get_teacher_models, "category"),
        server=shared_server("judgements"),
    output:
        judged="output/evaluation/teacher/{category}.judged.jsonl",
    log:
        "logs/judge_answers/{category}.log",
    benchmark:
        "logs/judge_answers/{category}.benchmark.tsv"
    conda:
        "../envs/torch.yaml"
    threads: from_config(job_resources.get_answering_threads)
    resources:
        **serving_nodes(),
        gpu=from_config(job_resources.get_answering_gpus),
        group_slots=1,
        mem_mb=planned_memory("judge_answers", 64000),
        runtime=240,
    params:
        **job("judge_answers"),
        teacher=model_digests(experiment.get_teacher_models, "category"),
        options=from_config(command_lines.judge_flags, "category"),
        run_options=untracked(command_lines.judge_run_flags),
        device=Untracked(config["device"]),
    shell:
        "python {params.script} --predictions {input.predictions:q} {params.options} {params.run_options}"
        " --device {params.device} --out {output.judged:q} > {log:q} 2>&1"


# Has a model on a server compare a model's answers with those of `evaluation.pairwise.against`.
rule judge_pairs:
    input:
        predictions="output/evaluation/{model}/{category}.predictions.jsonl",
        against=expand(
            "output/evaluation/{against}/{category}.predictions.jsonl",
            against=experiment.get_against(config),
            allow_missing=True,
        ),
        prompt=experiment.get_judge_prompt(config),
    output:
        verdicts="output/evaluation/{model}/{category}.verdicts.jsonl",
    log:
        "logs/judge_pairs/{model}/{category}.log",
    benchmark:
        "logs/judge_pairs/{model}/{category}.benchmark.tsv"
    wildcard_constraints:
        model="|".join(experiment.get_evaluated_models(config)) if experiment.get_pairwise(config) else "(?!)",
    conda:
        "../envs/torch.yaml"
    resources:
        group_slots=1,
        mem_mb=2000,
        runtime=120,
    params:
        **job("judge_pairs"),
        inputs=get_input_options,
        options=from_config(command_lines.pairwise_flags),
        run_options=untracked(command_lines.pairwise_run_flags),
    shell:
        "python {params.script} {params.inputs} {params.options} {params.run_options}"
        " --out {output.verdicts:q} > {log:q} 2>&1"


# Students with the same model, precision and template arguments share the answers of their model before distillation.
rule share_base_answers:
    input:
        collect("output/evaluation/{base}/{{category}}.{{kind}}.jsonl", base=get_first_base),
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


# Reads the texts of a model's answers once; all that compares or pools models goes on from the statistics.
rule score_predictions:
    input:
        predictions="output/evaluation/{model}/{category}.predictions.jsonl",
        judged=collect(
            "output/evaluation/teacher/{member}.judged.jsonl",
            member=get_judged_categories,
        ),
        verdicts=expand(
            "output/evaluation/{model}/{category}.verdicts.jsonl" if experiment.get_pairwise(config) else [],
            allow_missing=True,
        ),
    output:
        metrics="output/evaluation/{model}/{category}.metrics.json",
        statistics="output/evaluation/{model}/{category}.statistics.npz",
        answers="output/evaluation/{model}/{category}.hyp.txt",
        references="output/evaluation/{model}/{category}.ref.txt",
    log:
        "logs/score_predictions/{model}/{category}.log",
    benchmark:
        "logs/score_predictions/{model}/{category}.benchmark.tsv"
    wildcard_constraints:
        model="|".join(experiment.get_models(config)),
        category=rf"(?!{experiment.POOLED}\b){NAME_PATTERN}",
    conda:
        "../envs/data.yaml"
    resources:
        group_slots=1,
        mem_mb=2000,
        runtime=15,
    params:
        **job("score_predictions"),
        inputs=get_input_options,
        options=from_config(command_lines.score_flags),
    shell:
        "python {params.script} {params.inputs} {params.options} --out {output.metrics:q}"
        " --statistics-out {output.statistics:q} --answers-out {output.answers:q}"
        " --references-out {output.references:q} > {log:q} 2>&1"


# The mean over the replicas of a student with several seeds.
rule average_scores:
    input:
        statistics=collect(
            "output/evaluation/{replica}/{member}.statistics.npz",
            replica=from_config(experiment.get_replicas, "student"),
            member=get_scored_categories,
        ),
    output:
        metrics="output/evaluation/{student}/{category}.metrics.json",
    log:
        "logs/average_scores/{student}/{category}.log",
    benchmark:
        "logs/average_scores/{student}/{category}.benchmark.tsv"
    wildcard_constraints:
        student="|".join(experiment.get_averaged_students(config)) or "(?!)",
    conda:
        "../envs/data.yaml"
    resources:
        group_slots=1,
        mem_mb=2000,
        runtime=15,
    params:
        **job("average_scores"),
        inputs=get_input_options,
        options=from_config(command_lines.score_flags),
    shell:
        "python {params.script} {params.inputs} {params.options} --out {output.metrics:q} > {log:q} 2>&1"


# The scores of all categories together; there are none if there is one category.
use rule average_scores as pool_scores with:
    input:
        statistics=expand(
            "output/evaluation/{model}/{category}.statistics.npz",
            category=CATEGORIES,
            allow_missing=True,
        ),
    output:
        metrics=f"output/evaluation/{{model}}/{experiment.POOLED}.metrics.json",
    log:
        "logs/pool_scores/{model}.log",
    benchmark:
        "logs/pool_scores/{model}.benchmark.tsv"
    wildcard_constraints:
        model="|".join(experiment.get_models(config)),
    params:
        **job("pool_scores"),
        inputs=get_input_options,
        options=from_config(command_lines.score_flags),


# Benchmarks of lm-evaluation-harness. Models with the same weights, such as the teacher of all categories, run once.
rule run_tasks:
    input:
        model=model_files(experiment.get_predicting_models, "model", "category"),
    output:
        documents="output/evaluation/{model}/{category}.documents.jsonl",
        results="output/evaluation/{model}/{category}.lm_eval.json",
    log:
        "logs/run_tasks/{model}/{category}.log",
    benchmark:
        "logs/run_tasks/{model}/{category}.benchmark.tsv"
    wildcard_constraints:
        model="|".join(experiment.get_models(config)),
    conda:
        "../envs/tasks.yaml"
    threads: from_config(job_resources.get_answering_threads, "model")
    resources:
        gpu=from_config(job_resources.get_answering_gpus, "model"),
        mem_mb=planned_memory("predict_answers", 32000),
        runtime=1440,
    params:
        **job("run_tasks"),
        models=model_digests(experiment.get_predicting_models, "model", "category"),
        tasks=TASK_FILES,
        options=from_config(command_lines.task_flags, "model", "category"),
        run_options=untracked(command_lines.task_run_flags),
        device=Untracked(config["device"]),
    shell:
        "python {params.script} {params.options} {params.run_options} --device {params.device}"
        " --out {output.documents:q} --results-out {output.results:q} > {log:q} 2>&1"


rule score_tasks:
    input:
        documents=get_task_documents,
        results=get_task_results,
    output:
        scores="output/evaluation/{model}/{category}.tasks.json",
        statistics="output/evaluation/{model}/{category}.tasks.npz",
    log:
        "logs/score_tasks/{model}/{category}.log",
    benchmark:
        "logs/score_tasks/{model}/{category}.benchmark.tsv"
    wildcard_constraints:
        model="|".join(experiment.get_models(config)),
    conda:
        "../envs/data.yaml"
    resources:
        group_slots=1,
        mem_mb=2000,
        runtime=15,
    params:
        **job("score_tasks"),
        inputs=get_input_options,
        options=from_config(command_lines.task_score_flags),
    shell:
        "python {params.script} {params.inputs} {params.options} --out {output.scores:q}"
        " --statistics-out {output.statistics:q} > {log:q} 2>&1"


# The mean over the replicas of a student with several seeds.
use rule average_scores as average_tasks with:
    input:
        statistics=collect(
            "output/evaluation/{replica}/{{category}}.tasks.npz",
            replica=from_config(experiment.get_replicas, "student"),
        ),
    output:
        metrics="output/evaluation/{student}/{category}.tasks.json",
    log:
        "logs/average_tasks/{student}/{category}.log",
    benchmark:
        "logs/average_tasks/{student}/{category}.benchmark.tsv"
    params:
        **job("average_tasks"),
        inputs=get_input_options,
        options=from_config(command_lines.task_score_flags),
