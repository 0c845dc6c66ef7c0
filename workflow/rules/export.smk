# A student to deploy: as trained, or quantized. The script loads and smoke-tests each variant before it publishes it.
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
        variant="|".join(experiment.list_written_variants("model.safetensors")),
    conda:
        "../envs/torch.yaml"
    threads: job_resources.get_threads(config)
    resources:
        gpu=job_resources.get_gpus(config),
        mem_mb=planned_memory("export_model", 64000),
        runtime=240,
    params:
        **job("export_model"),
        variant="--variant {variant}",
        student=subpath(input.config, parent=True),
        folder=subpath(output.config, parent=True),
        options=from_config(command_lines.export_flags, "student"),
        calibration="",
        run_options=Untracked(""),
        device=Untracked(config["device"]),
    shell:
        "python {params.script} --student {params.student:q} {params.variant} {params.options} {params.calibration}"
        " {params.run_options} --device {params.device} --out {params.folder:q} > {log:q} 2>&1"


# A rule of its own for the variants that are calibrated on the train split.
use rule export_model as export_compressed with:
    input:
        multiext(
            "output/{student}/{category}/",
            config="config.json",
            generation="generation_config.json",
            model="model.safetensors",
            tokenizer="tokenizer_config.json",
        ),
        data=collect("artifacts/distill_data/processed/{member}/train.jsonl", member=get_training_categories),
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
        variant="|".join(experiment.list_written_variants("model.safetensors", is_compressed=True)),
    params:
        calibration=get_calibration_options,
        run_options=untracked(command_lines.compress_run_flags),


# A rule of its own for the variants whose weights are in a GGUF file.
use rule export_model as export_gguf with:
    output:
        multiext(
            "output/export/{student}/{category}/{variant}/",
            config="config.json",
            generation="generation_config.json",
            model="model.gguf",
            tokenizer="tokenizer_config.json",
        ),
    log:
        "logs/export_model/{student}/{category}.{variant}.log",
    benchmark:
        "logs/export_model/{student}/{category}.{variant}.benchmark.tsv"
    wildcard_constraints:
        variant="|".join(experiment.list_variants("model.gguf")),


rule write_model_card:
    input:
        model="output/export/{student}/{category}/{variant}/config.json",
        training="output/{student}/{category}/README.md",
        metrics=collect(
            "output/evaluation/{model}/{scored}.metrics.json",
            model=from_config(experiment.get_card_models, "student", "variant"),
            scored=get_card_category,
        ),
    output:
        card="output/export/{student}/{category}/{variant}/README.md",
    log:
        "logs/write_model_card/{student}/{category}.{variant}.log",
    benchmark:
        "logs/write_model_card/{student}/{category}.{variant}.benchmark.tsv"
    wildcard_constraints:
        variant="|".join(experiment.list_variants()),
    conda:
        "../envs/torch.yaml"
    resources:
        group_slots=1,
        mem_mb=2000,
        runtime=15,
    params:
        **job("write_model_card"),
        options=from_config(command_lines.card_flags, "student", "category"),
    shell:
        "python {params.script} --variant {wildcards.variant} --training {input.training:q}"
        " --metrics {input.metrics:q} {params.options} --out {output.card:q} > {log:q} 2>&1"


# Uploads an exported model. Only the rule publish asks for it. A local rule, since compute nodes often have no internet
# access. Another version of the script uploads nothing again.
rule publish_model:
    input:
        get_uploaded_files,
    output:
        record="output/export/{student}/{category}/{variant}.published.json",
    log:
        "logs/publish_model/{student}/{category}.{variant}.log",
    benchmark:
        "logs/publish_model/{student}/{category}.{variant}.benchmark.tsv"
    wildcard_constraints:
        variant="|".join(experiment.list_variants()),
    localrule: True
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        script=get_script("publish_model"),
        code=Untracked(get_code("publish_model")),
        model="output/export/{student}/{category}/{variant}",
        options=from_config(command_lines.publish_flags, "student", "category", "variant"),
    message:
        "Uploading {params.model}: {params.options}"
    shell:
        "python {params.script} --model {params.model:q} {params.options} --out {output.record:q} > {log:q} 2>&1"


# The training data in the Alpaca format that LLaMA-Factory reads.
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
        **job("write_alpaca"),
        data=collect("artifacts/distill_data/processed/{member}", member=get_scored_categories),
        folder=subpath(output.info, parent=True),
    shell:
        "python {params.script} --data {params.data:q} --name {wildcards.category} --out {params.folder:q}"
        " > {log:q} 2>&1"


# The same training as a LLaMA-Factory configuration. Not part of a whole run; request its output by name.
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
        **job("export_llamafactory"),
        data=subpath(input.info, parent=True),
        folder=subpath(output.settings, parent=True),
        options=get_training_options,
        run_options=untracked(command_lines.training_run_flags, "student"),
    shell:
        "python {params.script} --data {params.data:q} --name {wildcards.student} --category {wildcards.category}"
        " {params.options} {params.run_options} --out {params.folder:q} > {log:q} 2>&1"
