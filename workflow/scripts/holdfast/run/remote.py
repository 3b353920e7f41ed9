"""Sequence files at a URL, which Snakemake's storage plugins fetch: where they will lie, and what they are known by.

In the sample sheet such a file is its URL. :func:`find` gives the sample the path at which Snakemake puts the local
copy while a job needs it, and asks the plugin for size and time, by which the file is known until something reads it.
``storage`` is what a Snakefile has under this name.
"""

import asyncio
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..errors import ConfigError, how_to_install
from .config import URL, Sample, several

PLUGINS = {
    "http": "http",
    "https": "http",
    "s3": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "zenodo": "zenodo",
    "ftp": "ftp",
    "ftps": "ftp",
    "sftp": "sftp",
}
"""By the scheme of a URL, the plugin that is named where it is missing."""
CATALOG = "https://snakemake.github.io/snakemake-plugin-catalog"


def find(samples: Mapping[str, Sample], storage: Any, look: bool) -> dict[str, Sample]:
    """Samples with the local path of each, those at a URL with that, too.

    Args:
        samples: As the sheet has them.
        storage: Snakemake's.
        look: Whether to ask for size and time, or why there is none.

    Raises:
        ConfigError: a URL for which no plugin is installed, that the plugin refuses, or that has the same local path as
            another; every sample concerned is named.
    """
    found, problems = dict(samples), []
    urls: dict[str, str] = {}
    for name, sample in samples.items():
        if not URL.match(sample.fasta):
            continue
        try:
            path = str(_storage_object(sample.fasta, storage).local_path())
        except ConfigError as error:
            problems.append(f"sample '{name}': {error}")
            continue
        if urls.setdefault(path, sample.fasta) != sample.fasta:
            problems.append(f"sample '{name}': {sample.fasta} would lie at {path}, as {urls[path]} does; download one")
        found[name] = replace(sample, fasta=path, url=sample.fasta)
    if problems:
        raise several("the sample sheet names URLs that cannot be used:", problems)
    return {**found, **asyncio.run(_look(found, storage))} if look and urls else found


def input_of(sample: Sample, storage: Any, local: Callable[[str], Any]) -> Any:
    """The file of a sample as the input of a rule; one at a URL that cannot be reached as one that is gone.

    Snakemake would end with an error of its own where it asks for such a URL, whether or not any job needs it.
    """
    return (
        local(sample.fasta) if not sample.url or sample.trouble else getattr(storage, _plugin(sample.url))(sample.url)
    )


async def _look(samples: Mapping[str, Sample], storage: Any) -> dict[str, Sample]:
    """The samples at URLs, with size and time as the plugin reports them, or with why it cannot."""
    looks = (_look_at(each, _storage_object(each.url, storage)) for each in samples.values() if each.url)
    return {sample.sample: sample for sample in await asyncio.gather(*looks)}


async def _look_at(sample: Sample, file: Any) -> Sample:
    from snakemake_interface_common.exceptions import WorkflowError  # into which the plugin's own errors are wrapped

    try:
        if not await file.managed_exists():
            return replace(sample, trouble="does not exist, or may not be read by you")
        size_bytes, mtime_s = await file.managed_size(), await file.managed_mtime()
    except WorkflowError as error:
        reason = " ".join(str(error.__context__ or error).split())
        return replace(sample, trouble=f"cannot be reached: {reason[:300]}")
    return replace(sample, size_bytes=int(size_bytes), mtime_ns=round(mtime_s * 1e9))


def check_reached(samples: Iterable[Sample], needed: Callable[[Sample], bool]) -> None:
    """Refuse samples whose URL gives no file that is needed; of those whose file is not needed any more say so.

    Raises:
        ConfigError: names each with its URL.
    """
    problems = []
    for sample in samples:
        line = f"sample '{sample.sample}': {sample.url} {sample.trouble}"
        if sample.trouble and needed(sample):
            problems.append(line)
        elif sample.trouble:
            print(f"holdfast: {line}; its results stay as they are", file=sys.stderr)
    if problems:
        raise several("sequence files are missing; correct the URL or try again:", problems)


def _storage_object(url: str, storage: Any) -> Any:
    """The plugin's object for a URL.

    Raises:
        ConfigError: no plugin, or one that refuses the URL.
    """
    from snakemake_interface_common.exceptions import WorkflowError

    if "{" in url or "}" in url:
        raise ConfigError(f"{url} holds braces, which Snakemake takes for a pattern; write them as %7B and %7D")
    plugin = _plugin(url)
    try:
        return getattr(storage, plugin)(url).flags["storage_object"]
    except WorkflowError as error:
        raise ConfigError(f"{url}: {' '.join(str(error).split())}") from None


def _plugin(url: str) -> str:
    """Name of the storage plugin for a URL.

    Raises:
        ConfigError: none is installed.
    """
    from snakemake_interface_storage_plugins.registry import StoragePluginRegistry

    scheme = url.partition(":")[0].lower()
    installed = StoragePluginRegistry().plugins
    if PLUGINS.get(scheme) in installed:
        return PLUGINS[scheme]
    others: list[str] = [name for name, plugin in installed.items() if plugin.storage_provider.is_valid_query(url)]
    if others:
        return others[0]
    if scheme not in PLUGINS:
        raise ConfigError(f"{url}: no storage plugin of Snakemake that is installed takes {scheme}:; see {CATALOG}")
    package = f"snakemake-storage-plugin-{PLUGINS[scheme]}"
    needed = f"needs Snakemake's storage plugin {PLUGINS[scheme]}"
    raise ConfigError(f"{url} {needed}; run {how_to_install(package)}")
