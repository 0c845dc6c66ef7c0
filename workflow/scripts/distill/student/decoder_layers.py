"""The layers of a model, whatever its architecture calls them."""

from typing import Any

import torch

from distill.models.completions import decoder_and_head


def find_layer_lists(model: Any) -> dict[str, torch.nn.ModuleList]:
    """Find the lists of a decoder that have one member per layer.

    Args:
        model: a causal model, possibly with an adapter.

    Returns:
        Name in the decoder, such as `layers` or `h`, to list; empty if the decoder has no such list.
    """
    total = model.config.get_text_config().num_hidden_layers
    children = decoder_and_head(model)[0].named_children()
    return {name: child for name, child in children if isinstance(child, torch.nn.ModuleList) and len(child) == total}
