"""A digest of the settings that a model comes from, for its card."""

from copy import deepcopy

from distill.digest import digest_of
from distill.experiment import Config
from distill.pace import get_pace

# They say where and how a run goes, or what is made of its models, not what these are.
WITHOUT_RESULT = {
    "": ("device", "cache", "export"),
    "teacher": ("base_url", "api_key_env", "concurrency", "timeout", "request_retries", "shards"),
    "teacher.generation": ("batch_size",),
    "evaluation": ("batch_size",),
}


def digest_settings(config: Config, student: str) -> str:
    """32 hex digits of a checked configuration: of one student, without what changes no result."""
    kept = deepcopy(config)
    settings = kept["students"][student]
    for option in get_pace(settings["train"]):
        del settings["train"][option]
    kept["students"] = {student: settings}
    for place, names in WITHOUT_RESULT.items():
        part = kept
        for key in filter(None, place.split(".")):
            part = part[key]
        for name in names:
            part.pop(name, None)
    return digest_of(kept)
