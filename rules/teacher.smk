rule generate_answers:
    input:
        prompts="artifacts/distill_data/raw/{category}_teacher_prompts_base.jsonl",
        teacher=get_teacher_files,
    output:
        answers=branch(
            is_sharded(),
            then=temp("artifacts/distill_data/raw/shards/teacher_outputs_{category}.{scatteritem}.jsonl"),
            otherwise="artifacts/distill_data/raw/teacher_outputs_{category}.jsonl",
        ),
        stats=branch(
            is_sharded(),
            then=temp("artifacts/distill_data/raw/shards/teacher_outputs_{category}.{scatteritem}.stats.json"),
            otherwise="artifacts/distill_data/raw/teacher_outputs_{category}.stats.json",
        ),
    log:
        branch(
            is_sharded(),
            then="logs/generate_answers/{category}.{scatteritem}.log",
            otherwise="logs/generate_answers/{category}.log",
        ),
    benchmark:
        branch(
            is_sharded(),
            then="logs/generate_answers/{category}.{scatteritem}.benchmark.tsv",
            otherwise="logs/generate_answers/{category}.benchmark.tsv",
        )
    conda:
        "../envs/torch.yaml"
    threads: get_asking_threads
    resources:
        gpu=get_asking_gpus,
        mem_mb=32000,
        runtime=2880,
    params:
        script=get_script("generate_answers"),
        code=get_code("generate_answers"),
        teacher=get_teacher_digests,
        options=get_generate_options,
        shard=get_shard_option,
        pace=Untracked(commands.asking_flags(config)),
        device=Untracked(config["device"]),
    shell:
        "python {params.script} --prompts {input.prompts:q} {params.shard} {params.options} {params.pace}"
        " --device {params.device} --out {output.answers:q} --stats {output.stats:q} > {log:q} 2>&1"


rule split_answers:
    input:
        answers="artifacts/distill_data/raw/teacher_outputs_{category}.jsonl",
    output:
        multiext(
            "artifacts/distill_data/processed/{category}/",
            train="train.jsonl",
            train_source="train.source",
            train_target="train.target",
            val="val.jsonl",
            val_source="val.source",
            val_target="val.target",
            test="test.jsonl",
            test_source="test.source",
            test_target="test.target",
        ),
    log:
        "logs/split_answers/{category}.log",
    benchmark:
        "logs/split_answers/{category}.benchmark.tsv"
    conda:
        "../envs/data.yaml"
    resources:
        group_slots=1,
        mem_mb=1000,
        runtime=60,
    params:
        script=get_script("split_answers"),
        code=get_code("split_answers"),
        folder=subpath(output.train, parent=True),
        options=commands.split_flags(config),
    shell:
        "python {params.script} --answers {input.answers:q} {params.options} --out {params.folder:q} > {log:q} 2>&1"


# The teacher's distribution on a category's answers, for students that learn without a teacher in memory. Only what is
# missing is computed: the data/ folder beside the outputs, which they point into, outlives a run that ends early.
rule compute_signal:
    input:
        train="artifacts/distill_data/processed/{category}/train.jsonl",
        splits=collect(
            "artifacts/distill_data/processed/{{category}}/{split}",
            split=["train.source", "train.target", "val.jsonl", "val.source", "val.target"],
        ),
        teacher=get_teacher_files,
    output:
        multiext(
            "artifacts/distill_data/teacher_signal/{category}/{signal}/",
            index="index.json",
            stats="stats.json",
        ),
    log:
        "logs/compute_signal/{category}.{signal}.log",
    benchmark:
        "logs/compute_signal/{category}.{signal}.benchmark.tsv"
    conda:
        "../envs/torch.yaml"
    threads: get_model_threads()
    resources:
        gpu=get_gpus(),
        mem_mb=64000,
        runtime=2880,
    params:
        script=get_script("compute_signal"),
        code=get_code("compute_signal"),
        teacher=get_teacher_digests,
        splits=subpath(input.train, parent=True),
        folder=subpath(output.index, parent=True),
        options=get_signal_options,
        pace=Untracked(commands.signal_pace_flags(config)),
        device=Untracked(config["device"]),
    shell:
        "python {params.script} --data {params.splits:q} {params.options} {params.pace}"
        " --device {params.device} --out {params.folder:q} > {log:q} 2>&1"
