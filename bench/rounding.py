"""Which rounding to fp16 makes the error of half precision where a model has outlier channels; on the CPU.

    PYTHONPATH=workflow/scripts .venv/bin/python bench/rounding.py [--models NAME ...]

The model runs in fp32 with weights that fp16 can hold, and one kind of value after another is rounded to fp16 as it
passes. The outlier channels are those of ``bench/passes.py``: a bias of two MLPs has a number added.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import machine
import models
import torch
import workload
from holdfast.models import ops
from holdfast.models.esm import Esm
from report import Report
from torch import Tensor

OUTLIERS = (0, 300, 3000)
PUSHED = ((0, 7), (1, 33))  # layer and channel
CHANNELS = [channel for _, channel in PUSHED]
SEQUENCES = 16


def main() -> None:
    """Measure the chosen models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["esm2_t12_35M_UR50D", "esm2_t30_150M_UR50D"], metavar="NAME")
    parser.add_argument("--results", type=Path, help="where the JSON goes")
    arguments = parser.parse_args()
    report = Report("rounding", machine.describe("cpu"), arguments.results)
    for name in arguments.models:
        measure(report, name)
    print(report.path)


def measure(report: Report, name: str) -> None:
    """Centred errors of the means, by outlier and by what is rounded."""
    architecture = models.esm2_architecture(name)
    known = models.describe("esm", architecture)
    weights = {key: rounded(each) for key, each in models.make("esm", architecture, "cpu", torch.float32).items()}
    lengths = workload.mixed(2**20, 32, 400)[:SEQUENCES]
    tokens = torch.from_numpy(workload.proteins(lengths))
    for outlier in OUTLIERS:
        pushed = dict(weights)
        for layer, channel in PUSHED:
            key = f"layers.{layer}.mlp_out.bias"
            pushed[key] = weights[key].clone()
            pushed[key][channel] += outlier
        model = Esm(pushed, known)
        exact = models.means(model, tokens, lengths)
        spread = (exact - exact.mean(0)).norm()
        for label, functions in ROUNDED.items():
            with rounding(functions):
                error = float((models.means(model, tokens, lengths) - exact).norm() / spread)
            report.add(name, f"outlier {outlier}, rounded: {label}, centred error", error)


def rounded(values: Tensor) -> Tensor:
    """The nearest numbers that fp16 holds, fp32."""
    return values.half().float()


def rounded_outliers(values: Tensor) -> Tensor:
    """Only the outlier channels rounded."""
    found = values.clone()
    found[..., CHANNELS] = rounded(values[..., CHANNELS])
    return found


def rounded_others(values: Tensor) -> Tensor:
    """All but the outlier channels rounded."""
    found = rounded(values)
    found[..., CHANNELS] = values[..., CHANNELS]
    return found


ROUNDED: dict[str, Mapping[str, Callable[[Tensor], Tensor]]] = {
    "norms": {"layer_norm": rounded},
    "the outlier channels of norms": {"layer_norm": rounded_outliers},
    "all other channels of norms": {"layer_norm": rounded_others},
    "inside the MLP": {"linear_gelu": rounded},
    "attention": {"attention": rounded},
    "all": {"layer_norm": rounded, "linear_gelu": rounded, "attention": rounded},
    "all but the outlier channels of norms": {
        "layer_norm": rounded_others,
        "linear_gelu": rounded,
        "attention": rounded,
    },
}


@contextmanager
def rounding(functions: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Round what these operations of :mod:`holdfast.models.ops` return."""
    exact = {name: getattr(ops, name) for name in functions}
    for name, change in functions.items():
        setattr(ops, name, _changed(exact[name], change))
    try:
        yield
    finally:
        for name, function in exact.items():
            setattr(ops, name, function)


def _changed(function: Callable[..., Tensor], change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments: change(function(*arguments))


if __name__ == "__main__":
    main()
