rule mix_records:
    input:
        unpack(get_mix_input),
    output:
        mix="artifacts/distill_data/raw/train_mix_{category}.jsonl",
    log:
        "logs/mix_records/{category}.log",
    benchmark:
        "logs/mix_records/{category}.benchmark.tsv"
    conda:
        "../envs/data.yaml"
    resources:
        group_slots=1,
        mem_mb=1000,
        runtime=60,
    params:
        script=get_script("mix_records"),
        code=get_code("mix_records"),
        options=get_mix_options,
    shell:
        "python {params.script} --category {wildcards.category} --grpo {input.grpo:q} --sft {input.sft:q}"
        " {params.options} --out {output.mix:q} > {log:q} 2>&1"
