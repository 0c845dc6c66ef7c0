rule train_student:
    input:
        multiext(
            "artifacts/distill_data/processed/{category}/",
            train="train.jsonl",
            train_source="train.source",
            train_target="train.target",
            val="val.jsonl",
            val_source="val.source",
            val_target="val.target",
        ),
        models=get_training_files,
    output:
        multiext(
            "output/{student}/{category}/",
            config="config.json",
            generation="generation_config.json",
            model="model.safetensors",
            tokenizer="tokenizer_config.json",
            card="README.md",
            history="training_log.jsonl",
        ),
    log:
        "logs/train_student/{student}/{category}.log",
    benchmark:
        "logs/train_student/{student}/{category}.benchmark.tsv"
    conda:
        "../envs/torch.yaml"
    threads: get_model_threads()
    resources:
        gpu=get_gpus(),
        mem_mb=64000,
        runtime=2880,
    params:
        script=get_script("train_student"),
        code=get_code("train_student"),
        models=get_training_digests,
        data=subpath(input.train, parent=True),
        folder=subpath(output.history, parent=True),
        options=get_training_options,
        pace=get_training_pace,
        device=Untracked(config["device"]),
    shell:
        "python {params.script} --data {params.data:q} --name {wildcards.student} --category {wildcards.category}"
        " {params.options} {params.pace} --device {params.device} --out {params.folder:q} > {log:q} 2>&1"
