"""Registry of the variants in which a trained student can be exported.

To add a variant, add an entry to VARIANTS, a writer to `WRITERS` in export/export_model.py, and a test. Configuration,
model names, command lines, model cards and serving commands read this registry. Editing this module reruns exports and
score tables; training and generation must not import it.
"""

from dataclasses import dataclass

from distill.common.names import BASE
from distill.common.quantization_schemes import SCHEMES

FULL = "full"

LOAD_FOLDER = """\
from transformers import pipeline

chat = pipeline("text-generation", model="FOLDER")
print(chat([{"role": "user", "content": "…"}])[0]["generated_text"][-1]["content"])"""

LOAD_COMPRESSED = """\
# Needs the package compressed-tensors.
from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

settings = CompressedTensorsConfig(dequantize=True)
model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto", quantization_config=settings)
tokenizer = AutoTokenizer.from_pretrained("FOLDER")"""

LOAD_GGUF = """\
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

# Not for SmolLM3. For a Mistral model, leave out `config`.
config = AutoConfig.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER", gguf_file="model.gguf", config=config)
tokenizer = AutoTokenizer.from_pretrained("FOLDER")"""


LOAD_FP8 = f"# Needs the package compressed-tensors.\n{LOAD_FOLDER}"

COMPRESSED_NEEDS = "Needs LLM Compressor (`make setup-quantize`)."
GGUF_LIMITS = (
    "Supports Qwen2 models (including Qwen1.5 and Qwen2.5), Qwen3, Llama (SmolLM2, Llama 3 without scaled rotary "
    "embeddings), Mistral without sliding window, SmolLM3 and Gemma 3 (text), with tokenizers of the kinds byte-level "
    "BPE and SentencePiece as in Gemma."
)
GGUF_SERVERS = (
    "llama-server --model {weights} --jinja --port {port}",
    "echo {modelfile} > Modelfile && ollama create {name} && ollama run {name}",
)


@dataclass(frozen=True)
class Variant:
    """A form in which a student is exported, scored and served.

    Attributes:
        summary: what the folder contains, as one sentence for the model card.
        limits: which models or devices it supports, as sentences; empty if all.
        weights_file: name of the file that contains the weights.
        largest_distance: largest distance allowed between its logits and the student's (see
            `export_model.compare_logits`); None if the weights are the student's own.
        library: library that loads the folder, by its name on the Hugging Face hub. `transformers serve` supports
            folders of `transformers` only.
        load_code: Python code for the model card that loads FOLDER with transformers.
        servers: shell commands of other servers, with the fields of `serving.list_servers`.
        is_compressed: LLM Compressor writes the weights, in an environment of its own, and calibrates them on the train
            split.
    """

    summary: str
    limits: str = ""
    weights_file: str = "model.safetensors"
    largest_distance: float | None = None
    library: str = "transformers"
    load_code: str = LOAD_FOLDER
    servers: tuple[str, ...] = ("vllm serve {folder} --port {port}",)
    is_compressed: bool = False

    @property
    def description(self) -> str:
        """Summary and limits, for the configuration reference."""
        return f"{self.summary} {self.limits}".strip()

    @property
    def is_quantized(self) -> bool:
        """Whether the weights differ from the student's; if so, the variant is scored as a model of its own."""
        return self.largest_distance is not None


# Rounding to 8 bits gives distances of a few hundredths, to 4 bits a few tenths; misread weights give 1 or more.
VARIANTS: dict[str, Variant] = {
    FULL: Variant("The weights as trained."),
    "nf4": Variant(
        "Weights quantized to 4 bits (nf4 with double quantization, bitsandbytes).",
        limits="On a CPU, layers need 64·n inputs and 32·n outputs.",
        largest_distance=0.9,
    ),
    "int8": Variant("Weights quantized to 8 bits (LLM.int8(), bitsandbytes).", largest_distance=0.9),
    "gptq": Variant(
        "Weights quantized to 4 bits (GPTQ in groups of up to 128 weights, calibrated on the train split), which vLLM "
        "loads.",
        limits=f"{COMPRESSED_NEEDS} The inputs of all layers must be a multiple of 32.",
        largest_distance=0.9,
        load_code=LOAD_COMPRESSED,
        is_compressed=True,
    ),
    "fp8": Variant(
        "Weights and activations in 8-bit floating point (FP8; a scale for each channel and each token), which vLLM "
        "loads.",
        limits=COMPRESSED_NEEDS,
        largest_distance=0.5,
        load_code=LOAD_FP8,
        is_compressed=True,
    ),
    "gguf": Variant(
        "One GGUF file with weights quantized to 8 bits (Q8_0), for llama.cpp, Ollama and LM Studio.",
        limits=GGUF_LIMITS,
        weights_file="model.gguf",
        largest_distance=0.3,
        library="gguf",
        load_code=LOAD_GGUF,
        servers=GGUF_SERVERS,
    ),
    "gguf_f16": Variant(
        "One GGUF file with weights in float16 (F16), for llama.cpp, Ollama and LM Studio.",
        limits="Supports the same models as `gguf`.",
        weights_file="model.gguf",
        largest_distance=0.1,
        library="gguf",
        load_code=LOAD_GGUF,
        servers=GGUF_SERVERS,
    ),
    "gguf_q4_k_m": Variant(
        "One GGUF file with weights quantized to 4 to 6 bits (Q4_K_M), for llama.cpp, Ollama and LM Studio.",
        limits="Supports the same models as `gguf`. Needs the package `cyllama`, which brings llama.cpp.",
        weights_file="model.gguf",
        largest_distance=0.9,
        library="gguf",
        load_code=LOAD_GGUF,
        servers=GGUF_SERVERS,
    ),
    **{
        scheme.variant: Variant(
            f"Weights of the linear layers rounded as `{name}` and packed for vLLM (compressed-tensors): "
            f"{scheme.description}",
            limits=f"Needs the package `torchao`, and layers of {scheme.group or 1}·n inputs; not for mixtures of "
            "experts.",
            largest_distance=0.9,
            load_code=LOAD_COMPRESSED,
        )
        for name, scheme in SCHEMES.items()
    },
}


def list_suffixes() -> list[str]:
    """Suffixes that tell the evaluated models of a student apart; no student's name may end in one of them."""
    return [BASE, *(name for name, variant in VARIANTS.items() if variant.is_quantized)]


def split_name(model: str) -> tuple[str, str | None]:
    """Split an evaluated model's name into (student, suffix); students themselves and the teacher have no suffix.

    >>> split_name("student_kd_nf4")
    ('student_kd', 'nf4')
    >>> split_name("student_kd_gguf_f16")
    ('student_kd', 'gguf_f16')
    """
    for suffix in sorted(list_suffixes(), key=len, reverse=True):
        student = model.removesuffix(f"_{suffix}")
        if student and student != model:
            return student, suffix
    return model, None


def is_base(model: str) -> bool:
    """Whether the name is that of a student before distillation."""
    return split_name(model)[1] == BASE


def get_variant(model: str) -> str | None:
    """The quantized variant that the name stands for; None for any other model."""
    suffix = split_name(model)[1]
    return None if suffix == BASE else suffix


def get_evaluated_name(student: str, variant: str) -> str:
    """The name under which a variant is evaluated: the student's own if the weights are the same."""
    return f"{student}_{variant}" if VARIANTS[variant].is_quantized else student
