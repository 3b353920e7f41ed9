"""The files that models are published in, the heads that they carry, and random models of every family."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import transformers
from holdfast.errors import WeightsError
from holdfast.models.checkpoint import read_checkpoint
from holdfast.models.prepare import prepare
from holdfast.models.registry import Output, load_tokenizer, open_model
from holdfast.models.synthetic import write_synthetic
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor

from tests.models.checkpoints import require_verified
from tests.models.families import PUBLISHED

State = dict[str, Tensor]
DIRECTORIES = ("esm2", "esmc", "prott5", "dnabert_s")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Hugging Face directory of every family."""
    sources = {}
    for name in DIRECTORIES:
        directory = tmp_path_factory.mktemp("published")
        sources[name] = PUBLISHED[name].write(directory)
    return sources


def cast(state: State, dtype: torch.dtype) -> State:
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def write_parts(state: State, directory: Path, binary: bool) -> None:
    """As save_pretrained has the hub's library write large models."""
    save_torch_state_dict(state, directory, max_shard_size="40KB", safe_serialization=not binary)
    index = "pytorch_model.bin.index.json" if binary else "model.safetensors.index.json"
    assert (directory / index).is_file()


FORMS: dict[str, tuple[torch.dtype, Callable[[State, Path], None]]] = {
    "pytorch_model.bin": (torch.float32, lambda state, to: torch.save(state, to / "pytorch_model.bin")),
    "pytorch_model.bin, fp16": (torch.float16, lambda state, to: torch.save(state, to / "pytorch_model.bin")),
    "safetensors, bf16": (torch.bfloat16, lambda state, to: save_torch_state_dict(state, to)),
    "safetensors in parts": (torch.float32, lambda state, to: write_parts(state, to, False)),
    "pytorch_model.bin in parts": (torch.float32, lambda state, to: write_parts(state, to, True)),
}


def copy_without_weights(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    (target / "model.safetensors").unlink(missing_ok=True)
    return target


def require_equal(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    unequal = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
    assert unequal == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", DIRECTORIES)
def test_weights_in_any_file_are_taken_as_they_are(
    name: str, form: str, published: dict[str, Path], tmp_path: Path
) -> None:
    dtype, write = FORMS[form]
    state = cast(load_file(published[name] / "model.safetensors"), dtype)
    source = copy_without_weights(published[name], tmp_path / "published")
    write(state, source)
    prepared = prepare(str(source), tmp_path / "prepared")
    assert str(prepared.verification["reference"]).startswith(PUBLISHED[name].reference)
    require_verified(prepared)
    found = load_file(tmp_path / "prepared" / "model.safetensors")
    expected = dict(read_checkpoint(published[name], None).own_tensors())
    assert {tensor.dtype for own, tensor in found.items() if own != "inv_freq"} == {dtype}
    found.pop("inv_freq", None)
    expected.pop("inv_freq", None)
    require_equal(found, cast(expected, dtype))


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("esm2", "EsmModel"),
        ("esm2", "EsmForSequenceClassification"),
        ("esm2", "EsmForTokenClassification"),
        ("esmc", "EsmcModel"),
        ("esmc", "EsmcForSequenceClassification"),
        ("esmc", "EsmcForTokenClassification"),
        ("prott5", "T5ForConditionalGeneration"),
        ("prott5", "T5ForSequenceClassification"),
        ("prott5", "T5ForTokenClassification"),
    ],
)
def test_heads_that_no_embedding_needs_are_ignored(
    name: str, head: str, published: dict[str, Path], tmp_path: Path
) -> None:
    source = copy_without_weights(published[name], tmp_path / "published")
    getattr(transformers, head).from_pretrained(published[name]).save_pretrained(source)
    plain, headed = load_file(published[name] / "model.safetensors"), load_file(source / "model.safetensors")
    assert {bare(key) for key in headed} != {bare(key) for key in plain}
    require_verified(prepare(str(source), tmp_path / "prepared"))
    found = load_file(tmp_path / "prepared" / "model.safetensors")
    require_equal(found, dict(read_checkpoint(published[name], None).own_tensors()))


def bare(name: str) -> str:
    return name.removeprefix("esm.").removeprefix("esmc.").removeprefix("transformer.")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "esm2_small.pt", "esmc_300m.pth"])
def test_a_pickled_model_is_refused_with_what_to_do(name: str, published: dict[str, Path], tmp_path: Path) -> None:
    source = copy_without_weights(published["esm2"], tmp_path / "published")
    file = source / name
    torch.save(transformers.EsmModel.from_pretrained(published["esm2"]), file)
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(source if name.endswith("bin") else file, None)
    assert str(caught.value).startswith(f"{file}: refused, it holds transformers.models.esm.modeling_esm.EsmModel, ")
    assert str(caught.value).endswith("or save the state_dict() of a model alone, by torch.save")


def test_an_adapter_is_refused_with_what_to_do(published: dict[str, Path], tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    prefix = "base_model.model.esm.encoder.layer.0.attention.self.query.lora_A.weight"
    save_torch_state_dict({prefix: torch.ones(2, 2)}, adapter, filename_pattern="adapter_model{suffix}.safetensors")
    with pytest.raises(WeightsError, match=r"a LoRA adapter; merge it into its model \(merge_and_unload\)"):
        read_checkpoint(adapter, None)


# Random models


@pytest.mark.parametrize(
    ("architecture", "family"),
    [
        ("esm2_t6_8M_UR50D", "esm"),
        ("esm1b_tiny", "esm"),
        ("esmc_tiny", "esmc"),
        ("prot_t5_tiny", "t5"),
        ("ankh_tiny", "t5"),
        ("dnabert_s_tiny", "mosaic_bert"),
    ],
)
def test_random_weights_are_verified_and_tell_sequences_apart(architecture: str, family: str, tmp_path: Path) -> None:
    prepared = prepare(f"synthetic:{architecture}", tmp_path / "prepared")
    assert (prepared.family, prepared.synthetic) == (family, True)
    require_verified(prepared)
    published = next(each for each in PUBLISHED.values() if each.family == family)
    tokens, lengths = load_tokenizer(prepared, tmp_path / "prepared")(published.sequences([150] * 20))
    mean = Output(prepared.layers, "mean")
    found = open_model(tmp_path / "prepared").embed(torch.from_numpy(tokens), lengths.tolist(), [mean])[mean]
    assert float(torch.pdist(found).min() / found.norm(dim=1).mean()) > 0.02


def test_every_family_has_random_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        write_synthetic("synthetic:none", tmp_path / "none")
    known = str(caught.value).rpartition("one of ")[2].split(", ")
    wanted = ("esm2_t33_650M", "esm1b", "esm1v", "esmc_600m", "prot_t5_xl", "prost_t5", "ankh_base", "dnabert_s")
    assert [start for start in wanted if not starting(known, start)] == []


def starting(names: Iterable[str], start: str) -> bool:
    return any(name.startswith(start) for name in names)
