"""Options of exported models."""

from dataclasses import dataclass

from distill.common.options import option


@dataclass(frozen=True)
class CardOptions:
    """What a model card states beyond what the workflow knows."""

    license: str | None = option(
        "License of the models, by its identifier on the Hugging Face hub, such as `apache-2.0`.",
        None,
        minLength=1,
        when="Before you publish a model.",
    )
    datasets: list[str] = option(
        "Hub ids of the datasets that the raw records come from.",
        [],
        items={"minLength": 1},
        when="Before you publish a model.",
    )
    language: list[str] = option(
        "Languages of the answers, by their ISO 639 codes.",
        [],
        items={"pattern": "^[a-z]{2,3}$"},
        when="Before you publish a model.",
    )
