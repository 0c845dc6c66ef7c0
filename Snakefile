from snakemake.utils import min_version

min_version("9.0")


# Snakemake would merge a configuration named on the command line with this one.
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


if is_sharded():

    include: "rules/gather.smk"


# Only the demo makes models/teacher, models/student and models/adapters itself.
if "demo" in config:

    include: "rules/demo.smk"


START_CACHE.save()


report: "workflow/report/workflow.rst"


rule all:
    default_target: True
    input:
        experiment.get_targets(config, CATEGORIES),
