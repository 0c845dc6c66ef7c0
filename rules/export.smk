# The same training for LLaMA-Factory, for those who want to run it there; made on demand.
rule export_llamafactory:
    input:
        splits=collect(
            "artifacts/distill_data/processed/{member}/{split}.{kind}",
            member=get_training_categories,
            split=["train", "val"],
            kind=["jsonl", "source", "target"],
        ),
    output:
        multiext(
            "output/llamafactory/{student}/{category}/",
            train="train.json",
            val="val.json",
            info="dataset_info.json",
            settings="train.yaml",
        ),
    log:
        "logs/export_llamafactory/{student}/{category}.log",
    benchmark:
        "logs/export_llamafactory/{student}/{category}.benchmark.tsv"
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        script=get_script("export_llamafactory"),
        code=get_code("export_llamafactory"),
        data=collect("artifacts/distill_data/processed/{member}", member=get_training_categories),
        folder=subpath(output.settings, parent=True),
        options=get_training_options,
        pace=get_training_pace,
    shell:
        "python {params.script} --data {params.data:q} --name {wildcards.student} --category {wildcards.category}"
        " {params.options} {params.pace} --out {params.folder:q} > {log:q} 2>&1"
