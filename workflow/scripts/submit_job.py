"""Submit one sample to the pool, wait for it, and write its receipt."""

import argparse
from pathlib import Path

from holdfast import consumer, manifest, prepared
from holdfast.errors import run


def main() -> None:
    """Exit 0 with a receipt, done or failed; anything else means that the pool is gone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fasta", help="FASTA or FASTQ file of the sample")
    parser.add_argument("--sample", required=True)
    parser.add_argument("--kind", required=True, choices=manifest.MODELS_OF_KIND)
    parser.add_argument("--chunk-length", type=int, default=500, help="bp, for kind contigs")
    parser.add_argument("--models", nargs="+", type=Path, required=True, metavar="model.json", help="prepared models")
    parser.add_argument("--precision", choices=manifest.PRECISIONS, default="auto")
    parser.add_argument("--store-dtype", choices=manifest.STORE_DTYPES, default="float16")
    parser.add_argument("--endpoint", type=Path, required=True, help="endpoint file of the pool")
    parser.add_argument("--receipt", type=Path, required=True, help="where to write the receipt")
    arguments = parser.parse_args()
    descriptions = [prepared.read(path.parent) for path in arguments.models]
    job = manifest.make(
        arguments.sample,
        arguments.kind,
        arguments.fasta,
        arguments.chunk_length,
        {description.model: description.weights_sha256 for description in descriptions},
        arguments.precision,
        arguments.store_dtype,
    )
    outcome = consumer.submit(job, arguments.endpoint, arguments.receipt)
    print(f"{outcome.sample}: {outcome.state}{': ' if outcome.error else ''}{outcome.error}")


if __name__ == "__main__":
    run(main)
