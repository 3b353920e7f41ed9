"""Holdfast: language models that stay loaded while a Snakemake workflow works through its samples."""

__version__ = "0.1.0"
