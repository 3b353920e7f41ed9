"""How the published formats name the tensors that the encoders want.

A :class:`Layout` turns an encoder's own name (``layers.0.qkv.weight``) into the published ones that make it up.
Sources: fair-esm 2.0.0 (``esm.model.esm2``), transformers' ``modeling_esm``, the files of zhihan1996/DNABERT-S.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """How a published format names what the encoder wants.

    Attributes:
        prefix: Pattern of what may stand before every name.
        outside: Own module name -> published one.
        layer: Published beginning of a layer's names, ``{}`` for its number.
        inside: Own module name in a layer -> the published ones, whose tensors are joined by rows.
        ignored: Pattern of names, without prefix, that no embedding depends on.
    """

    prefix: str
    outside: Mapping[str, str]
    layer: str
    inside: Mapping[str, tuple[str, ...]]
    ignored: str

    def published(self, name: str) -> list[str]:
        """Published names, without prefix, of the tensors that make up one own tensor."""
        module, _, kind = name.rpartition(".")
        if module.startswith("layers."):
            _, layer, inner = module.split(".")
            return [f"{self.layer.format(layer)}.{part}.{kind}" for part in self.inside[inner]]
        return [f"{self.outside[module]}.{kind}"]

    def bare(self, name: str) -> str:
        """Published name without prefix; transformers 5.23 saves a model of its own making with gamma and beta."""
        name = re.sub(r"(?<=LayerNorm\.)gamma$", "weight", re.sub(r"(?<=LayerNorm\.)beta$", "bias", name))
        return re.sub(f"^({self.prefix})", "", name)


FAIR_ESM = Layout(
    prefix=r"encoder\.sentence_encoder\.|encoder\.",
    outside={"embed": "embed_tokens", "final_norm": "emb_layer_norm_after"},
    layer="layers.{}",
    inside={
        "attention_norm": ("self_attn_layer_norm",),
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention_output": ("self_attn.out_proj",),
        "mlp_norm": ("final_layer_norm",),
        "mlp_in": ("fc1",),
        "mlp_out": ("fc2",),
    },
    ignored=r"(lm_head|contact_head)\.",
)
HUGGING_FACE_ESM = Layout(
    prefix=r"esm\.",
    outside={"embed": "embeddings.word_embeddings", "final_norm": "encoder.emb_layer_norm_after"},
    layer="encoder.layer.{}",
    inside={
        "attention_norm": ("attention.LayerNorm",),
        "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention_output": ("attention.output.dense",),
        "mlp_norm": ("LayerNorm",),
        "mlp_in": ("intermediate.dense",),
        "mlp_out": ("output.dense",),
    },
    ignored=r"(lm_head|contact_head|pooler)\.|(embeddings\.)?position_",
)
DNABERT_S = Layout(
    prefix=r"bert\.",
    outside={
        "embed": "embeddings.word_embeddings",
        "token_type": "embeddings.token_type_embeddings",
        "embed_norm": "embeddings.LayerNorm",
    },
    layer="encoder.layer.{}",
    inside={
        "qkv": ("attention.self.Wqkv",),
        "attention_output": ("attention.output.dense",),
        "attention_norm": ("attention.output.LayerNorm",),
        "mlp_gated": ("mlp.gated_layers",),
        "mlp_out": ("mlp.wo",),
        "mlp_norm": ("mlp.layernorm",),
    },
    ignored=r"pooler\.|embeddings\.position_ids$",
)
# One a layer in fair-esm's and older Hugging Face files, one in all in newer ones; transformers 5.23 writes that one
# under a name with a literal asterisk.
ROTARY = r"(layers\.\d+\.self_attn\.rot_emb|(encoder\.layer\.(\d+|\*)\.attention\.self\.)?rotary_embeddings)\.inv_freq"
