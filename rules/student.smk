# A student that begins as evenly spaced layers of its teacher; {category} is `all` where the teacher is one for all.
rule copy_layers:
    input:
        teacher=get_teacher_files,
    output:
        multiext(
            "artifacts/initial_students/{layers}_layers/{category}/",
            config="config.json",
            generation="generation_config.json",
            model="model.safetensors",
            tokenizer="tokenizer_config.json",
        ),
    log:
        "logs/copy_layers/{layers}_layers/{category}.log",
    benchmark:
        "logs/copy_layers/{layers}_layers/{category}.benchmark.tsv"
    wildcard_constraints:
        layers=r"\d+",
    conda:
        "../envs/torch.yaml"
    threads: get_model_threads()
    resources:
        mem_mb=64000,
        runtime=60,
    params:
        script=get_script("copy_layers"),
        code=get_code("copy_layers"),
        teacher=get_teacher_digests,
        folder=subpath(output.config, parent=True),
        options=get_copy_options,
    shell:
        "python {params.script} {params.options} --layers {wildcards.layers} --out {params.folder:q} > {log:q} 2>&1"


rule train_student:
    input:
        splits=collect(
            "artifacts/distill_data/processed/{member}/{split}.{kind}",
            member=get_training_categories,
            split=["train", "val"],
            kind=["jsonl", "source", "target"],
        ),
        signals=collect(
            "artifacts/distill_data/teacher_signal/{member}/{signal}/index.json",
            member=get_training_categories,
            signal=get_training_signals,
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
        gpu=get_training_gpus,
        mem_mb=64000,
        runtime=2880,
        # Of several nodes; Slurm's alone, without them none of these is set.
        nodes=get_asked_nodes,
        tasks=get_training_nodes,
        tasks_per_gpu=get_training_tasks_per_gpu,
        mpi=get_training_mpi,
    params:
        launch=get_training_launch,
        script=get_script("train_student"),
        code=get_code("train_student"),
        models=get_training_digests,
        data=collect("artifacts/distill_data/processed/{member}", member=get_training_categories),
        folder=subpath(output.history, parent=True),
        options=get_training_options,
        pace=get_training_pace,
        device=Untracked(config["device"]),
    shell:
        "{params.launch} {params.script} --data {params.data:q} --name {wildcards.student} --category {wildcards.category}"
        " {params.options} {params.pace} --device {params.device} --out {params.folder:q} > {log:q} 2>&1"
