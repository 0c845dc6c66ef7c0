rule tabulate_scores:
    input:
        metrics=expand(
            "output/evaluation/{model}/{category}.metrics.json",
            category=[*CATEGORIES, "all"],
            model=experiment.get_models(config),
        ),
    output:
        table=report(
            "output/report/metrics.csv",
            caption="../workflow/report/table.rst",
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
        script=get_script("tabulate_scores"),
        code=get_code("tabulate_scores"),
    shell:
        "python {params.script} --metrics {input.metrics:q} --out {output.table:q} > {log:q} 2>&1"


rule plot_scores:
    input:
        scores="output/report/metrics.csv",
    output:
        figure=report(
            "output/report/scores.svg",
            caption="../workflow/report/scores.rst",
            category="Scores",
        ),
    log:
        "logs/plot_scores.log",
    benchmark:
        "logs/plot_scores.benchmark.tsv"
    conda:
        "../envs/data.yaml"
    resources:
        group_slots=1,
        mem_mb=2000,
        runtime=15,
    params:
        script=get_script("plot_scores"),
        code=get_code("plot_scores"),
    shell:
        "python {params.script} --scores {input.scores:q} --out {output.figure:q} > {log:q} 2>&1"


rule plot_training:
    input:
        logs=expand("{student}/training_log.jsonl", student=experiment.get_student_folders(config, CATEGORIES)),
    output:
        figure=report(
            "output/report/training.svg",
            caption="../workflow/report/training.rst",
            category="Training",
        ),
    log:
        "logs/plot_training.log",
    benchmark:
        "logs/plot_training.benchmark.tsv"
    conda:
        "../envs/data.yaml"
    resources:
        group_slots=1,
        mem_mb=2000,
        runtime=15,
    params:
        script=get_script("plot_training"),
        code=get_code("plot_training"),
    shell:
        "python {params.script} --logs {input.logs:q} --out {output.figure:q} > {log:q} 2>&1"


rule plot_values:
    input:
        predictions=expand(
            "output/evaluation/{model}/{category}.predictions.jsonl",
            model=experiment.get_models(config),
            allow_missing=True,
        ),
    output:
        figure=report(
            "output/report/values/{category}.svg",
            caption="../workflow/report/values.rst",
            category="Predicted and true values",
            labels={"category": "{category}"},
        ),
    log:
        "logs/plot_values/{category}.log",
    benchmark:
        "logs/plot_values/{category}.benchmark.tsv"
    conda:
        "../envs/data.yaml"
    resources:
        group_slots=1,
        mem_mb=2000,
        runtime=15,
    params:
        script=get_script("plot_values"),
        code=get_code("plot_values"),
        options=get_value_options,
    shell:
        "python {params.script} --predictions {input.predictions:q} {params.options} --out {output.figure:q}"
        " > {log:q} 2>&1"


rule render_answers:
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
    output:
        page=report(
            "output/report/answers/{category}.html",
            caption="../workflow/report/answers.rst",
            category="Answers side by side",
            labels={"category": "{category}"},
        ),
    log:
        "logs/render_answers/{category}.log",
    benchmark:
        "logs/render_answers/{category}.benchmark.tsv"
    conda:
        "../envs/data.yaml"
    resources:
        group_slots=1,
        mem_mb=2000,
        runtime=15,
    params:
        script=get_script("render_answers"),
        code=get_code("render_answers"),
        template=get_page_digest(),
        options=commands.flags({"records": config["evaluation"]["page_records"]}),
    shell:
        "python {params.script} --category {wildcards.category} --predictions {input.predictions:q}"
        " --questions {input.questions:q} {params.options} --out {output.page:q} > {log:q} 2>&1"


rule compare_models:
    input:
        predictions=expand(
            "output/evaluation/{model}/{category}.predictions.jsonl",
            category=CATEGORIES,
            model=experiment.get_models(config),
        ),
        judged=expand(
            "output/evaluation/teacher/{category}.judged.jsonl",
            category=CATEGORIES if experiment.is_judging(config) else [],
        ),
    output:
        table=report(
            "output/report/comparisons.csv",
            caption="../workflow/report/comparisons.rst",
            category="Comparisons",
        ),
    log:
        "logs/compare_models.log",
    benchmark:
        "logs/compare_models.benchmark.tsv"
    conda:
        "../envs/data.yaml"
    resources:
        group_slots=1,
        mem_mb=4000,
        runtime=120,
    params:
        script=get_script("compare_models"),
        code=get_code("compare_models"),
        options=get_compare_options,
        judged="--judged" if experiment.is_judging(config) else "",
    shell:
        "python {params.script} --predictions {input.predictions:q} {params.judged} {input.judged:q}"
        " {params.options} --out {output.table:q} > {log:q} 2>&1"


rule plot_comparisons:
    input:
        comparisons="output/report/comparisons.csv",
    output:
        figure=report(
            "output/report/comparisons.svg",
            caption="../workflow/report/comparisons.rst",
            category="Comparisons",
        ),
    log:
        "logs/plot_comparisons.log",
    benchmark:
        "logs/plot_comparisons.benchmark.tsv"
    conda:
        "../envs/data.yaml"
    resources:
        group_slots=1,
        mem_mb=2000,
        runtime=15,
    params:
        script=get_script("plot_comparisons"),
        code=get_code("plot_comparisons"),
    shell:
        "python {params.script} --comparisons {input.comparisons:q} --out {output.figure:q} > {log:q} 2>&1"
