# The format of the raw records decides which script reads them.
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
        # Groups of rows of a Parquet file are read as a whole.
        mem_mb=4000 if experiment.get_source_format(config).reads_datasets else 1000,
        runtime=60,
    params:
        **job(experiment.get_source_format(config).script),
        files=get_input_options,
        options=from_config(command_lines.mix_flags),
    shell:
        "python {params.script} --category {wildcards.category} {params.files} {params.options}"
        " --out {output.mix:q} > {log:q} 2>&1"


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
        options=from_config(command_lines.prompt_flags, "category"),
    shell:
        "python {params.script} --mix {input.mix:q} {params.options} --out {output.prompts:q} > {log:q} 2>&1"


# Reads the prompts, whose splits are known before the answers. With near_duplicates.action drop, the teacher is asked
# the prompts that are kept. The priority has the report written before the first answers if both can start.
rule find_near_duplicates:
    input:
        prompts="artifacts/distill_data/raw/{category}_teacher_prompts_base.jsonl",
        others=get_other_prompts,
        against=experiment.get_further_prompts(config),
    output:
        **experiment.get_kept_prompts(config),
        pairs="output/report/near_duplicates/{category}.csv",
        counts="output/report/near_duplicates/{category}.json",
    log:
        "logs/find_near_duplicates/{category}.log",
    benchmark:
        "logs/find_near_duplicates/{category}.benchmark.tsv"
    priority: 1
    conda:
        "../envs/data.yaml"
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        **job("find_near_duplicates"),
        inputs=get_input_options,
        kept=command_lines.flags(experiment.get_kept_prompts(config)),
        options=from_config(command_lines.near_duplicate_flags, "category"),
    shell:
        "python {params.script} {params.inputs} {params.options} --pairs {output.pairs:q} --counts {output.counts:q}"
        " {params.kept} > {log:q} 2>&1"
