"""The resident pool: a supervisor without torch, and a worker process for each device that holds every model."""
