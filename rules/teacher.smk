rule generate_answers:
    input:
        prompts="artifacts/distill_data/raw/{category}_teacher_prompts_base.jsonl",
        teacher=get_teacher_files,
    output:
        answers="artifacts/distill_data/raw/teacher_outputs_{category}.jsonl",
        stats="artifacts/distill_data/raw/teacher_outputs_{category}.stats.json",
    log:
        "logs/generate_answers/{category}.log",
    benchmark:
        "logs/generate_answers/{category}.benchmark.tsv"
    conda:
        "../envs/torch.yaml"
    threads: get_model_threads()
    resources:
        gpu=get_gpus(),
        mem_mb=32000,
        runtime=2880,
    params:
        script=get_script("generate_answers"),
        code=get_code("generate_answers"),
        options=get_generate_options,
        batch_size=get_batch_size(config["teacher"]["generation"]),
        cache=Untracked(shlex.quote(config["cache"])),
        device=Untracked(config["device"]),
    shell:
        "python {params.script} --prompts {input.prompts:q} {params.options} --batch-size {params.batch_size}"
        " --cache {params.cache} --device {params.device} --out {output.answers:q} --stats {output.stats:q}"
        " > {log:q} 2>&1"


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
        mem_mb=1000,
        runtime=60,
    params:
        script=get_script("split_answers"),
        code=get_code("split_answers"),
        folder=subpath(output.train, parent=True),
        options=commands.flags(config["split"]),
    shell:
        "python {params.script} --answers {input.answers:q} {params.options} --out {params.folder:q} > {log:q} 2>&1"
