# Functions for the inputs, parameters and resources of rules.
class Untracked:
    """A parameter that does not affect the output. Snakemake compares only values of built-in types."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return str(self.text)


def get_script(name):
    """Path of a script, untracked: moving the project reruns nothing."""
    return Untracked(shlex.quote(str(SCRIPTS / f"{name}.py")))


def get_code(name):
    """Digest of a script's code."""
    return START_CACHE.get(f"code of {name}", lambda: code_digest(SCRIPTS / f"{name}.py"))


def job(script):
    """Parameters of a job that runs a script: its path, and a digest of its code, so that an edit reruns the job."""
    return {"script": get_script(script), "code": get_code(script)}


def from_config(function, *names):
    """An input function that returns function(config, …) with the values of the wildcards of these names.

    The configuration is that of the job's category, whose teacher may be its own. Options with text from the
    configuration need such a function: Snakemake would format braces in a plain string.
    """

    def call(wildcards):
        own = experiment.get_category_config(config, getattr(wildcards, "category", experiment.POOLED))
        return function(own, *(getattr(wildcards, name) for name in names))

    return call


def untracked(function, *names):
    """As `from_config`, for an untracked parameter."""
    get = from_config(function, *names)

    def call(wildcards):
        return Untracked(get(wildcards))

    return call


def model_files(get_models, *names):
    """An input function for models: the files of those that the workflow makes or downloads itself."""
    get = from_config(get_models, *names)

    def call(wildcards):
        return [path for model in get(wildcards) for path in experiment.get_made_files(config, model)]

    return call


def model_digests(get_models, *names):
    """A parameter function for models: fingerprints of the user's own, since checksums of inputs read all weights."""
    get = from_config(get_models, *names)

    def call(wildcards):
        own = [model for model in get(wildcards) if not experiment.get_made_files(config, model)]
        return [fingerprint_folder(model) for model in own]

    return call


def get_input_options(wildcards, input):
    """Named inputs as options, `--predictions FILE… --judged FILE…`; those without files are left out."""
    return command_lines.flags(
        {name: files if isinstance(files, str) else list(files) for name, files in input.items() if files}
    )


def is_sharded():
    return config["teacher"]["shards"] > 1


def get_training_categories(wildcards):
    """Categories whose records a training reads: its own, or all for a pooled student."""
    if wildcards.student not in config["students"]:
        names = experiment.get_replicas(config, wildcards.student) or config["students"]
        raise WorkflowError(f"{wildcards.student}: expected a student that is trained, one of {', '.join(names)}")
    if wildcards.category not in experiment.get_training_categories(config, wildcards.student, CATEGORIES):
        raise WorkflowError(
            f"{wildcards.student} has no model for {wildcards.category}: see its `pool` and `categories`"
        )
    return get_scored_categories(wildcards)


def get_scored_categories(wildcards):
    """The category itself; all categories for `all`."""
    return CATEGORIES if wildcards.category == experiment.POOLED else [wildcards.category]


def get_judged_categories(wildcards):
    """Categories whose answers the teacher scores; none if one of several does not."""
    categories = get_scored_categories(wildcards)
    return categories if experiment.are_judged(config, categories) else []


def get_other_prompts(wildcards):
    """Prompts of other categories, whose held-out prompts a pooled student must not be trained on."""
    others = experiment.get_other_categories(config, wildcards.category, CATEGORIES)
    return [f"artifacts/distill_data/raw/{category}_teacher_prompts_base.jsonl" for category in others]


def get_card_category(wildcards):
    """The category of the scores in a model card: that of the model, or the only one for a pooled student's `all`."""
    return CATEGORIES[0] if len(CATEGORIES) == 1 else wildcards.category


def get_training_options(wildcards):
    return command_lines.training_flags(config, wildcards.student, get_training_categories(wildcards))


def get_training_launch(wildcards, threads):
    """The command that runs the training script: Python, or run_on_nodes.py for several processes."""
    options = command_lines.launch_flags(config, wildcards.student, threads)
    return Untracked(f"python {get_script('run_on_nodes')} {options}" if options else "python")


def shared_server(purpose):
    """An input function: the file of the shared vLLM server of jobs with the teacher, if there is one."""

    def call(wildcards):
        return experiment.get_server_file(purpose) if has_shared_server(wildcards) else []

    return call


def has_shared_server(wildcards):
    """Whether a job is one with the teacher, and a server has that."""
    return experiment.is_shared(config) and getattr(wildcards, "model", experiment.TEACHER) == experiment.TEACHER


def get_served_inputs(wildcards):
    """What the jobs that share a server read, so that it starts when all of them can."""
    files = {
        "answers": experiment.get_prompts(config, "{category}"),
        "signals": "artifacts/distill_data/processed/{category}/train.jsonl",
        "predictions": "artifacts/distill_data/processed/{category}/test.jsonl",
        "judgements": "output/evaluation/{model}/{category}.predictions.jsonl",
    }
    return expand(files[wildcards.purpose], category=CATEGORIES, model=experiment.get_models(config))


def get_served_models(wildcards):
    """The files of the model and the adapters of a shared server that the workflow makes or downloads itself."""
    models = {model: None for category in CATEGORIES for model in experiment.get_teacher_models(config, category)}
    return [path for model in models for path in experiment.get_made_files(config, model)]


def get_serving_options(wildcards):
    return command_lines.serve_flags(config, CATEGORIES, wildcards.purpose)


def serving_nodes():
    """Resource functions of a job whose vLLM server may span several nodes, by name; None leaves a resource unset.

    There are none if no server does, since Snakemake calls each function for each job.
    """
    if not job_resources.spans_nodes(config):
        return {}

    def make(name):
        def call(wildcards):
            model = getattr(wildcards, "model", experiment.TEACHER)
            own = experiment.get_category_config(config, wildcards.category)
            return job_resources.get_serving_nodes(own, model)[name]

        return call

    return {name: make(name) for name in ("nodes", "tasks", "tasks_per_gpu", "mpi")}


def training_resource(name):
    """A resource function for a training; None leaves the resource unset."""

    def call(wildcards):
        return job_resources.get_training_resources(config, wildcards.student)[name]

    return call


def planned_memory(rule, default):
    """A resource function for the memory of a job in MB: that of the memory plan (`make plan`), or a default without.

    A job whose model is in a shared server needs little.
    """

    def call(wildcards):
        is_served = rule in experiment.SERVED_RULES
        if is_served and has_shared_server(wildcards):
            return 4000
        return MEMORY.get(rule, default, dict(wildcards.items()))

    return call


def planned_batch_memory(models, default):
    """A resource function for the memory of a job that evaluates these models: that of the largest."""

    def call(wildcards):
        return max(MEMORY.get("predict_answers", default, {**wildcards, "model": model}) for model in models)

    return call


def get_first_base(wildcards):
    """The `_base` whose answers this one shares."""
    return experiment.get_first_base(config, f"{wildcards.student}_base")


def get_uploaded_files(wildcards):
    """The files of an exported model and its card."""
    folder = f"output/export/{wildcards.student}/{wildcards.category}/{wildcards.variant}"
    return [*experiment.get_made_files(config, folder), f"{folder}/README.md"]


def get_published(wildcards):
    """The records of all uploads."""
    try:
        return experiment.get_published(config, CATEGORIES)
    except InputError as error:
        raise WorkflowError(str(error))


def get_calibration_options(wildcards, input):
    return command_lines.calibration_flags(config, input.data)


def get_test_option(wildcards, input):
    return command_lines.flags({"test": input.test})


TASK_RUNS = command_lines.find_task_runs(config, CATEGORIES)
TASK_FILES = experiment.digest_task_files(config)


def get_task_documents(wildcards):
    """The scores of each document of the benchmark tasks, from the run with the same weights."""
    model, category = TASK_RUNS[wildcards.model, wildcards.category]
    return f"output/evaluation/{model}/{category}.documents.jsonl"


def get_task_results(wildcards):
    """The results of that run."""
    model, category = TASK_RUNS[wildcards.model, wildcards.category]
    return f"output/evaluation/{model}/{category}.lm_eval.json"
