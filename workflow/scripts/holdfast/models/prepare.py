"""Published checkpoints in, a verified prepared model out.

:func:`prepare` is the one way: a source is located, its family recognised, and read (:mod:`.checkpoint`); its tensors
are written as safetensors, and the encoder reading that file is compared with a reference implementation reading the
source. Only then does the directory appear under its name. A synthetic source is a random checkpoint in the published
format; it goes the same way. Files are mapped, and whatever is made of them, tensors to write or fp32 to compute in, is
made one tensor or one layer at a time: memory is that of the largest layer, not of the model.
"""

import ctypes
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch

from ..documents import read_json
from ..errors import WeightsError
from ..files import sync_directory
from ..sequences.tokens import BytePairTokenizer
from .checkpoint import ADAPTER_FILE, Checkpoint, as_bytes, read_checkpoint
from .encoder import HEADER_KEY, Encoder, WidenedWeights, read_weights
from .published import configuration_sha256, digest_files, weights_files
from .registry import (
    DESCRIPTION_FILE,
    FORMAT_VERSION,
    PREFIX,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Prepared,
    family_module,
    load_tokenizer,
    require_known,
)
from .safetensors_file import write_tensors
from .synthetic import SEED, write_synthetic
from .torch_file import first_line

DOWNLOADS = (
    *("config.json", ADAPTER_FILE, "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "vocab.txt", "spiece.model", "added_tokens.json"),
)
LARGEST_DIFFERENCE = 1e-4  # of states in fp32, by the largest of them or 1; right encoders stay below 1e-5
VERIFICATION_LENGTHS = (1, 3, 17, 64, 64, 166)  # tokens without the special ones, that is aa of a protein
M_MMAP_THRESHOLD = -3  # malloc.h of glibc
LARGEST_HEAP_BYTES = 2**20
COMMON_RESIDUES = "ACDEFGHIKLMNPQRSTVWY"


def prepare(source: str, output: Path, sha256: str | None = None) -> Prepared:
    """Turn a published checkpoint into a verified prepared model.

    Args:
        source: A file of fair-esm (``.pt``, fp32 or fp16; the contact-regression file beside it is not needed) or of
            the older ``esm`` package (``.pth``), a Hugging Face directory, a hub id (``HF_HOME``, ``HF_HUB_OFFLINE``
            and ``HF_ENDPOINT`` are respected; only configuration, tokenizer and weights are fetched), or
            ``synthetic:ARCHITECTURE`` for seeded random weights. The family is recognised.
        output: The directory to write. It is complete or absent at any moment; a prepared model that is there is
            replaced, anything else is left alone.
        sha256: Expected digest (hex) of the weights file, checked before anything in it is parsed. Of weights in
            several files: the digest of their bytes one after the other in the order of their names, as
            ``cat model-*.safetensors | sha256sum`` gives it.

    Returns:
        What ``model.json`` in ``output`` says.

    Raises:
        WeightsError: the source cannot be found, has another digest, is of no known family, needs code to be read,
            misses tensors, has unknown or misshapen ones, or the encoder differs from the reference by more than
            1e-4 of the largest state; or ``output`` holds something else.
    """
    require_known(source)
    output = output.resolve()  # a link stays, what it leads to is replaced
    if output.exists() and not (output / DESCRIPTION_FILE).is_file() and not _may_be_replaced(output):
        raise WeightsError(f"{output}: exists and is not a prepared model; name another directory or remove it")
    output.parent.mkdir(parents=True, exist_ok=True)
    _return_freed_memory()
    with _scratch(output) as scratch:
        if source.startswith(PREFIX):
            path = write_synthetic(source, scratch / "published")
        else:
            path = locate_checkpoint(source)
        published = read_checkpoint(path, sha256)
        directory = scratch / "prepared"
        directory.mkdir()
        prepared = replace(_write(published, source, directory), configuration_sha256=configuration_sha256(path))
        prepared = replace(prepared, verification=_verify(published, prepared, directory))
        prepared.write(directory)
        _sync(directory)
        if output.exists():
            output.rename(scratch / "replaced")
        directory.rename(output)
        sync_directory(output.parent)
    return prepared


def _return_freed_memory() -> None:
    """Have memory of tensors go back to the system when it is freed.

    glibc keeps blocks of up to 32 MiB in its heap once one of that size was freed (mallopt(3)), and cannot put the
    next, aligned ones into the gaps: 650M parameters in blocks of 25 MiB left 1.9 GB behind.
    """
    with suppress(AttributeError):  # another library of C, which has no such habit
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGEST_HEAP_BYTES)


def locate_checkpoint(source: str) -> Path:
    """Path of a file or directory, or of a hub id's configuration, tokenizer and weights, fetched or cached.

    Of a hub id safetensors are fetched if it has them, else .bin, and never code.

    Raises:
        WeightsError: neither a path nor a model that the hub or its cache could give.
    """
    if Path(source).exists():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        path = Path(snapshot_download(source, allow_patterns=[*DOWNLOADS, "model*.safetensors*"]))
        if weights_files(path) is None:
            path = Path(snapshot_download(source, allow_patterns=[*DOWNLOADS, "pytorch_model*.bin*"]))
    except (HFValidationError, HTTPError, OSError) as error:
        raise WeightsError(
            f"{source}: no such file or directory, and no model that the Hugging Face hub or its cache could give "
            f"({first_line(error)}); correct the path, or the hub id and the connection"
        ) from None
    return path


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """An empty directory beside the output, of a fixed name, so that what a killed preparation left is removed."""
    scratch = output.with_name(f".{output.name}.preparing")
    scratch.mkdir(exist_ok=True)
    handle = os.open(scratch, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise WeightsError(f"{output}: is being prepared by another process; wait for it") from None
    try:
        for left in scratch.iterdir():
            shutil.rmtree(left)
        yield scratch
    finally:
        shutil.rmtree(scratch)
        os.close(handle)


def _write(published: Checkpoint, source: str, directory: Path) -> Prepared:
    """Write weights, tokenizer and a description that is not verified yet."""
    tensors = published.own_tensors()
    architecture, letters = published.architecture, published.letters
    if published.tokenizer is not None:
        _copy_tokenizer(published.tokenizer, int(architecture["vocabulary"]), directory / TOKENIZER_FILE)
    elif letters is not None and letters.largest >= int(architecture["vocabulary"]):
        raise WeightsError(f"{published.where}: its vocabulary has more tokens than the embedding has rows")
    prepared = Prepared(
        family=published.family,
        alphabet=published.alphabet.name.lower(),
        architecture=architecture,
        layers=int(architecture["layers"]),
        width=int(architecture["width"]),
        letters=letters,
        start_tokens=1 if letters is None or letters.start is not None else 0,
        end_tokens=1 if letters is None or letters.end is not None else 0,
        start_is_cls=published.start_is_cls,
        mean_of=published.mean_of,
        max_length=published.max_length,
        long=published.long,
        source=source,
        source_sha256=published.sha256,
        weights_sha256="",
        synthetic=source.startswith(PREFIX),
        verification={},
    )
    header = {
        "family": prepared.family,
        "architecture": prepared.architecture,
        "synthetic": prepared.synthetic,
        "format_version": FORMAT_VERSION,
    }
    entries = {name: tensors.entry(name) for name in tensors}
    contents = ((name, as_bytes(tensor)) for name, tensor in tensors.items())
    write_tensors(directory / WEIGHTS_FILE, entries, {HEADER_KEY: json.dumps(header)}, contents)
    prepared = replace(prepared, weights_sha256=digest_files([directory / WEIGHTS_FILE], None))
    prepared.write(directory)
    return prepared


def _copy_tokenizer(source: Path, vocabulary: int, target: Path) -> None:
    """Copy ``tokenizer.json`` as it is, once it can be read and fits the embedding table."""
    if not source.is_file():
        raise WeightsError(f"{source}: missing; the model needs the tokenizer of its checkpoint, download it too")
    try:
        BytePairTokenizer(source)
    except WeightsError as error:  # it advises to prepare again, which is what we are doing
        raise WeightsError(f"{str(error).rpartition('; ')[0]}; download it again") from None
    largest = max(read_json(source)["model"]["vocab"].values())
    if largest >= vocabulary:
        raise WeightsError(f"{source}: token {largest} has no row among {vocabulary}; it belongs to another model")
    shutil.copyfile(source, target)


def _sync(directory: Path) -> None:
    for file in directory.iterdir():
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
    sync_directory(directory)


def _may_be_replaced(path: Path) -> bool:
    """Whether a directory is empty, or holds what Snakemake leaves of a prepared model when it removes outputs."""
    return path.is_dir() and {file.name for file in path.iterdir()} <= {TOKENIZER_FILE, WEIGHTS_FILE}


# Verification


def _verify(published: Checkpoint, prepared: Prepared, directory: Path) -> dict[str, str | float | int | None]:
    """Compare the encoder on the prepared files with the reference on the source, one layer in memory at a time.

    Raises:
        WeightsError: they differ by more than :data:`LARGEST_DIFFERENCE`.
    """
    sequences = _random_tokens(prepared, directory)
    lengths = [len(sequence) for sequence in sequences]
    weights = WidenedWeights(read_weights(directory, prepared, "cpu", "stored"))
    loaded: Encoder = family_module(prepared.family).ENCODER(weights, prepared)
    states = loaded.encode(torch.cat(sequences), lengths).split(lengths)
    if published.encode_reference is None:
        references = [loaded.encode(sequence, [len(sequence)]) for sequence in sequences]
    else:
        references = published.encode_reference(sequences)
    largest = max(1.0, *(float(theirs.abs().max()) for theirs in references))
    pairs = zip(states, references, strict=True)
    difference = float(torch.stack([(ours - theirs).abs().max() for ours, theirs in pairs]).max()) / largest
    if not difference <= LARGEST_DIFFERENCE:
        raise WeightsError(
            f"{published.where}: the encoder differs from the reference ({published.reference}) by {difference:.1e}, "
            f"allowed are {LARGEST_DIFFERENCE:.0e}; these weights are not used, please report this"
        )
    return {
        "reference": published.reference,
        "largest_difference": difference,
        "largest_value": largest,
        "sequences": len(sequences),
    }


def _random_tokens(prepared: Prepared, directory: Path) -> list[torch.Tensor]:
    """Seeded sequences of ordinary tokens between the model's special ones, int64 [tokens] each."""
    generator = torch.Generator().manual_seed(SEED)
    special, _ = load_tokenizer(prepared, directory)([""])  # what stands before and behind a sequence
    start, end = torch.from_numpy(special).long().split([prepared.start_tokens, prepared.end_tokens])
    if prepared.letters is None:
        tokens = list(range(BytePairTokenizer.SPECIAL_TOKENS, int(prepared.architecture["vocabulary"])))
    else:
        tokens = [prepared.letters.ids[letter] for letter in COMMON_RESIDUES]
    ordinary = torch.tensor(tokens)
    lengths = [min(length, prepared.max_length or length) for length in VERIFICATION_LENGTHS]
    return [
        torch.cat((start, ordinary[torch.randint(0, len(ordinary), (length,), generator=generator)], end))
        for length in lengths
    ]
