rule generate_answers:
    input:
        prompts=from_config(experiment.get_prompts, "category"),
        teacher=model_files(experiment.get_teacher_models, "category"),
        server=shared_server("answers"),
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
    threads: from_config(job_resources.get_answering_threads)
    resources:
        **serving_nodes(),
        gpu=from_config(job_resources.get_answering_gpus),
        mem_mb=planned_memory("generate_answers", 32000),
        runtime=2880,
    params:
        **job("generate_answers"),
        teacher=model_digests(experiment.get_teacher_models, "category"),
        options=from_config(command_lines.generate_flags, "category"),
        shard=branch(is_sharded(), then="--shard {scatteritem}", otherwise=""),
        run_options=untracked(command_lines.generate_run_flags),
        device=Untracked(config["device"]),
    shell:
        "python {params.script} --prompts {input.prompts:q} {params.shard} {params.options} {params.run_options}"
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
        **job("split_answers"),
        folder=subpath(output.train, parent=True),
        options=from_config(command_lines.split_flags),
    shell:
        "python {params.script} --answers {input.answers:q} {params.options} --out {params.folder:q} > {log:q} 2>&1"


# Caches the teacher's distribution over a category's completions, for students that train without the teacher in memory.
# The shards are in a data/ folder beside the outputs, which Snakemake does not delete, so that a rerun resumes.
rule compute_signal:
    input:
        train="artifacts/distill_data/processed/{category}/train.jsonl",
        splits=collect(
            "artifacts/distill_data/processed/{{category}}/{split}",
            split=["train.source", "train.target", "val.jsonl", "val.source", "val.target"],
        ),
        teacher=model_files(experiment.get_teacher_models, "category"),
        server=shared_server("signals"),
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
    threads: from_config(job_resources.get_answering_threads)
    resources:
        **serving_nodes(),
        gpu=from_config(job_resources.get_answering_gpus),
        mem_mb=planned_memory("compute_signal", 64000),
        runtime=2880,
    params:
        **job("compute_signal"),
        teacher=model_digests(experiment.get_teacher_models, "category"),
        splits=subpath(input.train, parent=True),
        folder=subpath(output.index, parent=True),
        options=from_config(command_lines.signal_flags, "category", "signal"),
        run_options=untracked(command_lines.signal_run_flags, "category", "signal"),
        device=Untracked(config["device"]),
    shell:
        "python {params.script} --data {params.splits:q} {params.options} {params.run_options}"
        " --device {params.device} --out {params.folder:q} > {log:q} 2>&1"


# One vLLM server for all categories (teacher.vllm.share) instead of one for each job. Snakemake starts it before the jobs
# that use it, runs all of them at the same time, and ends it after the last. Its inputs are those of all of them: a
# server that had the GPU while they wait for a job on that GPU would never end. A service has no benchmark.
rule serve_teacher:
    input:
        needed=get_served_inputs,
        teacher=get_served_models,
    output:
        service("artifacts/vllm/{purpose}.json"),
    log:
        "logs/serve_teacher/{purpose}.log",
    wildcard_constraints:
        purpose="|".join(experiment.SERVER_PURPOSES),
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        gpu=job_resources.get_serving_gpus(config),
        mem_mb=planned_memory("serve_teacher", 32000),
        runtime=2880,
    params:
        **job("serve_teacher"),
        options=get_serving_options,
        device=Untracked(config["device"]),
    shell:
        "python {params.script} {params.options} --device {params.device} --out {output:q} > {log:q} 2>&1"
