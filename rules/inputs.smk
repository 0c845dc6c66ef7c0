# What jobs read and how they are called, by their wildcards.
def get_teacher_files(wildcards):
    return get_files(experiment.get_teacher_models(config, wildcards.category))


def get_teacher_digests(wildcards):
    return get_digests(experiment.get_teacher_models(config, wildcards.category))


def get_mix_input(wildcards):
    """Raw files of the mix; a source with fraction 0 is not read."""
    return {"grpo": [], "sft": []} | experiment.get_raw_files(config, wildcards.category)


def get_generate_options(wildcards):
    return commands.generate_flags(config, wildcards.category)


def get_shard_option(wildcards):
    return commands.flags({"shard": wildcards.get("scatteritem")})


def get_signal_options(wildcards):
    return commands.signal_flags(config, wildcards.category, wildcards.signal)


def get_copy_options(wildcards):
    return commands.copy_flags(config, wildcards.category)


def get_training_categories(wildcards):
    """Where a training's records are from: its category, or all of them for a pooled student."""
    if wildcards.category not in experiment.get_training_categories(config, wildcards.student, CATEGORIES):
        raise WorkflowError(
            f"{wildcards.student} has no model for {wildcards.category}: see its `pool` and `categories`"
        )
    return CATEGORIES if wildcards.category == experiment.POOLED else [wildcards.category]


def get_training_signals(wildcards):
    """Name of the cached signal that a student learns from; none for the others."""
    return experiment.get_signal(config, wildcards.student) or []


def get_training_files(wildcards):
    return get_files(experiment.get_training_models(config, wildcards.student, wildcards.category))


def get_training_digests(wildcards):
    return get_digests(experiment.get_training_models(config, wildcards.student, wildcards.category))


def get_training_options(wildcards):
    return commands.training_flags(config, wildcards.student, get_training_categories(wildcards))


def get_training_pace(wildcards):
    return Untracked(commands.pace_flags(config, wildcards.student))


def get_training_settings(wildcards):
    return config["students"][wildcards.student]["train"]


def get_training_nodes(wildcards):
    """Machines that train together; None for one, as the other resources that only several have."""
    nodes = get_training_settings(wildcards)["nodes"]
    return nodes if nodes > 1 else None


def get_asked_nodes(wildcards):
    """The same, but one where a job has several GPUs, which Slurm would take from where they are."""
    gpus = get_training_settings(wildcards)["gpus_per_node"]
    return get_training_nodes(wildcards) or (1 if gpus > 1 else None)


def get_training_gpus(wildcards):
    """Those of all nodes."""
    train = get_training_settings(wildcards)
    return get_gpus() * train["nodes"] * train["gpus_per_node"]


def get_training_tasks_per_gpu(wildcards):
    """0: one task a node, whatever GPUs it has; without it the Slurm plugin takes `tasks` for those of a GPU."""
    return 0 if get_training_nodes(wildcards) else None


def get_training_mpi(wildcards):
    """Has the Slurm plugin leave srun to the rule's own command."""
    return "srun" if get_training_nodes(wildcards) else None


def get_training_launch(wildcards, threads):
    """What runs the script: Python, or torchrun on each node where several processes train."""
    train = get_training_settings(wildcards)
    if train["nodes"] == train["gpus_per_node"] == 1:
        return Untracked("python")
    options = commands.flags({"nodes": train["nodes"], "gpus": train["gpus_per_node"], "cpus": threads})
    return Untracked(f"python {get_script('run_on_nodes')} {options}")


def get_asking_gpus(wildcards):
    """None where a server answers."""
    return 0 if experiment.is_served(config, wildcards.get("model", "teacher")) else get_gpus()


def get_asking_threads(wildcards):
    return 1 if experiment.is_served(config, wildcards.get("model", "teacher")) else get_model_threads()


def get_demo_data():
    """Raw files that the demo's models learn from."""
    files = [experiment.get_raw_files(config, category) for category in CATEGORIES]
    return {source: [file[source] for file in files if source in file] for source in ("grpo", "sft")}


def get_demo_model_options(wildcards):
    return commands.demo_flags(config, wildcards.demo_model)


def get_shared_answers(wildcards):
    first = experiment.get_first_base(config, f"{wildcards.student}_base")
    return f"output/evaluation/{first}/{wildcards.category}.{wildcards.kind}.jsonl"


def get_predicting_files(wildcards):
    return get_files(experiment.get_predicting_models(config, wildcards.model, wildcards.category))


def get_predicting_digests(wildcards):
    return get_digests(experiment.get_predicting_models(config, wildcards.model, wildcards.category))


def get_predict_options(wildcards):
    return commands.predict_flags(config, wildcards.model, wildcards.category)


def get_predict_pace(wildcards):
    return Untracked(commands.predict_pace_flags(config, wildcards.model))


def get_question_options(wildcards):
    return commands.question_flags(config, wildcards.model, wildcards.category)


def get_judge_options(wildcards):
    return commands.judge_flags(config, wildcards.category)


def get_scored_categories(wildcards):
    """A category alone; all of them for `all`."""
    return CATEGORIES if wildcards.category == "all" else [wildcards.category]


def get_judged_categories(wildcards):
    """Those of which the teacher reads the answers, where it does."""
    return get_scored_categories(wildcards) if experiment.is_judging(config) else []


def get_export_options(wildcards):
    return commands.export_flags(config, wildcards.student)


def get_card_options(wildcards):
    return commands.card_flags(config, wildcards.student, wildcards.category)


def get_card_models(wildcards):
    """Models that stand in a card's table of scores: the teacher, the student before and after, and the variant."""
    variant = [] if wildcards.variant == "full" else [f"{wildcards.student}_{wildcards.variant}"]
    return ["teacher", wildcards.student, f"{wildcards.student}_base", *variant]


# Options with text of the user's own: braces in it are none of Snakemake's, which looks for them in plain strings.
def get_alpaca_options(wildcards):
    return commands.alpaca_flags(config)


def get_mix_options(wildcards):
    return commands.mix_flags(config)


def get_prompt_options(wildcards):
    return commands.prompt_flags(config)


def get_score_options(wildcards):
    return commands.score_flags(config)


def get_compare_options(wildcards):
    return commands.compare_flags(config)


def get_value_options(wildcards):
    return commands.flags({"answer_key": config["answer"]["key"]})
