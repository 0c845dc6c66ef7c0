# Initializes a student with evenly spaced layers of its teacher. {category} is `all` for the categories that share one.
rule copy_layers:
    input:
        teacher=model_files(experiment.get_teacher_models, "category"),
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
    threads: job_resources.get_threads(config)
    resources:
        mem_mb=planned_memory("copy_layers", 64000),
        runtime=60,
    params:
        **job("copy_layers"),
        teacher=model_digests(experiment.get_teacher_models, "category"),
        folder=subpath(output.config, parent=True),
        options=from_config(command_lines.copy_flags, "category"),
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
            signal=from_config(signals.get_training_signals, "student"),
        ),
        models=model_files(experiment.get_training_models, "student", "category"),
    output:
        multiext(
            "output/{student}/{category}/",
            config="config.json",
            generation="generation_config.json",
            model="model.safetensors",
            tokenizer="tokenizer_config.json",
            card="README.md",
            history="training_log.jsonl",
            samples="samples.jsonl",
        ),
    log:
        "logs/train_student/{student}/{category}.log",
    benchmark:
        "logs/train_student/{student}/{category}.benchmark.tsv"
    conda:
        "../envs/torch.yaml"
    threads: job_resources.get_threads(config)
    resources:
        gpu=training_resource("gpu"),
        mem_mb=planned_memory("train_student", 64000),
        runtime=2880,
        # For the Slurm executor; unset for one process.
        nodes=training_resource("nodes"),
        tasks=training_resource("tasks"),
        tasks_per_gpu=training_resource("tasks_per_gpu"),
        mpi=training_resource("mpi"),
    params:
        **job("train_student"),
        launch=get_training_launch,
        models=model_digests(experiment.get_training_models, "student", "category"),
        data=collect("artifacts/distill_data/processed/{member}", member=get_training_categories),
        folder=subpath(output.history, parent=True),
        options=get_training_options,
        run_options=untracked(command_lines.training_run_flags, "student"),
        device=Untracked(config["device"]),
    shell:
        "{params.launch} {params.script} --data {params.data:q} --name {wildcards.student} --category {wildcards.category}"
        " {params.options} {params.run_options} --device {params.device} --out {params.folder:q} > {log:q} 2>&1"
