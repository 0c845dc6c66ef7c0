# Splits the generation of a category's answers into teacher.shards jobs, and merges their results.
scattergather:
    shards=config["teacher"]["shards"],


rule gather_answers:
    input:
        prompts=from_config(experiment.get_prompts, "category"),
        answers=gather.shards("artifacts/distill_data/raw/shards/teacher_outputs_{{category}}.{scatteritem}.jsonl"),
        stats=gather.shards("artifacts/distill_data/raw/shards/teacher_outputs_{{category}}.{scatteritem}.stats.json"),
    output:
        answers="artifacts/distill_data/raw/teacher_outputs_{category}.jsonl",
        stats="artifacts/distill_data/raw/teacher_outputs_{category}.stats.json",
    log:
        "logs/gather_answers/{category}.log",
    benchmark:
        "logs/gather_answers/{category}.benchmark.tsv"
    conda:
        "../envs/data.yaml"
    resources:
        group_slots=1,
        mem_mb=1000,
        runtime=60,
    params:
        **job("gather_answers"),
    shell:
        "python {params.script} --prompts {input.prompts:q} --shards {input.answers:q} --shard-stats {input.stats:q}"
        " --out {output.answers:q} --stats {output.stats:q} > {log:q} 2>&1"
