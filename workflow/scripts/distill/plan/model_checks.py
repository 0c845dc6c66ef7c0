"""What the files of local models tell before anything runs: problems that a job would stop at hours later."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.common.errors import InputError
from distill.common.variants import VARIANTS
from distill.generation.vllm_server import choose_rank, find_executable
from distill.models.architectures import UNGENERATED, UNSAVED, UNSUPPORTED
from distill.models.fingerprint import read_shapes
from distill.models.hub_names import get_folder
from distill.models.template_variables import CHANNEL, find_syntax_error, find_unknown_variables
from distill.models.vocabulary import check_tokenizers_differ, shared_vocabulary_size
from distill.plan.experiment import (
    Config,
    get_adapter,
    get_category_config,
    get_configured_students,
    get_engine,
    get_exported_variants,
    get_initial_model,
    get_made_files,
    get_replicas,
    get_student,
    get_teacher,
    group_by_teacher,
)
from distill.student.divergences import METHODS

ADAPTER = "adapter_config.json"
NAMED_ALIKE = re.compile(r"(model|lm_head)\.(?!.*expert)")
LORA_B = re.compile(r"base_model\.model\.(.+)\.lora_B\.weight$")
PROMPT_TYPES = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")
WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)


def find_model_problems(config: Config, categories: Sequence[str]) -> list[str]:
    """List what the files of the configured models and adapters show to be impossible; hub ids are not checked.

    Args:
        config: the checked configuration.
        categories: those that have raw files.

    Returns:
        One line per problem, with the place in the configuration and the file.
    """
    named = list(list_models(config, categories))
    listed = [(folder, place) for folder, place in named if (Path(folder) / "config.json").is_file()]
    models = dict(listed)
    problems = [
        f"{place}: {folder}: expected a model folder, found no config.json in it"
        for folder, place in named
        if folder not in models
    ]
    problems += [
        problem
        for folder, place in listed
        for problem in (
            *check_template(folder, place, list_template_arguments(config, place)),
            *check_weights(folder, place),
            *check_stored_quantization(config, folder, place),
            *check_lora(config, folder, place),
        )
    ]
    problems += [problem for folder, place in models.items() for problem in check_architecture(folder, place)]
    problems += [problem for folder, place in models.items() for problem in check_gguf(config, folder, place)]
    for place, members in group_by_teacher(config, categories).items():
        problems += find_teacher_problems(get_category_config(config, members[0]), members, models, place)
    return list(dict.fromkeys(problems))


def find_teacher_problems(
    config: Config, categories: Sequence[str], models: Mapping[str, str], place: str
) -> Iterator[str]:
    """Yield the problems of a teacher with the students' tokenizers, with its adapters and with vLLM.

    Args:
        config: the configuration of its categories.
        categories: these categories.
        models: places of the user's own local models in the configuration, by folder.
        place: place of the teacher in the configuration.
    """
    if not get_engine(config).loads_weights:
        return
    teacher = get_teacher(config)
    if teacher in models:
        yield from check_tokenizers(config, models, teacher)
    adapters = dict.fromkeys(filter(None, (get_adapter(config, category) for category in categories)))
    own = [
        adapter for adapter in adapters if (Path(adapter) / ADAPTER).is_file() and not get_made_files(config, adapter)
    ]
    yield from find_vllm_problems(config, own)
    base = read_shapes(teacher) if own and teacher in models else {}
    for adapter in own:
        for check in (check_adapter_fits, check_adapter_weights):
            for problem in check(adapter, teacher, base):
                yield f"{place}.adapter: {problem}"


def find_vllm_problems(config: Config, adapters: Sequence[str]) -> list[str]:
    """Return why vLLM cannot be started, or does not serve one of the user's own adapters."""
    if not get_engine(config).starts_vllm:
        return []
    problems = []
    for check, arguments in ((find_executable, [config["teacher"]["vllm"]["executable"]]), (choose_rank, [adapters])):
        try:
            check(*arguments)
        except InputError as error:
            problems.append(str(error))
    return problems


def list_models(config: Config, categories: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (folder, place in the configuration) of the user's own local folders of models."""
    named = []
    for place, members in group_by_teacher(config, categories).items():
        own = get_category_config(config, members[0])
        if get_engine(own).loads_weights:
            named.append((get_teacher(own), f"{place}.model"))
    for student, settings in get_configured_students(config).items():
        if isinstance(settings["model"], str):
            named.append((get_initial_model(config, student, categories[0]), f"students.{student}.model"))
    for folder, place in named:
        if Path(folder).is_dir() and not get_made_files(config, folder):
            yield folder, place


def get_owner(config: Config, place: str) -> Config:
    """Return the settings of the teacher or student at a place from `list_models`."""
    part, *names = place.removesuffix(".model").split(".")
    if part == "students":
        return get_student(config, names[0])
    found: Config = config[part]
    for name in names:
        found = found[name]
    return found


def list_template_arguments(config: Config, place: str) -> list[str]:
    """Return the names of the template arguments of the model at a place from `list_models`."""
    return list(get_owner(config, place)["template_arguments"] or {})


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: the file is not a JSON object; names it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a JSON object ({error})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def check_template(folder: str, place: str, arguments: Iterable[str]) -> Iterator[str]:
    """Yield a problem if a tokenizer has no chat template, or a template lacks one of the `template_arguments`."""
    path, alone = Path(folder) / "tokenizer_config.json", Path(folder) / "chat_template.jinja"
    if not any((Path(folder) / name).is_file() for name in TOKENIZER_FILES) and not any(Path(folder).glob("*.gguf")):
        yield f"{place}: {folder}: expected a tokenizer ({', '.join(TOKENIZER_FILES[:3])}), found none"
        return
    if alone.is_file():
        path, template = alone, alone.read_text(encoding="utf-8")
    elif path.is_file() and not (Path(folder) / "chat_template.json").is_file():
        found = read_json(path).get("chat_template") or ""
        named = found if isinstance(found, list) else [{"template": found}]
        template = "\n".join(str(one.get("template", "")) for one in named)
    else:
        return
    if not template:
        yield f"{place}: {path}: chat_template: expected a chat template, found none"
        return
    if syntax := find_syntax_error(template):
        yield f"{place}: {path}: chat_template: expected a Jinja template, found an error: {syntax}"
    if CHANNEL in template:
        yield f"{place}: {path}: chat_template: expected answers that are text, found channels ({CHANNEL})"
    parent = place.rpartition(".")[0]
    for name in find_unknown_variables(template, list(arguments)):
        yield f"{parent}.template_arguments: {path}: expected variables of the chat template, found {name!r}"


def check_weights(folder: str, place: str) -> Iterator[str]:
    """Yield a problem if a folder with a configuration has no weights, or those of an adapter beside them."""
    if (Path(folder) / ADAPTER).is_file():
        yield f"{place}: {folder}: expected a model without an adapter, found {ADAPTER} beside config.json"
    if not any(path.suffix in WEIGHTS for path in Path(folder).iterdir()):
        yield f"{place}: {folder}: expected weights ({', '.join(WEIGHTS)}), found none"


def check_stored_quantization(config: Config, folder: str, place: str) -> Iterator[str]:
    """Yield a problem if quantized weights would be trained, or quantized again."""
    path = Path(folder) / "config.json"
    stored = read_json(path).get("quantization_config")
    if not isinstance(stored, dict):
        return
    name = stored.get("quant_method", "unknown method")
    if place.startswith("students."):
        expected = "a student with weights that are not quantized"
        yield f"{place}: {path}: quantization_config: expected {expected}, found {name}"
        return
    expected = f"none, since the weights are quantized already ({name})"
    owner = place.removesuffix(".model")
    wanted = {f"{owner}.quantization": get_owner(config, place)["quantization"]}
    wanted |= {
        f"students.{one}.teacher_quantization": settings["teacher_quantization"]
        for one, settings in get_configured_students(config).items()
    }
    for key, found in wanted.items():
        if found not in ("none", None):
            yield f"{key}: {path}: expected {expected}, found {found}"
    for student, settings in get_configured_students(config).items():
        if not isinstance(settings["model"], str):
            yield f"students.{student}.model: {path}: expected a teacher with layers to copy, found {name} weights"


def check_lora(config: Config, folder: str, place: str) -> Iterator[str]:
    """Yield a problem for names in a student's `lora.target` that fit no weight, and for experts with dropout."""
    lora = get_owner(config, place).get("lora")
    if not lora or not (shapes := read_shapes(folder)):
        return
    owner = place.removesuffix(".model")
    is_all = lora["target"] in ("all", ["all"])
    if experts := sorted(name for name, shape in shapes.items() if is_expert(name, shape)):
        # They have other names in the file than in the model, so a list is left to the training.
        if is_all and lora["dropout"]:
            expected = f"expected 0, since the adapter includes the weights of experts in {folder} ({experts[0]})"
            yield f"{owner}.lora.dropout: {expected}, found {lora['dropout']}"
        return
    if is_all:
        return
    for name in find_missing_modules(lora["target"], shapes):
        yield f"{owner}.lora.target: expected modules of {folder}, found none there named {name!r}"


def is_expert(name: str, shape: Sequence[int]) -> bool:
    """Whether a weight in a file belongs to experts, which may be stacked to three dimensions."""
    return ".experts." in name or ("moe" in name and len(shape) == 3)


def find_missing_modules(targets: Sequence[str], weights: Iterable[str]) -> list[str]:
    """Return the targets of an adapter, names of modules or ends of them, that fit no weight.

    The head counts as there, since a tied one is not in the file.
    """
    modules = {name.rpartition(".")[0] for name in weights} | {"lm_head"}
    return [target for target in targets if not any(f".{module}".endswith(f".{target}") for module in modules)]


def check_architecture(folder: str, place: str) -> Iterator[str]:
    """Yield a problem if the model's architecture is not supported."""
    path = Path(folder) / "config.json"
    settings = read_json(path)
    text = settings.get("text_config")
    reasons = UNSUPPORTED | UNGENERATED | (UNSAVED if place.startswith("students.") else {})
    for kind in (settings.get("model_type"), text.get("model_type") if isinstance(text, dict) else None):
        if kind in reasons:
            yield f"{place}: {path}: model_type: {kind} is not supported: {reasons[kind]}"
            return


def check_gguf(config: Config, folder: str, place: str) -> Iterator[str]:
    """Yield a problem if a student's architecture has no GGUF layout and a GGUF variant is exported."""
    if not place.startswith("students."):
        return
    replicas = get_replicas(config, place.removeprefix("students.").removesuffix(".model"))
    variants = [variant for replica in replicas for variant in get_exported_variants(config, replica)]
    chosen = [name for name in variants if VARIANTS[name].library == "gguf"]
    if not chosen:
        return
    from distill.export.gguf_layouts import LAYOUTS, find_layout  # imports numpy

    path = Path(folder) / "config.json"
    settings = read_json(path)
    (name, *_) = settings.get("architectures") or ["none"]
    if name not in LAYOUTS:
        expected = " | ".join(LAYOUTS)
        yield f"{place}: {path}: architectures: expected {expected} for the variant {chosen[0]}, found {name}"
        return
    try:
        find_layout(str(path), StoredConfig(settings))
    except InputError as error:
        yield f"{place}: {error}"
    except MissingSettingError:
        return  # the default of transformers decides; the export job knows it


class MissingSettingError(AttributeError):
    """A setting is not in config.json."""


class StoredConfig:
    """The settings of config.json as attributes, without the defaults of transformers."""

    def __init__(self, settings: dict[str, Any]):
        scaling = dict(settings.get("rope_parameters") or settings.get("rope_scaling") or {})
        if "type" in scaling:  # the name in older files
            scaling.setdefault("rope_type", scaling.pop("type"))
        self.settings = settings | {"rope_parameters": scaling}

    def __getattr__(self, name: str) -> Any:
        try:
            return self.settings[name]
        except KeyError:
            raise MissingSettingError(name) from None


@dataclass(frozen=True)
class StoredTokenizer:
    """A tokenizer as its tokenizer.json describes it, read without its library.

    Attributes:
        name_or_path: its folder.
        vocabulary: token ids by token.
    """

    name_or_path: str
    vocabulary: dict[str, int]

    def get_vocab(self) -> dict[str, int]:
        """Return token ids by token."""
        return self.vocabulary


def read_tokenizer(folder: str) -> StoredTokenizer | None:
    """Read a folder's tokenizer; None if it is not stored as tokenizer.json."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        return None
    stored = read_json(path)
    found = stored.get("model", {}).get("vocab", {})
    vocabulary = dict(found) if isinstance(found, dict) else {piece[0]: index for index, piece in enumerate(found)}
    return StoredTokenizer(folder, vocabulary | {one["content"]: one["id"] for one in stored.get("added_tokens", [])})


def check_tokenizers(config: Config, models: Mapping[str, str], teacher: str) -> Iterator[str]:
    """Yield a problem for each student that needs the teacher's distribution, and has another tokenizer.

    With `cross_tokenizer` it is a problem if the student has the same one.
    """
    theirs = read_tokenizer(teacher)
    for student, settings in get_configured_students(config).items():
        folder = get_folder(settings["model"]) if isinstance(settings["model"], str) else ""
        if theirs is None or folder not in models or not METHODS[settings["method"]].needs_teacher:
            continue
        if mine := read_tokenizer(folder):
            sizes = [read_json(Path(model) / "config.json").get("vocab_size") for model in (teacher, folder)]
            rows = [size for size in sizes if isinstance(size, int)]
            key = "cross_tokenizer" if settings["cross_tokenizer"] else "model"
            check: Any = check_tokenizers_differ if settings["cross_tokenizer"] else shared_vocabulary_size
            try:
                check(theirs, mine, min(rows, default=None))
            except InputError as error:
                yield f"students.{student}.{key}: {error}"


def check_adapter_fits(adapter: str, model: str, base: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """Yield a problem if an adapter names modules and its base model has none of them.

    Args:
        adapter: folder of the adapter.
        model: its base model.
        base: shapes of the weights in the base model's files; empty if they are not there.
    """
    path = Path(adapter) / ADAPTER
    targets = read_json(path).get("target_modules")
    if not base or not isinstance(targets, list):
        return  # a regular expression, or all linear layers
    missing = find_missing_modules(targets, base)
    if targets and len(missing) == len(targets):
        yield (
            f"{path}: target_modules: expected modules of {model}, found none of them there: "
            f"{', '.join(sorted(missing)[:3])}"
        )


def check_adapter_weights(adapter: str, model: str, base: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """Yield a problem if the weights of a LoRA adapter are not those of modules of its base model.

    Args:
        adapter, model, base: see `check_adapter_fits`.
    """
    path = Path(adapter) / ADAPTER
    settings = read_json(path)
    if (kind := settings.get("peft_type")) in PROMPT_TYPES:
        yield f"{path}: peft_type: expected an adapter of weights, such as LORA, found {kind}"
        return
    if settings.get("alora_invocation_tokens"):
        yield f"{path}: alora_invocation_tokens: expected none, since the adapter is merged"
    shapes = read_shapes(adapter, "adapter_model*.safetensors")
    found = {name: LORA_B.match(name) for name in shapes}
    rows = {match[1]: shapes[name][0] for name, match in found.items() if match and shapes[name]}
    known = {module: base[f"{module}.weight"][0] for module in rows if base.get(f"{module}.weight")}
    config = read_json(Path(model) / "config.json") if base else {}
    if "quantization_config" in config:
        return  # quantized weights have other names and shapes
    # Models in several parts, experts and other names than these are renamed when transformers loads them.
    is_plain = "text_config" not in config and all(NAMED_ALIKE.match(name) for name in base)
    if rows and base and is_plain and not known and "lm_head" not in rows and settings.get("peft_type") == "LORA":
        yield f"{adapter}: expected weights of modules of {model}, found none there named {min(rows)}"
    for module in sorted(known):
        if rows[module] != known[module] and not settings.get("fan_in_fan_out"):
            expected = f"{known[module]} rows as in {model}, found {rows[module]}"
            yield f"{adapter}: {module}: expected {expected}"
            return
