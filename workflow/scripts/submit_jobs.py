"""Submit a batch of samples to the pool, wait for them, and write their receipts."""

import argparse
import signal
from pathlib import Path

from holdfast import consumer, plan, prepared, provenance
from holdfast.errors import run
from holdfast.spool import Spool


def main() -> None:
    """Exit 0 with a receipt for every sample, done or failed; anything else means that no pool will do them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path, help="plan of the run")
    parser.add_argument("--batch", type=int, required=True, help="number of the batch in the plan")
    parser.add_argument("--models", nargs="+", type=Path, required=True, metavar="model.json", help="prepared models")
    parser.add_argument("--spool", type=Path, required=True, help="where to hand the jobs in")
    parser.add_argument("--endpoint", type=Path, help="endpoint file of the pool that was started for them")
    parser.add_argument("--patience-s", type=float, metavar="S", help="give up when no pool there could do them for S")
    parser.add_argument("--receipts", nargs="+", type=Path, required=True, help="where to write the receipts, in order")
    arguments = parser.parse_args()
    if arguments.endpoint:  # a scheduler signals all of a job; the pool then needs its time, and says when it has ended
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    descriptions = [prepared.read(path.parent) for path in arguments.models]
    digests = {description.model: description.weights_sha256 for description in descriptions}
    jobs = plan.jobs_of(arguments.plan, arguments.batch, digests)
    run = provenance.run_of(arguments.plan.parent)
    told = (arguments.endpoint, arguments.receipts, arguments.patience_s, run)
    for outcome in consumer.submit(jobs, Spool(arguments.spool), *told):
        print(f"{outcome.sample}: {outcome.state}{': ' if outcome.error else ''}{outcome.error}")


if __name__ == "__main__":
    run(main)
