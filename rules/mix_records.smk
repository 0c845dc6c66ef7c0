rule mix_records:
    input:
        unpack(from_config(experiment.get_raw_inputs, "category")),
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
        **job("mix_records"),
        options=from_config(command_lines.mix_flags),
    shell:
        "python {params.script} --category {wildcards.category} --grpo {input.grpo:q} --sft {input.sft:q}"
        " {params.options} --out {output.mix:q} > {log:q} 2>&1"
