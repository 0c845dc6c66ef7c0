# The targets in the format that LLaMA-Factory reads, beside the splits.
rule write_alpaca:
    input:
        splits=collect(
            "artifacts/distill_data/processed/{member}/{split}.{kind}",
            member=get_scored_categories,
            split=["train", "val"],
            kind=["jsonl", "source", "target"],
        ),
    output:
        multiext(
            "artifacts/distill_data/processed/{category}/",
            train="alpaca_train.json",
            val="alpaca_val.json",
            info="dataset_info.json",
        ),
    log:
        "logs/write_alpaca/{category}.log",
    benchmark:
        "logs/write_alpaca/{category}.benchmark.tsv"
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        script=get_script("write_alpaca"),
        code=get_code("write_alpaca"),
        data=collect("artifacts/distill_data/processed/{member}", member=get_scored_categories),
        folder=subpath(output.info, parent=True),
    shell:
        "python {params.script} --data {params.data:q} --name {wildcards.category} --out {params.folder:q}"
        " > {log:q} 2>&1"


# The same training for LLaMA-Factory, for those who want to run it there; made on demand.
rule export_llamafactory:
    input:
        info="artifacts/distill_data/processed/{category}/dataset_info.json",
        train="artifacts/distill_data/processed/{category}/alpaca_train.json",
    output:
        settings="output/llamafactory/{student}/{category}/train.yaml",
    log:
        "logs/export_llamafactory/{student}/{category}.log",
    benchmark:
        "logs/export_llamafactory/{student}/{category}.benchmark.tsv"
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=1000,
        runtime=60,
    params:
        script=get_script("export_llamafactory"),
        code=get_code("export_llamafactory"),
        data=subpath(input.info, parent=True),
        folder=subpath(output.settings, parent=True),
        options=get_training_options,
        pace=get_training_pace,
    shell:
        "python {params.script} --data {params.data:q} --name {wildcards.student} --category {wildcards.category}"
        " {params.options} {params.pace} --out {params.folder:q} > {log:q} 2>&1"
