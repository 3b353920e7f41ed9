"""``python3 bench/passes.py``: the kernels at the sizes of ESM-2, on one CUDA device.

First each is compared with plain torch in fp32. Then follow, section by section: the time of each operation beside
cuBLAS's products alone and passes of their own (graphs of launches, so without the host), the error of vectors by
outlier, the speed from host tokens to host vectors, and the compiled peer. Weights are synthetic, made on the device.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import machine
import models
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812, torch's own abbreviation
import workload
from gpu import embed_all, start_worker
from holdfast.models import kernels, ops
from holdfast.models.encoder import Encoder
from holdfast.models.esm import Esm, rotary_angles
from holdfast.models.packing import Packing
from holdfast.models.prepare import prepare
from holdfast.models.registry import OUTLIERS, PREFIX, open_model
from report import Report
from timing import seconds
from torch import Tensor

SIZES = ("esm2_t33_650M_UR50D", "esm2_t36_3B_UR50D", "esm2_t30_150M_UR50D", "esm2_t12_35M_UR50D")
FAMILIES = ("esmc_tiny", "prot_t5_tiny", "ankh_tiny", "dnabert_s_tiny")
SECTIONS = ("check", "parts", "accuracy", "speed", "graph", "peer")
DEVICE = torch.device("cuda")
BOUND = 2e-3  # of a kernel's error, relative to the norm of what plain torch gives in fp32
OUTLIER_SIZES = (0, 300, 3000)
STREAMS = {"fp32 stream": torch.float32, "fp16 stream": torch.float16}


class Layer:
    """The operands of one layer's operations: packed sequences, seeded numbers of the scale of a trained model's."""

    def __init__(self, name: str, lengths: list[int], dtype: torch.dtype = torch.float16) -> None:
        sizes = models.esm2_architecture(name)
        width, self.heads = int(sizes["width"]), int(sizes["heads"])
        generator = torch.Generator(DEVICE).manual_seed(1)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=DEVICE).to(dtype)

        tokens = sum(lengths)
        self.packing = Packing(lengths, DEVICE)
        head = width // self.heads
        self.angles = rotary_angles(self.packing, 1 / 10000 ** (torch.arange(0, head, 2, device=DEVICE) / head))
        self.x, self.hidden, self.stream = numbers(tokens, width), numbers(tokens, 4 * width), numbers(tokens, width)
        self.up, self.qkv = numbers(4 * width, width) / width**0.5, numbers(3 * width, width) / width**0.5
        self.down, self.out = numbers(width, 4 * width) / (2 * width**0.5), numbers(width, width) / width**0.5
        self.biases = {rows: numbers(rows) for rows in (width, 3 * width, 4 * width)}
        self.norm = ops.Norm(numbers(width), numbers(width), 1e-5)

    def gelu(self, functions: Any) -> Tensor:
        """The up product and GELU."""
        found: Tensor = functions.linear_gelu(self.x, self.up, self.biases[len(self.up)])
        return found

    def rotation(self, functions: Any) -> Tensor:
        """The product for queries, keys and values, rotation, attention."""
        bias = self.biases[len(self.qkv)]
        found: Tensor = functions.rotary_attention(self.x, self.qkv, bias, self.heads, self.packing, self.angles)
        return found

    def residual(self, functions: Any, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Both norms that follow a layer's output products; the stream changes."""
        bias = self.biases[len(self.out)]
        stream, first = functions.add_linear_norm(stream, self.x, self.out, bias, self.norm)
        _, second = functions.add_linear_norm(stream, self.hidden, self.down, bias, self.norm)
        return first, second

    def wide(self) -> "Layer":
        """The same in fp32."""
        other = object.__new__(Layer)
        for name, value in vars(self).items():
            setattr(other, name, value.float() if isinstance(value, Tensor) else value)
        other.biases = {rows: bias.float() for rows, bias in self.biases.items()}
        other.norm = ops.Norm(self.norm.weight.float(), self.norm.bias.float(), 1e-5)  # type: ignore[union-attr]
        return other


def main() -> None:
    """Measure the chosen sections of the chosen sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--peers", nargs="*", choices=SIZES, default=["esm2_t33_650M_UR50D"])
    parser.add_argument("--directory", type=Path, help="where 6 GB of weights may lie for the run")
    parser.add_argument("--results", type=Path, help="where the JSON goes")
    arguments = parser.parse_args()
    report = Report("kernels", machine.describe("cuda"), arguments.results)
    ceilings = machine.ceilings("cuda")
    for name, value in ceilings.items():
        report.add("ceilings", name, value / 1e12, "TFLOP/s" if "matmul" in name else "TB/s")
    if "check" in arguments.only:
        check_families(report)
    for size in arguments.sizes:
        if "check" in arguments.only:
            check(report, size)
        if "parts" in arguments.only:
            measure_parts(report, size, ceilings["matmul"])
        architecture = models.esm2_architecture(size)
        weights = models.make("esm", architecture, str(DEVICE), torch.float16)
        if "accuracy" in arguments.only:
            measure_accuracy(report, size, weights)
        with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
            prepared = models.write_prepared("esm", architecture, weights, Path(scratch) / "esm2")
            if "graph" in arguments.only:
                measure_graph(report, size, weights)
            if "speed" in arguments.only:
                measure_speed(report, size, prepared, ceilings["matmul"])
        if "peer" in arguments.only and size in arguments.peers:
            measure_peer(report, size, weights)
        del weights
        torch.cuda.empty_cache()


def check_families(report: Report) -> None:
    """Whether small encoders of the other families keep the kernels when they are opened, which compares states."""
    for architecture in FAMILIES:
        with tempfile.TemporaryDirectory() as scratch:
            prepare(f"{PREFIX}{architecture}{OUTLIERS}", Path(scratch) / "model")
            for precision in ("fp16", "bf16"):
                model = open_model(Path(scratch) / "model", str(DEVICE), precision)
                found = "kernels" if model._ops is kernels else "PLAIN TORCH, see the log"
                report.add("families", f"check, {architecture} in {precision}", found)


def check(report: Report, size: str) -> None:
    """The relative error of every operation against plain torch in fp32."""
    layer = Layer(size, workload.mixed(6000, 2, 700))
    wide = layer.wide()
    cases = {"up product and GELU": Layer.gelu, "qkv, rotation, attention": Layer.rotation, "sums and norms": _norms}
    for name, run in cases.items():
        found, wanted = run(layer, kernels).float(), run(wide, ops)
        error = float((found - wanted).norm() / wanted.norm())
        report.add(size, f"check, {name}, relative error", error, "" if error < BOUND else "TOO LARGE")


def _norms(layer: Layer, functions: Any) -> Tensor:
    return torch.cat(layer.residual(functions, layer.stream.float()))


def measure_parts(report: Report, size: str, peak: float) -> None:
    """Time of every operation, µs at so many tokens, and of what it is made of."""
    layer = Layer(size, workload.uniform(16384 if "3B" in size else 32768))
    tokens, width = layer.x.shape
    report.add(size, "parts, tokens", tokens)

    def take(name: str, work: Callable[[], object], flops: float = 0.0) -> None:
        taken = device_us(work)
        note = f"{flops / taken * 1e6 / peak:.1%} of matmul" if flops else ""
        report.add(size, f"parts, {name}, µs", taken, note)

    square, stream = 2.0 * tokens * width**2, layer.stream.float()
    up, bias = layer.up, layer.biases[4 * width]
    qkv = F.linear(layer.x, layer.qkv).view(tokens, 3, layer.heads, -1)
    take("product of qkv alone", lambda: F.linear(layer.x, layer.qkv, layer.biases[3 * width]), 3 * square)
    take("product up alone", lambda: F.linear(layer.x, up, bias), 4 * square)
    take("product down alone", lambda: F.linear(layer.hidden, layer.down, layer.biases[width]), 4 * square)
    take("product out alone", lambda: F.linear(layer.x, layer.out, layer.biases[width]), square)
    take("up product, then GELU", lambda: kernels.gelu(F.linear(layer.x, up, bias)))
    take("up product and GELU by cuBLASLt, tanh form", lambda: _gelu_of_cublas(layer.x, up, bias))
    take("up product and GELU", partial(layer.gelu, kernels))
    take("rotation of keys alone", lambda: kernels.rotate_keys(qkv, layer.angles))
    take("qkv, rotation, attention", partial(layer.rotation, kernels))
    take("out and down, sums and norms", partial(layer.residual, kernels, stream))
    take("the same with an fp16 stream", partial(layer.residual, kernels, stream.half()))
    take("attention alone", lambda: kernels.attention(qkv, layer.packing))


def _gelu_of_cublas(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)


def device_us(work: Callable[[], object], launches: int = 10) -> float:
    """Median time of a call on the device, µs, from a graph of several."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        for _ in range(launches):
            work()
    times = []
    for _ in range(6):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / launches)
    return statistics.median(times[1:])


def measure_accuracy(report: Report, size: str, weights: dict[str, Tensor]) -> None:
    """Centred error of the means against fp32 arithmetic on the same weights, by outlier."""
    known = models.describe("esm", models.esm2_architecture(size))
    lengths = workload.mixed(2**20, 32, 400)[:64]
    tokens = torch.from_numpy(workload.proteins(lengths)).to(DEVICE)
    for outlier in OUTLIER_SIZES:
        pushed = dict(weights)
        for layer, channel in ((0, 7), (1, 33)):
            name = f"layers.{layer}.mlp_out.bias"
            pushed[name] = weights[name].clone()
            pushed[name][channel] += outlier
        model = Esm({name: tensor.float() for name, tensor in pushed.items()}, known)
        exact = models.means(model, tokens, lengths)
        spread = (exact - exact.mean(0)).norm()
        del model
        model = Esm(pushed, known)
        for label, dtype in STREAMS.items():
            model.stream_dtype = dtype
            error = float((models.means(model, tokens, lengths) - exact).norm() / spread)
            report.add(size, f"accuracy, outlier {outlier}, {label}, centred error", error)
        del model
        torch.cuda.empty_cache()


def measure_graph(report: Report, size: str, weights: dict[str, Tensor]) -> None:
    """What CUDA graphs could gain at most: one batch of 168 tokens a sequence, launched and replayed."""
    model = Esm(dict(weights), models.describe("esm", models.esm2_architecture(size)))
    for budget in (16384, 65536):
        packing = Packing(workload.uniform(budget), DEVICE)
        tokens = torch.from_numpy(workload.proteins(packing.lengths)).to(DEVICE).long()
        run = partial(_forward, model, tokens, packing)
        launched = seconds(run, 5, 2)
        began = time.perf_counter()
        run()
        host = time.perf_counter() - began
        torch.cuda.synchronize()
        replayed = device_us(run, 1) / 1e6
        report.add(size, f"graph, {budget} a batch, host enqueues in, ms", host * 1000)
        report.add(size, f"graph, {budget} a batch, launched, ms", launched * 1000)
        report.add(size, f"graph, {budget} a batch, replayed, ms", replayed * 1000)


@torch.inference_mode()
def _forward(model: Encoder, tokens: Tensor, packing: Packing) -> None:
    for _ in model._states(tokens, packing, model.layers):
        pass


def measure_speed(report: Report, size: str, prepared: Path, peak: float) -> None:
    """From host tokens to vectors on the host, by dtype of the stream, lengths and tokens a batch."""
    sizes = models.esm2_architecture(size)
    owner, recipe = start_worker({"esm2": prepared}), models.recipe(prepared)
    _, encoder = owner.models[recipe.weights_sha256]
    large = "3B" in size
    for label, lengths in (("168", workload.uniform(2**17)), ("32-1024", workload.mixed(2**17))):
        ids, total = workload.proteins(lengths), sum(lengths)
        flops = workload.flops(lengths, int(sizes["layers"]), int(sizes["width"]))
        budgets = (16384, 32768, 65536) if large else (16384, 32768, 65536, 131072)
        for name, dtype in STREAMS.items():
            encoder.stream_dtype = dtype
            shares = []
            for budget in budgets:
                batches = workload.batches(ids, lengths, budget)
                taken = seconds(partial(embed_all, owner, recipe, batches), 2 if large else 5, 1)
                shares.append(flops / taken / peak)
                report.add(size, f"speed, {label}, {name}, {budget} a batch, tokens/s", total / taken)
                report.add(size, f"speed, {label}, {name}, {budget} a batch, share", shares[-1])
            report.add(size, f"speed, {label}, {name}, best share", max(shares))


def measure_peer(report: Report, size: str, weights: dict[str, Tensor]) -> None:
    """Transformers with SDPA in fp16 through ``torch.compile``, sorted, warm: tokens a second."""
    import peers

    architecture = models.esm2_architecture(size)
    forward = peers.transformers_sdpa(architecture, weights, compiled=True)
    for label, lengths in (("168", workload.uniform(2**17)), ("32-1024", workload.mixed(2**17))):
        order = np.argsort(lengths, kind="stable")
        ids, ordered = workload.ordered(workload.proteins(lengths), lengths, order)
        for budget in (16384, 65536):
            run = partial(peers.embed, forward, ids, ordered, budget, str(DEVICE))
            began = time.perf_counter()
            run()
            report.add(
                size, f"peer, {label}, {budget} a batch, first run with compiling, s", time.perf_counter() - began
            )
            report.add(size, f"peer, {label}, {budget} a batch, tokens/s", sum(ordered) / seconds(run, 3, 1))


if __name__ == "__main__":
    main()
