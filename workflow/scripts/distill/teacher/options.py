"""Options of the teacher's answers and signal."""

from dataclasses import dataclass

from distill.common.options import COUNT, option

CACHED_SIGNALS = ("hidden", "topk")


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How many answers are generated per prompt, and which are kept."""

    samples: int = option(
        "Answers to generate per prompt.",
        1,
        **COUNT,
        when="Above 1 to choose among answers (`keep: best`) or to train on several.",
    )
    retries: int = option(
        "How many times to retry a prompt that has no usable answer.",
        0,
        minimum=0,
        when="1 to 3 if many answers break the format.",
    )
    keep: str = option(
        "Which usable answers of a prompt to keep: all of them, or the one closest to the label.",
        "all",
        choices=("all", "best"),
        when="`best` for rejection sampling against the true value.",
    )
    overlong: str = option(
        "What to do with a prompt that exceeds the model's context: stop with an error, or skip it with a warning.",
        "error",
        choices=("error", "skip"),
        when="`skip`, once you have seen which prompts are too long.",
    )
    refused: str = option(
        "What to do with a prompt that the server refuses to answer while it answers others, for example because of a "
        "content filter: stop with an error after all others are answered, or skip it with a warning.",
        "error",
        choices=("error", "skip"),
        when="`skip`, once you have seen which prompts are refused and why.",
    )


@dataclass(frozen=True)
class SignalOptions:
    """Where the teacher's cached signals are."""

    signals: str | None = option(
        "Folder for the data of cached teacher signals, absolute or relative to the working directory. Their folders "
        "under `artifacts/distill_data/teacher_signal` then contain a link to it. null keeps the data there.",
        None,
        minLength=1,
        changes_result=False,
        when="Signals need a larger disk than the working directory's. Each working directory needs a folder of its "
        "own. Existing data are moved when the signal is next computed.",
    )


@dataclass(frozen=True)
class CacheOptions:
    """Where the teacher's answers are cached."""

    cache: str = option(
        "Folder of the cached teacher answers, relative to the working directory.",
        "artifacts/cache/teacher",
        minLength=1,
        changes_result=False,
        when="To share answers between working directories or to use a larger disk. `make cache` lists and prunes it.",
    )
