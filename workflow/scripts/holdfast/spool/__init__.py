"""The spool, the directory through which jobs reach pools: manifests, receipts, states of pools. No torch."""
