# Tiny models for the demo, trained on its data.
rule train_demo_tokenizer:
    input:
        **experiment.get_all_raw_inputs(config, CATEGORIES),
    output:
        multiext(
            "models/tokenizer/",
            tokenizer="tokenizer.json",
            config="tokenizer_config.json",
            template="chat_template.jinja",
        ),
    log:
        "logs/train_demo_tokenizer.log",
    benchmark:
        "logs/train_demo_tokenizer.benchmark.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        **job("train_demo_tokenizer"),
        folder=subpath(output.config, parent=True),
        options=from_config(command_lines.tokenizer_flags),
    shell:
        "python {params.script} --sft {input.sft:q} --grpo {input.grpo:q} {params.options} --out {params.folder:q}"
        " > {log:q} 2>&1"


rule train_demo_model:
    input:
        sft=experiment.get_all_raw_inputs(config, CATEGORIES)["sft"],
        tokenizer="models/tokenizer/tokenizer.json",
    output:
        multiext("models/{demo_model}/", config="config.json", model="model.safetensors"),
    log:
        "logs/train_demo_model/{demo_model}.log",
    benchmark:
        "logs/train_demo_model/{demo_model}.benchmark.tsv"
    wildcard_constraints:
        demo_model="teacher|student",
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        **job("train_demo_model"),
        folder=subpath(output.config, parent=True),
        tokenizer=subpath(input.tokenizer, parent=True),
        options=from_config(command_lines.demo_flags, "demo_model"),
    shell:
        "python {params.script} --tokenizer {params.tokenizer:q} --sft {input.sft:q} {params.options}"
        " --out {params.folder:q} > {log:q} 2>&1"


rule train_demo_adapter:
    input:
        model="models/teacher/model.safetensors",
        sft=config["source"]["sft"],
    output:
        multiext("models/adapters/{category}/", config="adapter_config.json", model="adapter_model.safetensors"),
    log:
        "logs/train_demo_adapter/{category}.log",
    benchmark:
        "logs/train_demo_adapter/{category}.benchmark.tsv"
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        **job("train_demo_adapter"),
        folder=subpath(output.config, parent=True),
        model=subpath(input.model, parent=True),
        options=command_lines.demo_flags(config, "adapter"),
    shell:
        "python {params.script} --model {params.model:q} --sft {input.sft:q} {params.options} --out {params.folder:q}"
        " > {log:q} 2>&1"
