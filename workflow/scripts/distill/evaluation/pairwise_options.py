"""Options of the pairwise judge: a model on a server that compares answers."""

from dataclasses import dataclass
from typing import Literal

from distill.common.names import TEACHER
from distill.common.options import COUNT, option, same_as
from distill.generation.options import EngineOptions
from distill.models.options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class PairwiseOptions:
    """What judges the answers, and which answers."""

    base_url: str = option(
        "Address of the judge's server, which has the OpenAI API, up to and including `/v1`.",
        minLength=1,
        changes_result=False,
        when="Always: name your own, for example `https://api.openai.com/v1`.",
    )
    model: str = option(
        "Name of the judge at the server. Other weights need another name.",
        minLength=1,
        when="Always: a model that is better than those that it judges, and of another family.",
    )
    api_key_env: str = same_as(EngineOptions, "api_key_env")
    against: str = option(
        "Evaluated model that every other model is compared with, such as `teacher`, `student_kd` or "
        "`student_kd_base`.",
        TEACHER,
        minLength=1,
        when="The question is which student is better than another one, and not how close they come to the teacher.",
    )
    records: int = option(
        "At most this many test records of a category are judged, the same for all models. The selection is stable as "
        "data grow.",
        200,
        **COUNT,
        when="More for narrower intervals: each record costs two requests for each model.",
    )
    prompt: str | None = option(
        "Text file with the instruction of the judge: what makes an answer better. The question, the answers and the "
        "form of the verdict are added to it. null takes a general one.",
        None,
        minLength=1,
        when="You know what matters in your answers.",
    )
    structured: bool = option(
        "Ask for a JSON object that fits a schema (`response_format`). A server that refuses this is asked for a final "
        "line instead, such as `[[A]]`.",
        True,
        when="`false` if the server fails on schemas, or the judge judges worse with them.",
    )
    max_new_tokens: int = option(
        "Maximum length of a verdict with its explanation, in tokens.",
        1024,
        minimum=1,
        when="Higher for a judge that reasons first, if the log reports verdicts that were cut off.",
    )
    template_arguments: dict[str, str | bool | int | float] = same_as(ModelOptions, "template_arguments")
    concurrency: int | Literal["auto"] = option(
        "Number of requests that each job keeps open at the server; `auto` is 16.",
        "auto",
        **COUNT,
        changes_result=False,
        when="Lower if the server limits requests per minute.",
    )
    timeout: float = same_as(EngineOptions, "timeout")
    request_retries: int = same_as(EngineOptions, "request_retries")
