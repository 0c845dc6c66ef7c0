# The demo's own small models, made from its data; only a configuration with the key `demo` asks for them.
rule train_demo_tokenizer:
    input:
        **get_demo_data(),
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
        script=get_script("train_demo_tokenizer"),
        code=get_code("train_demo_tokenizer"),
        folder=subpath(output.config, parent=True),
        options=commands.flags({"size": config["demo"]["tokenizer_size"]}),
    shell:
        "python {params.script} --sft {input.sft:q} --grpo {input.grpo:q} {params.options} --out {params.folder:q}"
        " > {log:q} 2>&1"


rule train_demo_model:
    input:
        sft=get_demo_data()["sft"],
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
        script=get_script("train_demo_model"),
        code=get_code("train_demo_model"),
        folder=subpath(output.config, parent=True),
        tokenizer=subpath(input.tokenizer, parent=True),
        options=get_demo_model_options,
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
        script=get_script("train_demo_adapter"),
        code=get_code("train_demo_adapter"),
        folder=subpath(output.config, parent=True),
        model=subpath(input.model, parent=True),
        options=commands.demo_flags(config, "adapter"),
    shell:
        "python {params.script} --model {params.model:q} --sft {input.sft:q} {params.options} --out {params.folder:q}"
        " > {log:q} 2>&1"
