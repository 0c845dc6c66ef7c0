"""Architectures that `check_split` refuses, by `model_type` of config.json.

The plan reads this list, so that they are refused before anything runs; tests/unit/models/test_architectures.py holds
it against tiny models of all architectures.
"""

TRANSFORM = "it transforms hidden states between decoder and head"
UNSUPPORTED = {
    "bert": TRANSFORM,
    "big_bird": TRANSFORM,
    "camembert": TRANSFORM,
    "cpmant": "padding changes its logits",
    "data2vec-text": TRANSFORM,
    "electra": TRANSFORM,
    "ernie": TRANSFORM,
    "megatron-bert": TRANSFORM,
    "modernbert-decoder": TRANSFORM,
    "prophetnet": TRANSFORM,
    "rembert": TRANSFORM,
    "roberta": TRANSFORM,
    "roberta-prelayernorm": TRANSFORM,
    "roc_bert": TRANSFORM,
    "roformer": TRANSFORM,
    "xlm-roberta": TRANSFORM,
    "xlm-roberta-xl": TRANSFORM,
    "xlm": "its tokens attend to later ones",
    "xmod": "it needs a language besides the tokens",
}
