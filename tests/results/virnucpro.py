"""VirNucPro's classifier as its training script saves it: a whole module, its class under ``__main__``.

    python tests/results/virnucpro.py WIDTH DIRECTORY [relu]

Weights are synthetic, after some training so that ``bn1`` has statistics. Written are ``500_model.pth``, the same in
the format before zip files, its state, two modules that differ from the published one, and what it computes. With
``relu`` the activation is a module, too.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn


class MLPClassifier(nn.Module):  # noqa: D101
    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden_layer = nn.Linear(width, 512)
        self.bn1 = nn.BatchNorm1d(512)
        self.output_layer = nn.Linear(512, 2)
        self.dropout = nn.Dropout(p=0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        x = torch.relu(self.bn1(self.hidden_layer(x)))
        return torch.softmax(self.output_layer(self.dropout(x)), dim=1)


def write(width: int, directory: Path, relu: bool) -> None:
    """Write the files for so many features a frame."""
    torch.manual_seed(3)
    model = MLPClassifier(width)
    if relu:
        model.relu = nn.ReLU()
    for _ in range(5):
        model(torch.randn(256, width) * 0.3 + 0.1)
    with torch.no_grad():
        model.bn1.weight.normal_()
        model.bn1.bias.normal_()
        model.output_layer.weight.mul_(8)
    model.eval()
    torch.save(model, directory / "500_model.pth")
    torch.save(model, directory / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(model.state_dict(), directory / "state.pth")
    features = torch.randn(50, width) * 0.3
    probabilities = model(features).detach().numpy()
    np.savez(directory / "expected.npz", features=features.numpy(), probabilities=probabilities)
    model.bn1.eps = 1e-3
    torch.save(model, directory / "epsilon.pth")
    model.bn1 = nn.Identity()
    torch.save(model, directory / "identity.pth")


if __name__ == "__main__":
    write(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] == ["relu"])
