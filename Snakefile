from snakemake.utils import min_version

min_version("9.0")


# A configuration named on the command line replaces this one; Snakemake alone would merge the two.
if not workflow.overwrite_configfiles:

    configfile: f"{workflow.basedir}/config/config.yaml"


include: "rules/common.smk"
include: "rules/inputs.smk"
include: "rules/download.smk"
include: "rules/data.smk"
include: "rules/teacher.smk"
include: "rules/student.smk"
include: "rules/evaluation.smk"
include: "rules/report.smk"
include: "rules/export.smk"


# Of questions in Alpaca format all are taken, of messages a mix.
if config["source"]["format"] == "alpaca":

    include: "rules/alpaca.smk"

else:

    include: "rules/mix.smk"


# What one job answers needs no gathering.
if is_sharded():

    include: "rules/gather.smk"


# Without the key, models/teacher and its like are the user's own.
if "demo" in config:

    include: "rules/demo.smk"


report: "workflow/report/workflow.rst"


rule all:
    default_target: True
    input:
        experiment.get_targets(config, CATEGORIES),
