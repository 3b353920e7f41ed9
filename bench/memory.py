"""Fragmentation: memory that torch reserves and memory it uses over a long run of mixed lengths.

Run as ``python bench/memory.py PREPARED BATCHES BUDGET_TOKENS CLEAR_INTERVAL`` with PYTORCH_ALLOC_CONF set; prints
JSON. Batches differ in size and in lengths from one to the next, as the last batches of many small samples do.
"""

import json
import random
import sys
import time
from pathlib import Path

import models
import torch
import workload
from holdfast.models.registry import open_model


def main() -> None:
    """Run the batches and report."""
    directory, count, budget, interval = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    model = open_model(directory, "cuda")
    weights_bytes = torch.cuda.memory_allocated()
    generator = random.Random(3)
    torch.cuda.reset_peak_memory_stats()
    began, reserved = time.perf_counter(), []
    for number in range(count):
        low = generator.choice((32, 160, 500))
        lengths = workload.mixed(generator.randint(budget // 8, budget - workload.LONGEST_TOKENS), low)
        models.means(model, torch.from_numpy(workload.proteins(lengths)).to("cuda"), lengths).cpu()
        if interval and (number + 1) % interval == 0:
            torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved() - weights_bytes)
    statistics = torch.cuda.memory_stats()
    found = {
        "seconds": time.perf_counter() - began,
        "peak_used_gb": (torch.cuda.max_memory_allocated() - weights_bytes) / 1e9,
        "peak_reserved_gb": (torch.cuda.max_memory_reserved() - weights_bytes) / 1e9,
        "reserved_after_a_quarter_gb": reserved[count // 4] / 1e9,
        "reserved_at_the_end_gb": reserved[-1] / 1e9,
        "retries": statistics["num_alloc_retries"],
        "device_allocations": statistics["num_device_alloc"],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
