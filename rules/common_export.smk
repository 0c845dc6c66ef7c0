# Helpers of export.smk alone; common.smk holds what several files share.
def get_export_options(wildcards):
    return commands.export_flags(config, wildcards.student)


def get_card_options(wildcards):
    return commands.card_flags(config, wildcards.student, wildcards.category)


def get_card_models(wildcards):
    """Models that stand in a card's table of scores: the teacher, the student before and after, and the variant."""
    variant = [] if wildcards.variant == "full" else [f"{wildcards.student}_{wildcards.variant}"]
    return ["teacher", wildcards.student, f"{wildcards.student}_base", *variant]
