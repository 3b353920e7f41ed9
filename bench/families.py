"""``make bench-families``: encoders of several families beside transformers' classes, in the same run, on one device.

Checkpoints are synthetic, of the published sizes, written and prepared by the production code; transformers reads the
same files. Both embed the same sequences of 32 to 1,024 tokens, sorted by length; transformers pads them, and is
measured as it is and compiled. Faithfulness is the error of the means against fp32, centred over the sequences, also
with outliers: two residual channels that are pushed in layers 2 and 3, as trained models have them.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
import transformers
import workload
from holdfast.models.encoder import Encoder
from holdfast.models.prepare import prepare
from holdfast.models.registry import PREFIX, Output, Prepared, open_model, read_prepared
from holdfast.models.synthetic import write_synthetic
from report import Report
from safetensors import safe_open
from safetensors.torch import save_file
from timing import seconds

CLASSES = {"esmc": "EsmcModel", "t5": "T5EncoderModel"}
PUSHED = {  # names of the product whose rows are scaled: ours, and in the published files
    "esmc": "layers.{}.mlp.down_proj.weight",
    "t5": "encoder.block.{}.layer.1.DenseReluDense.wo.weight",
}
OWN_PUSHED = "layers.{}.mlp_out.weight"
CHANNELS = (7, 100)
PAD = 1
BUDGETS = {"cuda": (16384, 65536), "cpu": (1024, 4096)}
TOKENS = {"cuda": 2**18, "cpu": 2**13}
CHECKED = 64
SECTIONS = ("speed", "faithfulness")

Batches = list[tuple[np.ndarray, list[int]]]


def main() -> None:
    """Measure the chosen models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="architectures of synthetic checkpoints, such as esmc_600m")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--directory", type=Path, help="where the weights may lie for the run")
    parser.add_argument("--results", type=Path, help="where the JSON goes")
    arguments = parser.parse_args()
    report = Report("families", machine.describe(arguments.device), arguments.results)
    peak = machine.ceilings(arguments.device)["matmul"]
    report.add("ceilings", "matmul", peak / 1e12, "TFLOP/s")
    for name in arguments.models:
        with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
            published = write_synthetic(PREFIX + name, Path(scratch) / "published")
            prepared = Path(scratch) / "prepared"
            known = prepare(str(published), prepared)
            report.add(
                name, "difference to the reference in fp32", float(known.verification["largest_difference"] or 0)
            )
            if "speed" in arguments.only:
                measure_speed(report, name, published, prepared, arguments.device, peak)
            if "faithfulness" in arguments.only and arguments.device == "cuda":
                measure_faithfulness(report, name, published, prepared, Path(scratch))


def measure_speed(report: Report, name: str, published: Path, prepared: Path, device: str, peak: float) -> None:
    """Tokens a second, ours by precision and budget, and the best of the peer's."""
    known = read_prepared(prepared)
    ids, lengths = _sequences(known, TOKENS[device])
    total, work = sum(lengths), _flops(prepared, known, lengths)
    arrival = workload.ordered(ids, lengths, np.random.default_rng(3).permutation(len(lengths)))
    precisions = ("fp16", "bf16") if device == "cuda" else ("fp32",)
    for precision in precisions:
        model = open_model(prepared, device, precision)
        ours = min(
            _take(report, f"{name}: holdfast {precision}, {budget} a batch", total, work / peak, run)
            for budget in BUDGETS[device]
            for run in [partial(_ours, model, known, list(_batches(ids, lengths, budget, padded=False)))]
        )
        del model
        for kind in ("as it is", "compiled")[: 2 if precision == precisions[0] else 1]:
            peer = _peer(published, known, device, precision)
            if kind == "compiled":
                peer = torch.compile(peer, dynamic=True)
            try:
                theirs = min(
                    _take(report, f"{name}: transformers {precision} {kind}, {budget} a batch", total, work / peak, run)
                    for budget in BUDGETS[device]
                    for run in [
                        partial(_theirs, peer, known, list(_batches(ids, lengths, budget, padded=True)), device)
                    ]
                )
            except RuntimeError as error:  # a peer that cannot be compiled is no peer
                print(f"{name}: transformers {kind}: {str(error).splitlines()[0][:200]}")
                continue
            report.add(name, f"holdfast faster than transformers {kind}, {precision}, times", theirs / ours)
            if device == "cpu" and kind == "as it is":  # padded to the longest of each batch, as the examples do
                unsorted = list(_batches(*arrival, BUDGETS[device][-1], padded=True))
                padded = sum(len(counts) * max(counts) for _, counts in unsorted)
                label = f"{name}: transformers {precision} {kind}, unsorted"
                theirs = _take(report, label, total, work / peak, partial(_theirs, peer, known, unsorted, device))
                report.add(name, "padded tokens a token, unsorted", padded / total)
                report.add(name, "holdfast faster than transformers unsorted, times", theirs / ours)
            del peer


def _take(report: Report, name: str, tokens: int, ideal_s: float, run: Callable[[], object]) -> float:
    taken = seconds(run, 3, 1)
    section, _, rest = name.partition(": ")
    report.add(section, f"{rest}, tokens/s", tokens / taken)
    report.add(section, f"{rest}, share of matmul", ideal_s / taken)
    return taken


def measure_faithfulness(report: Report, name: str, published: Path, prepared: Path, scratch: Path) -> None:
    """Centred error of the means in half precision against fp32 on the same weights rounded to it, by outlier."""
    known = read_prepared(prepared)
    ids, lengths = _sequences(known, CHECKED * 300)
    batches = list(_batches(ids, lengths, 16384, padded=False))
    padded = list(_batches(ids, lengths, 16384, padded=True))
    for factor in (1, 300, 30000):
        pushed, theirs = scratch / "pushed", scratch / "theirs"
        for source, target, pattern in ((prepared, pushed, OWN_PUSHED), (published, theirs, PUSHED[known.family])):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
            _push(target / "model.safetensors", pattern, factor)
        exact_model = open_model(pushed, "cuda", "fp32")
        tokens, counts = batches[0]
        states = exact_model.encode(torch.from_numpy(tokens).cuda(), counts, known.layers - 1)
        report.add(name, f"pushed by {factor}: largest state", float(states.abs().max()))
        exact = _ours(exact_model, known, batches)
        del exact_model, states
        for precision in ("fp16", "bf16"):
            model = open_model(pushed, "cuda", precision)
            report.add(
                name, f"pushed by {factor}: holdfast {precision}, error", _error(_ours(model, known, batches), exact)
            )
            del model
            peer = _peer(theirs, known, "cuda", precision)
            error = _error(_theirs(peer, known, padded, "cuda"), exact)
            report.add(name, f"pushed by {factor}: transformers {precision}, error", error)
            del peer


def _push(path: Path, pattern: str, factor: float) -> None:
    """Scale the rows of two channels in the products that end layers 2 and 3."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a mapping
    for layer in (2, 3):
        tensors[pattern.format(layer)][list(CHANNELS)] *= factor
    save_file(tensors, path, header)


def _error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact - exact.mean(0)))


def _sequences(known: Prepared, total: int) -> tuple[np.ndarray, list[int]]:
    """Token ids of residues with the model's special tokens, and lengths, longest first."""
    if known.letters is None:
        raise SystemExit("only models of letters")
    lengths = sorted(workload.mixed(total), reverse=True)
    letters = np.array([known.letters.ids[letter] for letter in "ACDEFGHIKLMNPQRSTVWY"], np.int16)
    ids = letters[np.random.default_rng(5).integers(0, len(letters), sum(lengths))]
    ends = np.cumsum(lengths)
    if known.letters.end is not None:
        ids[ends - 1] = known.letters.end
    if known.letters.start is not None:
        ids[np.concatenate(([0], ends[:-1]))] = known.letters.start
    return ids, lengths


def _batches(ids: np.ndarray, lengths: list[int], budget: int, padded: bool) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Consecutive sequences of at most so many tokens, counted with padding for who pads."""
    begins, cuts, held = np.cumsum([0, *lengths]), [0], 0
    for number, length in enumerate(lengths):
        held = (number + 1 - cuts[-1]) * max(lengths[cuts[-1] : number + 1]) if padded else held + length
        if held > budget and number > cuts[-1]:
            cuts.append(number)
            held = length
    for first, last in pairwise([*cuts, len(lengths)]):
        yield ids[begins[first] : begins[last]], lengths[first:last]


def _ours(model: Encoder, known: Prepared, batches: Batches) -> np.ndarray:
    output = Output(known.layers, "mean")
    found = [model.embed(torch.from_numpy(ids).to(model.device), counts, [output])[output] for ids, counts in batches]
    return torch.cat(found).cpu().numpy()


def _peer(directory: Path, known: Prepared, device: str, precision: str) -> Any:
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    kind = getattr(transformers, CLASSES[known.family])
    return kind.from_pretrained(directory, dtype=dtype, local_files_only=True).eval().to(device)


@torch.inference_mode()
def _theirs(peer: Any, known: Prepared, batches: Batches, device: str) -> np.ndarray:
    found = []
    for ids, counts in batches:
        rows = [torch.from_numpy(row) for row in np.split(ids.astype(np.int64), np.cumsum(counts)[:-1])]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD).to(device)
        place = torch.arange(max(counts), device=device)
        ends = torch.tensor(counts, device=device)[:, None]
        states = peer(input_ids=tokens, attention_mask=(place < ends).long()).last_hidden_state
        counted = ((place >= known.start_tokens) & (place < ends - known.end_tokens))[..., None]
        found.append((states.float() * counted).sum(1) / counted.sum(1))
    return torch.cat(found).cpu().numpy()


def _flops(prepared: Path, known: Prepared, lengths: list[int]) -> float:
    """Operations: two a weight of the layers and token, and attention's two products."""
    with safe_open(prepared / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys() if key.startswith("layers.")]  # noqa: SIM118
    weights = sum(int(np.prod(shape)) for shape in shapes if len(shape) == 2)
    inner = int(known.architecture.get("head_width", 0)) * int(known.architecture["heads"]) or known.width
    return float(sum(2 * weights * count + 4 * count**2 * inner * known.layers for count in lengths))


if __name__ == "__main__":
    main()
