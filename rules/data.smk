rule make_prompts:
    input:
        mix="artifacts/distill_data/raw/train_mix_{category}.jsonl",
    output:
        prompts="artifacts/distill_data/raw/{category}_teacher_prompts_base.jsonl",
    log:
        "logs/make_prompts/{category}.log",
    benchmark:
        "logs/make_prompts/{category}.benchmark.tsv"
    conda:
        "../envs/data.yaml"
    resources:
        group_slots=1,
        mem_mb=1000,
        runtime=60,
    params:
        **job("make_prompts"),
        options=from_config(command_lines.prompt_flags),
    shell:
        "python {params.script} --mix {input.mix:q} {params.options} --out {output.prompts:q} > {log:q} 2>&1"
