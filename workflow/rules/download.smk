# Downloads a model that is named with its hub. Only the manifest, with the checksums of all files, is an output, because
# Snakemake deletes the outputs of a failed job. A local rule, since compute nodes often have no internet access.
rule download_model:
    output:
        manifest="models/{hub}/{source}/download.json",
    log:
        "logs/download_model/{hub}/{source}.log",
    benchmark:
        "logs/download_model/{hub}/{source}.benchmark.tsv"
    wildcard_constraints:
        hub="hf|modelscope",
        source="[^/]+/[^/]+",
    localrule: True
    conda:
        "../envs/torch.yaml"
    resources:
        mem_mb=2000,
        runtime=1440,
    params:
        script=get_script("download_model"),
        code=Untracked(get_code("download_model")),
        folder=subpath(output.manifest, parent=True),
    shell:
        "python {params.script} --source {wildcards.hub}:{wildcards.source} --out {params.folder:q} > {log:q} 2>&1"
