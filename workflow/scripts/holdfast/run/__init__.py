"""One run of the workflow: config, plan, the client of the pool, what people see meanwhile, records of provenance."""
