"""Options of a student and its training."""

from dataclasses import dataclass
from typing import Literal

from distill.common.options import COUNT, SEED, option
from distill.common.quantization_schemes import SCHEMES
from distill.student.divergences import METHODS
from distill.teacher.options import CACHED_SIGNALS

SIGNALS = ("online", *CACHED_SIGNALS)


@dataclass(frozen=True)
class ObjectiveOptions:
    """What the student minimises, and where the teacher's distribution comes from."""

    method: str = option(
        "Divergence between teacher and student; `seqkd` has none and trains on the teacher's answers alone.",
        "forward_kl",
        choices=METHODS,
        when="See [choosing a method](../docs/distillation.md); `seqkd` is the cheapest.",
    )
    signal: str = option(
        "Source of the teacher's distribution: a teacher in memory (`online`), its cached hidden states (`hidden`), or "
        "its cached top-k log-probabilities (`topk`). Not used by `seqkd`.",
        "online",
        choices=SIGNALS,
        when="`hidden` or `topk` to train without a teacher in memory, especially for several students.",
    )
    top_k: int = option(
        "Log-probabilities kept per position with signal `topk`.",
        64,
        **COUNT,
        when="Lower to save disk space, higher for a divergence closer to the exact one.",
    )
    tail_samples: int = option(
        "With signal `topk`: tokens sampled per position from those outside the top k, so that the gradient of "
        "`forward_kl` has the expectation of the exact one. 0 treats them as one bucket. Only with engine "
        "`transformers`.",
        0,
        minimum=0,
        when="32 with `top_k: 32` at temperature 1, for an unbiased gradient in fewer bytes. Its noise needs steps of "
        "a thousand tokens or more, at higher temperatures of many more.",
    )
    temperature: float = option(
        "Temperature of both distributions in the divergence. Not used by `seqkd`.",
        1.0,
        exclusiveMinimum=0,
        when="Higher values weight unlikely tokens more.",
    )
    alpha: float = option(
        "Weight of the divergence; the cross-entropy has weight 1 - alpha. Not used by `seqkd`.",
        0.9,
        minimum=0,
        maximum=1,
        when="1 for the divergence alone.",
    )
    beta: float = option(
        "Weight of the teacher in the mixture distribution of `jsd`. Not used by other methods.",
        0.5,
        exclusiveMinimum=0,
        exclusiveMaximum=1,
        when="Only with `jsd`.",
    )
    skew: float = option(
        "Share λ of the model's own distribution in the mixture of `skewed_kl` (the teacher's) and `skewed_reverse_kl` "
        "(the student's). Not used by other methods.",
        0.1,
        exclusiveMinimum=0,
        exclusiveMaximum=1,
        when="Higher for a smaller and smoother loss.",
    )
    head_mass: float = option(
        "Probability of the teacher's most likely tokens that form the head in `adaptive_kl`. Not used by other "
        "methods.",
        0.5,
        exclusiveMinimum=0,
        exclusiveMaximum=1,
        when="Only with `adaptive_kl`.",
    )
    ab_alpha: float = option(
        "Exponent of the teacher's probabilities in `alpha_beta`. Not used by other methods.",
        0.2,
        exclusiveMinimum=0,
        when="Higher to weight the teacher's likely tokens more; 1 with `ab_beta` near 0 is close to forward KL.",
    )
    ab_beta: float = option(
        "Exponent of the student's probabilities in `alpha_beta`. Not used by other methods.",
        0.7,
        exclusiveMinimum=0,
        when="Higher to weight the student's likely tokens more; 1 with `ab_alpha` near 0 is close to reverse KL.",
    )
    cross_tokenizer: bool = option(
        "Learn the distribution of a teacher with another tokenizer: distributions are compared where the same text "
        "starts in both tokenizations. Refused for a student with the teacher's tokenizer.",
        False,
        when="`true` for a student of another model family, instead of `seqkd`.",
    )


@dataclass(frozen=True)
class OnPolicyOptions:
    """Training steps on answers that the student samples itself; the names have the prefix `on_policy_`."""

    fraction: float = option(
        "Share of the optimizer steps that train on answers sampled from the student (λ of GKD, arXiv 2306.13649).",
        0.0,
        minimum=0,
        maximum=1,
        when="Above 0 if the student goes astray when it continues its own answers.",
    )
    start: float = option(
        "Share of the training at its start whose steps train on the teacher's answers only.",
        0.0,
        minimum=0,
        exclusiveMaximum=1,
        when="Above 0 if the student cannot write text yet: it first learns from the teacher's answers.",
    )
    steps: int = option(
        "Optimizer steps that one round of sampling provides answers for.",
        8,
        **COUNT,
        when="Lower to train on answers of a more recent student, higher for speed.",
    )
    max_new_tokens: int = option(
        "Maximum length of a sampled answer in tokens.", 256, **COUNT, when="Match the length of the teacher's answers."
    )
    temperature: float = option(
        "Sampling temperature.",
        1.0,
        exclusiveMinimum=0,
        when="Lower if the samples of an untrained student are not text.",
    )
    runaway: str = option(
        "What to do when the answers to the validation prompts (`train.validation_samples`) run away after on-policy "
        "sampling has begun: `warn`, or `stop` the training and keep the last weights whose answers do not run away.",
        "warn",
        choices=("warn", "stop"),
        when="`stop` to not spend hours on a student that no longer ends its answers. A checkpoint is saved at each "
        "validation then.",
    )


@dataclass(frozen=True)
class LoraOptions:
    """A LoRA adapter that is trained and then merged; the names have the prefix `lora_` on command lines."""

    rank: int = option("Rank of the LoRA matrices.", 64, **COUNT, when="Higher for more capacity.")
    alpha: float = option(
        "LoRA scaling: the update is multiplied by alpha / rank.",
        128,
        exclusiveMinimum=0,
        when="Keep it at twice the rank.",
    )
    dropout: float = option(
        "Dropout on the inputs of the adapter.",
        0.05,
        minimum=0,
        exclusiveMaximum=1,
        when="Higher if the validation loss rises early; 0 for mixtures of experts, whose weights PEFT adapts only "
        "without dropout.",
    )
    target: Literal["all"] | list[str] = option(
        "Modules with an adapter: `all` linear layers and weights of experts, or a list of module names. The log lists "
        "what `all` leaves out: layers that an adapter does not fit, and in some mixtures of experts the dense layers "
        "and shared experts, whose names PEFT takes for those of the experts.",
        "all",
        minItems=1,
        items={"minLength": 1},
        when="Module names for a smaller adapter.",
    )


@dataclass(frozen=True)
class PoolOptions:
    """How the categories of a pooled student are weighted."""

    pool_balance: str = option(
        "With `pool`: use each category's records once (`proportional`), or repeat those of smaller categories up to "
        "the size of the largest (`balanced`).",
        "proportional",
        choices=("proportional", "balanced"),
        when="`balanced` if small categories score worse.",
    )


@dataclass(frozen=True)
class TrainOptions:
    """How a student is trained."""

    epochs: float = option(
        "Passes over the training records.",
        3,
        exclusiveMinimum=0,
        when="Fewer if the validation loss rises. Fractions are allowed.",
    )
    batch_size: int = option(
        "Records per device and micro-batch.",
        2,
        **COUNT,
        when="As large as memory allows. An optimizer step has batch_size · gradient_accumulation_steps records.",
    )
    gradient_accumulation_steps: int = option(
        "Micro-batches per optimizer step.",
        8,
        **COUNT,
        when="Lower as batch_size rises, which keeps the result the same.",
    )
    learning_rate: float = option(
        "Peak learning rate, reached after the warm-up.",
        5.0e-5,
        exclusiveMinimum=0,
        when="About 1.0e-4 to 2.0e-4 with `lora`.",
    )
    lr_scheduler: str = option(
        "Learning rate schedule after the warm-up.", "cosine", choices=("cosine", "linear", "constant")
    )
    warmup_ratio: float = option(
        "Share of the optimizer steps used for learning rate warm-up, which is always shorter than the training.",
        0.1,
        minimum=0,
        exclusiveMaximum=1,
        when="Higher if the loss jumps at the start.",
    )
    optimizer: str = option(
        "Optimizer, by its name in transformers.",
        "adamw_torch_fused",
        choices=("adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "adafactor"),
        when="`adamw_bnb_8bit` or `adafactor` to save memory.",
    )
    weight_decay: float = option("Weight decay.", 0.0, minimum=0)
    max_grad_norm: float = option(
        "Gradients are clipped to this norm; 0 disables clipping.",
        1.0,
        minimum=0,
        when="Lower if `grad_norm` has spikes.",
    )
    precision: str = option(
        "Training precision. `bf16` falls back to `fp32` on a GPU without bfloat16.",
        "bf16",
        choices=("fp32", "fp16", "bf16"),
        when="`fp16` on GPUs older than Ampere, `fp32` on a CPU.",
    )
    quantization_aware: str | None = option(
        "Train a student that will be quantized: the weights of its linear layers are rounded in each forward pass "
        "(" + "; ".join(f"`{name}`: {scheme.description.rstrip('.')}" for name, scheme in SCHEMES.items()) + "), and "
        "the student that is written has the rounded values. null rounds nothing. See [quantization-aware training]"
        "(../docs/distillation.md#quantization-aware-training).",
        None,
        choices=SCHEMES,
        when="A short training from a student that loses quality when it is exported as "
        f"{', '.join(f'`{scheme.variant}`' for scheme in SCHEMES.values())}. All weights are trained (no `lora`), "
        "with `strategy: ddp`.",
    )
    gradient_checkpointing: bool = option(
        "Recompute activations in the backward pass to save memory.",
        True,
        changes_result=False,
        when="`false` if memory allows: training is faster.",
    )
    max_length: int = option(
        "Maximum length of prompt and answer together, in tokens. Longer records are left out.",
        2048,
        minimum=2,
        when="Higher if the log reports records that are left out.",
    )
    group_by_length: bool = option(
        "Build optimizer steps from records of similar length: less padding, but less random steps.",
        False,
        when="`true` if lengths differ much. Records are always sorted by length within a step.",
    )
    packing: bool = option(
        "Put several short records into one row of up to `max_length` tokens, each with its own positions and without "
        "attention to the others. A micro-batch then has `batch_size` rows instead of records; an optimizer step keeps "
        "its `batch_size · gradient_accumulation_steps` records, in as few micro-batches as they fill. Results differ "
        "by rounding only. Models that do not keep the records apart are refused, such as state-space models.",
        False,
        changes_result=False,
        when="`true` for speed if records are much shorter than `max_length`; with short records lower `max_length`, "
        "too, to what the longest one needs.",
    )
    best_checkpoint: bool = option(
        "Keep the model with the lowest validation loss instead of the last one.",
        False,
        when="`true` if the validation loss rises again.",
    )
    early_stopping_patience: int | None = option(
        "Stop after this many validations without a lower loss; null never stops early.",
        None,
        **COUNT,
        when="2 or 3 with many `epochs`, ideally with `best_checkpoint`.",
    )
    logging_steps: int = option("Optimizer steps between log lines.", 10, **COUNT, changes_result=False)
    eval_steps: int | None = option(
        "Optimizer steps between validations; null validates after every epoch.",
        None,
        **COUNT,
        changes_result=False,
        when="A number for long epochs.",
    )
    validation_samples: int = option(
        "Validation prompts that the student answers greedily at each validation, up to evaluation.max_new_tokens; see "
        "[samples](../docs/training.md#samples). 0 answers none.",
        4,
        minimum=0,
        changes_result=False,
        when="0 if answers are long and validations frequent, higher to see more of what the student learns.",
    )
    save_steps: int = option(
        "Optimizer steps between checkpoints.",
        500,
        **COUNT,
        changes_result=False,
        when="Lower if jobs are killed often: a resumed run repeats up to this many steps.",
    )
    save_total_limit: int = option(
        "Number of checkpoints to keep.", 3, **COUNT, changes_result=False, when="Lower if disk space is short."
    )
    continue_from: str = option(
        "What the training of a student begins with when its records or settings have changed: `initial`, the model "
        "before distillation, or `previous`, the student of the previous training, of which a copy is kept from when "
        "this is set. See [continuing](../docs/training.md#continue-from-the-previous-student).",
        "initial",
        choices=("initial", "previous"),
        changes_result=False,
        when="`previous` if few records change and training takes long; the result then depends on earlier trainings.",
    )
    seed: int = option(
        "Seed of all that is random in a training: record order, dropout, the start of LoRA weights, sampled answers.",
        42,
        **SEED,
        when="To repeat a training with another seed; for several seeds see `seeds`.",
    )
    strategy: str = option(
        "Distributed strategy: `ddp` replicates the weights on every rank, `fsdp` shards weights and optimizer states.",
        "ddp",
        choices=("ddp", "fsdp"),
        changes_result=False,
        when="`fsdp` if weights and optimizer states do not fit one GPU.",
    )
    fsdp_offload: bool = option(
        "With `fsdp`, keep sharded parameters in CPU memory while they are not in use.",
        False,
        changes_result=False,
        when="`true` if even the shards do not fit; slower.",
    )

    @property
    def row_length(self) -> int | None:
        """Maximum number of tokens in a row that records share; None without packing."""
        return self.max_length if self.packing else None


@dataclass(frozen=True)
class LaunchOptions:
    """How many processes train together; read by the command that launches the training."""

    nodes: int = option(
        "Machines that train together under Slurm; outside Slurm one machine is used.",
        1,
        **COUNT,
        changes_result=False,
        when="2 or more for speed, or with `fsdp` if the student does not fit one machine.",
    )
    gpus_per_node: int = option(
        "GPUs per machine that train together, one process each. If a machine has fewer, all of them are used.",
        1,
        **COUNT,
        changes_result=False,
        when="All GPUs of a machine, for speed or with `fsdp`. Locally add `--resources gpu=N`.",
    )
