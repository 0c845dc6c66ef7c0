# A student to deploy: as it was trained, or in fewer bits. Each variant has been loaded again before it is there.
rule export_model:
    input:
        multiext(
            "output/{student}/{category}/",
            config="config.json",
            generation="generation_config.json",
            model="model.safetensors",
            tokenizer="tokenizer_config.json",
        ),
    output:
        multiext(
            "output/export/{student}/{category}/{variant}/",
            config="config.json",
            generation="generation_config.json",
            model="model.safetensors",
            tokenizer="tokenizer_config.json",
        ),
    log:
        "logs/export_model/{student}/{category}.{variant}.log",
    benchmark:
        "logs/export_model/{student}/{category}.{variant}.benchmark.tsv"
    wildcard_constraints:
        variant="full|nf4|int8",
    conda:
        "../envs/torch.yaml"
    threads: get_model_threads()
    resources:
        gpu=get_gpus(),
        mem_mb=64000,
        runtime=240,
    params:
        script=get_script("export_model"),
        code=get_code("export_model"),
        student=subpath(input.config, parent=True),
        folder=subpath(output.config, parent=True),
        options=get_export_options,
        device=Untracked(config["device"]),
    shell:
        "python {params.script} --student {params.student:q} --variant {wildcards.variant} {params.options}"
        " --device {params.device} --out {params.folder:q} > {log:q} 2>&1"


rule export_gguf:
    input:
        multiext(
            "output/{student}/{category}/",
            config="config.json",
            generation="generation_config.json",
            model="model.safetensors",
            tokenizer="tokenizer_config.json",
        ),
    output:
        multiext(
            "output/export/{student}/{category}/gguf/",
            config="config.json",
            generation="generation_config.json",
            model="model.gguf",
            tokenizer="tokenizer_config.json",
        ),
    log:
        "logs/export_gguf/{student}/{category}.log",
    benchmark:
        "logs/export_gguf/{student}/{category}.benchmark.tsv"
    conda:
        "../envs/torch.yaml"
    threads: get_model_threads()
    resources:
        gpu=get_gpus(),
        mem_mb=64000,
        runtime=240,
    params:
        script=get_script("export_gguf"),
        code=get_code("export_gguf"),
        student=subpath(input.config, parent=True),
        folder=subpath(output.config, parent=True),
        options=get_export_options,
        device=Untracked(config["device"]),
    shell:
        "python {params.script} --student {params.student:q} {params.options}"
        " --device {params.device} --out {params.folder:q} > {log:q} 2>&1"


rule write_model_card:
    input:
        model="output/export/{student}/{category}/{variant}/config.json",
        training="output/{student}/{category}/README.md",
        metrics=collect(
            "output/evaluation/{model}/{{category}}.metrics.json",
            model=get_card_models,
        ),
    output:
        card="output/export/{student}/{category}/{variant}/README.md",
    log:
        "logs/write_model_card/{student}/{category}.{variant}.log",
    benchmark:
        "logs/write_model_card/{student}/{category}.{variant}.benchmark.tsv"
    wildcard_constraints:
        variant="full|nf4|int8|gguf",
    conda:
        "../envs/torch.yaml"
    resources:
        group_slots=1,
        mem_mb=2000,
        runtime=15,
    params:
        script=get_script("write_model_card"),
        code=get_code("write_model_card"),
        options=get_card_options,
    shell:
        "python {params.script} --variant {wildcards.variant} --training {input.training:q}"
        " --metrics {input.metrics:q} {params.options} --out {output.card:q} > {log:q} 2>&1"


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
        group_slots=1,
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
