rule read_alpaca:
    input:
        unpack(from_config(experiment.get_raw_inputs, "category")),
    output:
        mix="artifacts/distill_data/raw/train_mix_{category}.jsonl",
    log:
        "logs/read_alpaca/{category}.log",
    benchmark:
        "logs/read_alpaca/{category}.benchmark.tsv"
    conda:
        "../envs/data.yaml"
    resources:
        group_slots=1,
        mem_mb=1000,
        runtime=60,
    params:
        **job("read_alpaca"),
        options=from_config(command_lines.alpaca_flags),
    shell:
        "python {params.script} --category {wildcards.category} --questions {input.questions:q}"
        " {params.options} --out {output.mix:q} > {log:q} 2>&1"
