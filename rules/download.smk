# Models that are named with their hub. What is downloaded is no output, so that a job that fails loses none of it: the
# manifest, with the checksums of all files, is. A local rule: compute nodes often reach no hub.
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
        code=Untracked(code_digest(SCRIPTS / "download_model.py")),
        folder=subpath(output.manifest, parent=True),
    shell:
        "python {params.script} --source {wildcards.hub}:{wildcards.source} --out {params.folder:q} > {log:q} 2>&1"
