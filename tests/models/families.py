"""The table of published models: who writes one, and who says what its states are.

An entry is one published form of a family. Its checkpoint is small, its weights are synthetic (seeded, random), and
the library that publishes such files writes it, together with the tokenizer files that the published ones have. The
oracle reads that checkpoint and sequences, not tokens, so that the tokens are compared too.
"""

import argparse
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import esm
import sentencepiece
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models import checkpoints

States = list[list[Tensor]]  # of each sequence, after each layer, [tokens, width]
MIXED = (166, 1, 1500, 17, 166, 2, 700, 17, 1, 300)
UP_TO_1022 = (166, 1, 1022, 17, 166, 2, 700, 17, 1, 300)


@dataclass(frozen=True)
class Published:
    """One published form of a model.

    Attributes:
        family: That must be recognised.
        write: Writes a checkpoint into an empty directory and returns what a user would name as its source.
        oracle: The states of sequences, each on its own, by the genuine implementation.
        around: Special tokens before and behind a sequence.
        start_is_cls: Whether the first token stands for the sequence.
        mean_of: What a mean and a maximum are taken over.
        max_length: Of the letters of a sequence.
        long: What becomes of longer ones.
        reference: Whom preparation compares with.
        lengths: Letters of the sequences to compare.
        tolerance: Allowed difference, times the largest absolute value of a layer or 1.
    """

    family: str
    write: Callable[[Path], Path]
    oracle: Callable[[Path, Sequence[str]], States]
    reference: str
    around: tuple[int, int] = (1, 1)
    start_is_cls: bool = True
    mean_of: str = "residues"
    max_length: int | None = None
    long: str = "whole"
    lengths: Sequence[int] = MIXED
    tolerance: float = 1e-5

    def sequences(self, lengths: Sequence[int] | None = None) -> list[str]:
        """Random sequences of the lengths, of every letter that the model should know."""
        letters = "ACGT" if self.family == "mosaic_bert" else "ACDEFGHIKLMNPQRSTVWYXUBZO"
        generator = torch.Generator().manual_seed(11)
        return [
            "".join(letters[number] for number in torch.randint(len(letters), (length,), generator=generator))
            for length in (self.lengths if lengths is None else lengths)
        ]


# Who writes


def seeded(model: torch.nn.Module) -> torch.nn.Module:
    """Random values for every parameter, norms and biases too, of a size that keeps the scale from layer to layer."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            values = 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
        elif "embed" not in name and "shared" not in name and "relative_attention_bias" not in name:
            values /= parameter.shape[-1] ** 0.5
        parameter.data = values
    return model


def esm_config(**more: object) -> transformers.EsmConfig:
    """As facebook/esm2_* have it, small."""
    facts: dict[str, object] = {
        "vocab_size": 33,
        "mask_token_id": 32,
        "pad_token_id": 1,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 1026,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "token_dropout": True,
        "layer_norm_eps": 1e-5,
    }
    return transformers.EsmConfig(**facts | more)


LEARNED: dict[str, object] = {"position_embedding_type": "absolute", "max_position_embeddings": 1026}


def write_esm(directory: Path, vocabulary: Sequence[str] = (), **more: object) -> Path:
    """By transformers, weights with the masked-LM head and ``vocab.txt``."""
    seeded(transformers.EsmForMaskedLM(esm_config(**more))).save_pretrained(directory)
    vocab = directory / "vocab.txt"
    vocab.write_text("\n".join(vocabulary or esm.Alphabet.from_architecture("ESM-1b").all_toks))
    transformers.EsmTokenizer(str(vocab)).save_pretrained(directory)
    return directory


def write_scrambled_esm(directory: Path) -> Path:
    """The same with another row for every residue, and the special tokens elsewhere too."""
    tokens = esm.Alphabet.from_architecture("ESM-1b").all_toks
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(5)).tolist()
    scrambled = [tokens[number] for number in order]
    special = {f"{name}_token_id": scrambled.index(f"<{name}>") for name in ("pad", "mask")}
    return write_esm(directory, scrambled, **special)


def write_learned(directory: Path, name: str) -> Path:
    """As fair-esm's files of ESM-1b and ESM-1v: ``args``, and the regression of contacts beside ESM-1b."""
    args = argparse.Namespace(
        arch="roberta_large",
        layers=3,
        embed_dim=48,
        ffn_embed_dim=96,
        attention_heads=4,
        max_positions=1024,
        token_dropout=True,
        emb_layer_norm_before="esm1b" in name,
    )
    state = seeded(esm.ProteinBertModel(args, esm.Alphabet.from_architecture("roberta_large"))).state_dict()
    regression = {key: state.pop(key) for key in list(state) if key.startswith("contact_head.")}
    state["lm_head.weight"] = state["embed_tokens.weight"]
    prefixed = {
        ("encoder." if key.startswith("lm_head.") else "encoder.sentence_encoder.") + key: tensor
        for key, tensor in state.items()
    }
    published = {"arch": "roberta_large", "max_positions": 1024, "token_dropout": True}
    published |= {f"encoder_{key}": getattr(args, key) for key in ("layers", "embed_dim", "ffn_embed_dim")}
    published["encoder_attention_heads"] = 4
    path = directory / f"{name}.pt"
    torch.save({"args": argparse.Namespace(**published), "model": prefixed}, path)
    if "esm1b" in name:
        torch.save({"model": regression}, directory / f"{name}-contact-regression.pt")
    return path


def esmc_config() -> transformers.EsmcConfig:
    """As biohub/ESMC-* have it, small; heads are 64 wide, as the older package's reader has to assume."""
    return transformers.EsmcConfig(
        hidden_size=128, intermediate_size=192, num_hidden_layers=3, num_attention_heads=2, vocab_size=64
    )


def write_esmc(directory: Path) -> Path:
    """By transformers, weights with the masked-LM head and ``tokenizer.json``."""
    seeded(transformers.EsmcForMaskedLM(esmc_config())).save_pretrained(directory)
    transformers.EsmcTokenizer().save_pretrained(directory)
    return directory


def write_esmc_package(directory: Path) -> Path:
    """The same weights under the names of the older ``esm`` package, one ``.pth``; the oracle's beside it."""
    state = load_file(write_esmc(directory / "transformers") / "model.safetensors")
    found = {name.removeprefix("esmc."): tensor for name, tensor in state.items()}
    named = {"embed.weight": found["embed_tokens.weight"], "transformer.norm.weight": found["norm.weight"]}
    for layer in range(3):
        block, their = f"transformer.blocks.{layer}.", f"layers.{layer}."
        for kind in ("weight", "bias"):
            named[f"{block}attn.layernorm_qkv.0.{kind}"] = found[f"{their}input_layernorm.{kind}"]
            named[f"{block}ffn.0.{kind}"] = found[f"{their}post_attention_layernorm.{kind}"]
        named[f"{block}attn.layernorm_qkv.1.weight"] = torch.cat(
            [found[f"{their}self_attn.{part}_proj.weight"] for part in "qkv"]
        )
        named[f"{block}attn.q_ln.weight"] = found[f"{their}self_attn.q_norm.weight"]
        named[f"{block}attn.k_ln.weight"] = found[f"{their}self_attn.k_norm.weight"]
        named[f"{block}attn.out_proj.weight"] = found[f"{their}self_attn.o_proj.weight"]
        named[f"{block}ffn.1.weight"] = torch.cat([found[f"{their}mlp.{part}_proj.weight"] for part in ("gate", "up")])
        named[f"{block}ffn.3.weight"] = found[f"{their}mlp.down_proj.weight"]
    named["sequence_head.0.weight"] = found["embed_tokens.weight"]
    path = directory / "esmc_300m_2024_12_v0.pth"
    torch.save(named, path)
    return path


def t5_config(**more: object) -> transformers.T5Config:
    """As ProtT5 has it, small: heads that are wider than their share."""
    facts: dict[str, object] = {
        "d_model": 48,
        "d_kv": 16,
        "d_ff": 96,
        "num_layers": 3,
        "num_heads": 4,
        "relative_attention_num_buckets": 32,
        "vocab_size": 150,
        "feed_forward_proj": "relu",
        "tie_word_embeddings": False,
    }
    return transformers.T5Config(**facts | more)


def write_t5(directory: Path, spaced: bool = True, order: str = "ALGVSREDTIPKFQNYMHWCXUBOZ", **more: object) -> Path:
    """By transformers, an encoder alone, with ``spiece.model``."""
    seeded(transformers.T5EncoderModel(t5_config(**more))).save_pretrained(directory)
    write_pieces(directory / "spiece.model", order, spaced)
    return directory


def write_prostt5(directory: Path) -> Path:
    """ProtT5 with two more tokens, of which one stands before a protein."""
    (write_t5(directory) / "added_tokens.json").write_text(json.dumps({"<fold2AA>": 148, "<AA2fold>": 149}))
    return directory


def write_ankh(directory: Path) -> Path:
    """A gated MLP, more buckets, a vocabulary of letters without spaces."""
    sizes = {"relative_attention_num_buckets": 64, "vocab_size": 144}
    return write_t5(directory, spaced=False, feed_forward_proj="gated-gelu", **sizes)


def write_pieces(path: Path, order: str, spaced: bool) -> None:
    """A vocabulary of SentencePiece: ids from 3 on in this order, each residue behind a space or none."""
    text = [letter for number, letter in enumerate(order) for _ in range(len(order) - number)]
    with open(path, "wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([" ".join(text)]),
            model_writer=model,
            model_type="word" if spaced else "char",
            vocab_size=len(order) + (3 if spaced else 4),
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )


def write_dnabert_s(directory: Path) -> Path:
    """The golden file's weights, with pooler and masked-LM head, and a tokenizer of the published form."""
    state = checkpoints.golden_weights()
    state["cls.predictions.decoder.bias"] = torch.ones(64)
    return checkpoints.write_dnabert_s(directory, state, prefix="bert.")


# Who says what the states are


@torch.inference_mode()
def by_fair_esm(source: Path, proteins: Sequence[str]) -> States:
    """fair-esm's own loader, class and alphabet."""
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
        model, alphabet = esm.pretrained.load_model_and_alphabet_local(source)
    layers = range(model.num_layers + 1)
    found = []
    for protein in proteins:
        tokens = torch.tensor([[alphabet.cls_idx, *alphabet.encode(protein), alphabet.eos_idx]])
        states = model.eval()(tokens, repr_layers=layers)["representations"]
        found.append([states[layer][0] for layer in layers])
    return found


def by_transformers(
    name: str, tokenize: Callable[[Path], Callable[[str], list[int]]], **options: object
) -> Callable[[Path, Sequence[str]], States]:
    """A class of transformers; the last of its ``hidden_states`` is the state after the final norm."""

    @torch.inference_mode()
    def states(source: Path, sequences: Sequence[str]) -> States:
        directory = source if source.is_dir() else source.parent / "transformers"
        model = getattr(transformers, name).from_pretrained(directory, dtype=torch.float32, **options).eval()
        ids = tokenize(directory)
        outputs = [model(torch.tensor([ids(each)]), output_hidden_states=True) for each in sequences]
        for output in outputs:
            assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
        return [[layer[0] for layer in output.hidden_states] for output in outputs]

    return states


def esm_tokens(directory: Path) -> Callable[[str], list[int]]:
    tokenizer = transformers.EsmTokenizer.from_pretrained(directory)
    return lambda protein: list(tokenizer(protein)["input_ids"])


def esmc_tokens(directory: Path) -> Callable[[str], list[int]]:
    tokenizer = transformers.EsmcTokenizer.from_pretrained(directory)
    return lambda protein: list(tokenizer(protein)["input_ids"])


def spaced_pieces(directory: Path) -> Callable[[str], list[int]]:
    """As the scripts of ProtT5 and ProstT5 have it: rare residues are X, spaces between all, ``<AA2fold>`` first."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(directory / "spiece.model"))
    added = directory / "added_tokens.json"
    first = [json.loads(added.read_text())["<AA2fold>"]] if added.exists() else []
    rare = str.maketrans("UZOB", "XXXX")
    return lambda protein: [*first, *pieces.encode(" ".join(protein.translate(rare))), pieces.eos_id()]


def raw_pieces(directory: Path) -> Callable[[str], list[int]]:
    """As Ankh has it: a token a letter, no space."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(directory / "spiece.model"))
    return lambda protein: [*(pieces.piece_to_id(letter) for letter in protein), pieces.eos_id()]


def by_definition(source: Path, sequences: Sequence[str]) -> States:
    """DNABERT-2's network, which no library has; test_mosaic_bert.py holds it against the genuine one's states."""
    tokenizer = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    state = {name.removeprefix("bert."): tensor for name, tensor in load_file(source / "model.safetensors").items()}
    heads = json.loads((source / "config.json").read_text())["num_attention_heads"]
    return [checkpoints.mosaic_bert(state, heads, torch.tensor(tokenizer.encode(each).ids)) for each in sequences]


BY_ESM = by_transformers("EsmModel", esm_tokens, add_pooling_layer=False)
BY_ESMC = by_transformers("EsmcModel", esmc_tokens)
BY_T5 = by_transformers("T5EncoderModel", spaced_pieces)
Rotary = partial(Published, "esm")
Learned = partial(Published, "esm", max_length=1022, long="window", lengths=UP_TO_1022)
T5 = partial(Published, "t5", reference="transformers T5EncoderModel", start_is_cls=False)
SCRAMBLED = "YWXVUTSRQPZONMLKIHGFEDCBA"
PUBLISHED = {
    "esm2": Rotary(write_esm, BY_ESM, "transformers EsmModel"),
    "esm2 scrambled": Rotary(write_scrambled_esm, BY_ESM, "transformers EsmModel"),
    "esm2.pt": Rotary(checkpoints.write_esm2, by_fair_esm, "fair-esm"),
    "esm1b": Learned(partial(write_esm, emb_layer_norm_before=True, **LEARNED), BY_ESM, "transformers EsmModel"),
    "esm1v": Learned(partial(write_esm, **LEARNED), BY_ESM, "transformers EsmModel"),
    "esm1b.pt": Learned(partial(write_learned, name="esm1b_small"), by_fair_esm, "fair-esm"),
    "esm1v.pt": Learned(partial(write_learned, name="esm1v_small"), by_fair_esm, "fair-esm"),
    "esmc": Published("esmc", write_esmc, BY_ESMC, "transformers EsmcModel"),
    "esmc.pth": Published("esmc", write_esmc_package, BY_ESMC, "none installed reads this format"),
    "prott5": T5(write_t5, BY_T5, around=(0, 1)),
    "prott5 scrambled": T5(partial(write_t5, order=SCRAMBLED), BY_T5, around=(0, 1)),
    "prostt5": T5(write_prostt5, BY_T5),
    "ankh": T5(write_ankh, by_transformers("T5EncoderModel", raw_pieces), around=(0, 1)),
    "dnabert_s": Published(
        "mosaic_bert",
        write_dnabert_s,
        by_definition,
        "none implements DNABERT-2",
        mean_of="tokens",
        max_length=100_000,
        long="refuse",
        tolerance=5e-5,
    ),
}


def read_state(source: Path) -> dict[str, Tensor]:
    """The tensors of a published model, by their published names."""
    if source.is_dir():
        return dict(load_file(source / "model.safetensors"))
    content = _load(source)
    return dict(content["model"] if source.suffix == ".pt" else content)


def replace_state(source: Path, target: Path, state: dict[str, Tensor]) -> Path:
    """Copy a published model with other tensors; returns the copy's source."""
    shutil.copytree(source if source.is_dir() else source.parent, target)
    if source.is_dir():
        save_file(state, target / "model.safetensors", {"format": "pt"})
        return target
    torch.save(_load(source) | {"model": state} if source.suffix == ".pt" else state, target / source.name)
    return target / source.name


def _load(path: Path) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path)
