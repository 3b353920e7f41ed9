"""One loader in a process of its own: seconds to a model that is ready on the device, and memory on the way there.

Run as ``python bench/loading.py LOADER PATH DEVICE``; prints JSON. Torch and the CUDA context are there before the
clock starts, for every loader alike.
"""

import argparse
import json
import re
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import models
import torch

LOADERS = ("holdfast", "fair-esm")


def anonymous_bytes() -> int:
    """Memory of this process that is not the page cache's."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def load(loader: str, path: Path, device: str) -> object:
    """Load a model as its users would, in fp16 on CUDA and fp32 on a CPU."""
    if loader == "holdfast":
        from holdfast.models.registry import open_model

        return open_model(path, device)
    import esm

    with torch.serialization.safe_globals([argparse.Namespace]):
        model, _ = esm.pretrained.load_model_and_alphabet_local(path)
    return model.half().to(device) if device == "cuda" else model.float()


def main() -> None:
    """Measure one loader."""
    loader, path, device = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    torch.zeros(1, device=device)
    import_module({"holdfast": "holdfast.models.esm", "fair-esm": "esm"}[loader])
    before, highest, done = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.01):
            highest = max(highest, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    model = load(loader, path, device)
    if device == "cuda":
        torch.cuda.synchronize()
    found = {"load_s": time.perf_counter() - began}
    done.set()
    watcher.join()
    found["host_memory_gb"] = (max(highest, anonymous_bytes()) - before) / 1e9
    if loader == "holdfast":
        began = time.perf_counter()
        models.means(model, torch.tensor([0, *range(4, 24), 2]), [22]).cpu()  # type: ignore[arg-type]
        found["first_batch_s"] = time.perf_counter() - began
    print(json.dumps(found))


if __name__ == "__main__":
    main()
