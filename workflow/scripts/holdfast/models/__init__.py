"""Language models: published checkpoints in, prepared models on disk, encoders on packed batches. No pool."""
