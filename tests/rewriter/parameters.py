"""What the names of parameters say: a truth that the rewriter never looks at."""

import re

KINDS = {
    r"word_emb|wte|embed_tokens|lm_head|decoder\.weight": "word_embedding",
    r"token_type": "token_type_embedding",
    r"position_emb|pos_embed|wpe|rel_embeddings": "position_embedding",
    r"cls_token|class_embedding": "class_token",
    r"dist(illation)?_token": "distillation_token",
    r"norm|ln_|LayerNorm": "norm",
    r"bias$": "bias",
}


def from_parameter(name):
    """Layer and component that the name of a parameter tells, None for names that an exporter made up."""
    if not re.fullmatch(r"[a-zA-Z_]\w*(\.\w+)+", name):
        return None
    layer = re.search(r"(?:layer|layers|h|blocks)[._](\d+)\.", name)
    component = next((kind for part, kind in KINDS.items() if re.search(part, name)), "other_stored")
    return int(layer[1]) if layer else None, component
