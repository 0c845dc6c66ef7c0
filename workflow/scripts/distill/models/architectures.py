"""Architectures that cannot be used, by `model_type` of config.json.

`check_split` refuses those of UNSUPPORTED, `choose_decoding` those of UNGENERATED, and `load_model` those of UNSAVED as
students. The plan reads the lists and refuses them before anything runs; tests/unit/models/test_architectures.py holds
them against tiny models.
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
CACHE = "generated with its cache, it gives other logits than in one forward pass"
UNGENERATED = {"moshi": CACHE, "xlnet": CACHE}
PART = "its text part cannot be loaded alone"
UNSAVED = {"emu3": PART, "mllama": PART}
