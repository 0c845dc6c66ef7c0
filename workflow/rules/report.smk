# All rules here run the same command: each named input becomes the option of that name.
rule tabulate_scores:
    input:
        metrics=expand(
            "output/evaluation/{model}/{category}.metrics.json",
            category=experiment.get_score_categories(CATEGORIES),
            model=[*experiment.get_models(config), *experiment.get_averaged_students(config)],
        )
        + experiment.get_task_scores(config, CATEGORIES, "json"),
    output:
        table=report(
            "output/report/metrics.csv",
            caption="../report/table.rst",
            category="Scores",
        ),
    log:
        "logs/tabulate_scores.log",
    benchmark:
        "logs/tabulate_scores.benchmark.tsv"
    conda:
        "../envs/data.yaml"
    resources:
        group_slots=1,
        mem_mb=2000,
        runtime=15,
    params:
        **job("tabulate_scores"),
        inputs=get_input_options,
        options="",
    shell:
        "python {params.script} {params.inputs} {params.options} --out {output:q} > {log:q} 2>&1"


use rule tabulate_scores as plot_scores with:
    input:
        scores="output/report/metrics.csv",
    output:
        figure=report(
            "output/report/scores.svg",
            caption="../report/scores.rst",
            category="Scores",
        ),
    log:
        "logs/plot_scores.log",
    benchmark:
        "logs/plot_scores.benchmark.tsv"
    params:
        **job("plot_scores"),


use rule tabulate_scores as plot_training with:
    input:
        logs=expand("{student}/training_log.jsonl", student=experiment.get_student_folders(config, CATEGORIES)),
    output:
        figure=report(
            "output/report/training.svg",
            caption="../report/training.rst",
            category="Training",
        ),
    log:
        "logs/plot_training.log",
    benchmark:
        "logs/plot_training.benchmark.tsv"
    params:
        **job("plot_training"),


use rule tabulate_scores as render_samples with:
    input:
        samples=expand("{student}/samples.jsonl", student=experiment.get_sampled_folders(config, CATEGORIES)),
        splits=expand("artifacts/distill_data/processed/{category}/val.jsonl", category=CATEGORIES),
    output:
        page=report(
            "output/report/samples.html",
            caption="../report/samples.rst",
            category="Training",
        ),
    log:
        "logs/render_samples.log",
    benchmark:
        "logs/render_samples.benchmark.tsv"
    params:
        **job("render_samples"),
        template=files_digest(samples_page.PARTS),


use rule tabulate_scores as tabulate_memory with:
    input:
        # Ancient: a job that finds everything in the cache measures nothing, and need not rerun the table.
        answers=ancient(
            expand(
                "artifacts/distill_data/raw/teacher_outputs_{category}.stats.json",
                category=[
                    category
                    for category in CATEGORIES
                    if experiment.get_engine(experiment.get_category_config(config, category)).needs_gpu
                ],
            )
        ),
        signals=ancient(
            expand(
                "artifacts/distill_data/teacher_signal/{category}/{signal}/stats.json",
                category=CATEGORIES,
                signal=list(signals.get_signals(config)),
            )
        ),
        training=expand("{student}/training_log.jsonl", student=experiment.get_student_folders(config, CATEGORIES)),
        plan=memory_requests.find_plan(),
    output:
        table=report(
            "output/report/memory.csv",
            caption="../report/memory.rst",
            category="Memory",
        ),
    log:
        "logs/tabulate_memory.log",
    benchmark:
        "logs/tabulate_memory.benchmark.tsv"
    params:
        **job("tabulate_memory"),


use rule tabulate_scores as plot_values with:
    input:
        predictions=expand(
            "output/evaluation/{model}/{category}.predictions.jsonl",
            model=experiment.get_models(config),
            allow_missing=True,
        ),
    output:
        figure=report(
            "output/report/values/{category}.svg",
            caption="../report/values.rst",
            category="Predicted and true values",
            labels={"category": "{category}"},
        ),
    log:
        "logs/plot_values/{category}.log",
    benchmark:
        "logs/plot_values/{category}.benchmark.tsv"
    params:
        **job("plot_values"),
        options=from_config(command_lines.value_flags),


use rule tabulate_scores as render_answers with:
    input:
        predictions=expand(
            "output/evaluation/{model}/{category}.predictions.jsonl",
            model=experiment.get_models(config),
            allow_missing=True,
        ),
        questions=expand(
            "output/evaluation/{model}/{category}.questions.jsonl",
            model=experiment.get_asked_models(config),
            allow_missing=True,
        ),
        verdicts=expand(
            "output/evaluation/{model}/{category}.verdicts.jsonl",
            model=experiment.get_models(config) if experiment.get_pairwise(config) else [],
            allow_missing=True,
        ),
    output:
        page=report(
            "output/report/answers/{category}.html",
            caption="../report/answers.rst",
            category="Answers side by side",
            labels={"category": "{category}"},
        ),
    log:
        "logs/render_answers/{category}.log",
    benchmark:
        "logs/render_answers/{category}.benchmark.tsv"
    params:
        **job("render_answers"),
        template=files_digest(answers_page.PARTS),
        options=from_config(command_lines.page_flags, "category"),


use rule tabulate_scores as compare_models with:
    input:
        statistics=expand(
            "output/evaluation/{model}/{category}.statistics.npz",
            category=CATEGORIES,
            model=experiment.get_models(config),
        ),
        tasks=experiment.get_task_scores(config, CATEGORIES, "npz"),
    output:
        table=report(
            "output/report/comparisons.csv",
            caption="../report/comparisons.rst",
            category="Comparisons",
        ),
    log:
        "logs/compare_models.log",
    benchmark:
        "logs/compare_models.benchmark.tsv"
    resources:
        group_slots=1,
        mem_mb=2000,
        runtime=30,
    params:
        **job("compare_models"),
        options=from_config(command_lines.compare_flags),


use rule tabulate_scores as plot_comparisons with:
    input:
        comparisons="output/report/comparisons.csv",
    output:
        figure=report(
            "output/report/comparisons.svg",
            caption="../report/comparisons.rst",
            category="Comparisons",
        ),
    log:
        "logs/plot_comparisons.log",
    benchmark:
        "logs/plot_comparisons.benchmark.tsv"
    params:
        **job("plot_comparisons"),


# In no group of Slurm jobs, which would wait for the scores: the page is for reading before the teacher answers.
use rule tabulate_scores as render_near_duplicates with:
    input:
        counts=expand("output/report/near_duplicates/{category}.json", category=CATEGORIES),
        pairs=expand("output/report/near_duplicates/{category}.csv", category=CATEGORIES),
    output:
        page=report(
            "output/report/near_duplicates.html",
            caption="../report/near_duplicates.rst",
            category="Data",
        ),
    log:
        "logs/render_near_duplicates.log",
    benchmark:
        "logs/render_near_duplicates.benchmark.tsv"
    resources:
        mem_mb=2000,
        runtime=15,
    params:
        **job("render_near_duplicates"),
        template=files_digest(near_duplicates_page.PARTS),
