import json
import os
import re
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.io import sourcecache_entry

# Every file of the package by name: what is not named is not there when the workflow is imported from a URL.
NAMES = Path(workflow.source_path("../scripts/holdfast.files")).read_text().split()
FILES = [Path(workflow.source_path(f"../scripts/{name}")) for name in NAMES]

for imported in [name for name in sys.modules if name.partition(".")[0] == "holdfast"]:
    del sys.modules[imported]  # of a module beside this one, which may be of another version
sys.path.insert(0, str(next(path for path in FILES if path.name == "entry.py").parent))

from holdfast.errors import HoldfastError  # noqa: E402
from holdfast.results.presets import choose_rules  # noqa: E402
from holdfast.run import calling, client, ending, failures, pending, remote, watch  # noqa: E402
from holdfast.run import config as configuration, plan as planning  # noqa: E402

if not workflow.deployment_settings.deployment_method:
    planning.use_this_python()

MODIFIER = workflow.modifier
IS_MODULE = not MODIFIER.is_main_snakefile()


def place(path):
    """Where a path of this workflow is: the same, or below the prefix with which a module is imported."""
    return MODIFIER.path_modifier.replace_prefix(path)


def sequences(sample):
    """The file of a sample, as the input of a rule; none where Snakemake would take its braces for a pattern."""
    return [] if "{" in sample.fasta else remote.input_of(sample, storage, local)


def source(path):
    """A file of this workflow, as the input of a rule, with a name that is the same wherever the workflow came from."""
    return ancient(sourcecache_entry(workflow.source_path(f"../{path}"), f"holdfast/workflow/{path}"))


def decide():
    """Check config and samples; decide in the main process what is pending, read that decision in jobs."""
    try:
        for schema in ("config", "samples"):
            workflow.source_path(f"../schemas/{schema}.schema.yaml")  # beside the package, wherever that came from
        settings = configuration.check_config(config, "its config" if IS_MODULE else configuration.HERE)
        samples = remote.find(configuration.read_samples(settings["samples"]), storage, workflow.is_main_process)
        configuration.check_fit(settings, samples)
        if not workflow.is_main_process:
            return settings, samples, planning.read_plan(place)
        if not IS_MODULE:  # in a module, files may be made by rules of the workflow around it
            configuration.check_files(configuration.name_of(settings["samples"]), samples)
        gpu = getattr(workflow.global_resources.get("gpu"), "value", None)  # the N of --resources gpu=N
        cores = None if workflow.resource_settings.nodes else workflow.resource_settings.cores  # of this machine
        plan = planning.make_plan(settings, samples, gpu, cores, place)
        ending.at_exit(plan, settings, place, lambda: workflow.scheduler and not (workflow.dryrun or workflow.touch))
        return settings, samples, plan
    except HoldfastError as error:
        raise WorkflowError(f"module '{MODIFIER.namespace}': {error}" if IS_MODULE else str(error)) from None


config, SAMPLES, PLAN = decide()
ENTRY = source("scripts/entry.py")  # the command line, as the input of rules; the package lies beside it
SERVICE = config["pool"]["lifecycle"] == "service"
SPOOL = config["pool"]["spool"] or place(planning.DEFAULT_SPOOL)
MODELS = {model: config["models"][model] for model in PLAN.models}
RUN = f".holdfast/runs/{os.path.basename(PLAN.directory)}"
SHARED = [f"{RUN}/shared.{replica}" for replica in range(PLAN.replicas if SERVICE and PLAN.shared else 0)]
PENDING = {name for share in PLAN.consumers for name in share.samples}
CONTIG_SAMPLES = [entry.sample for entry in SAMPLES.values() if entry.kind == "contigs"]
LABELLED = {entry.sample: entry.label for entry in SAMPLES.values() if entry.label}
TRAINS = bool(LABELLED) and config["classifier"] is None
CALLED = [name for name in CONTIG_SAMPLES if config["classifier"] or (TRAINS and name not in LABELLED)]
METHOD = " ".join(f"--{role} {name}" for role, name in config["method"].items() if name)  # options of commands
IN_ONE_PROCESS = len(CALLED) >= calling.MANY


container: config["container"]


if workflow.is_main_process and PLAN.consumers:
    look = lambda: watch.watch_run(PLAN, SAMPLES, config, place)
    watch.log_progress(workflow, MODIFIER.namespace or "holdfast", look)


wildcard_constraints:
    sample="|".join(map(re.escape, SAMPLES)),
    model="|".join(map(re.escape, config["models"])),


def prepared_models(wildcards):
    """model.json of every model in use: prepared by a rule, or where the config names a prepared directory."""
    return [local(f"{pending.directory_of(used['weights'], name, place)}/model.json") for name, used in MODELS.items()]


def classifier_file(wildcards):
    """The classifier as safetensors: given, converted from VirNucPro's .pth once for all samples, or trained."""
    given = config["classifier"]
    if given is None:
        return "results/classifier/classifier.safetensors"
    return local(given) if given.endswith(".safetensors") else "resources/classifier.safetensors"


def calibration_file(wildcards):
    """What calibrates calls: made of labelled samples, or beside the classifier that is given; or nothing."""
    given = local(configuration.calibration_beside(config["classifier"]) or [])
    return "results/classifier/calibration.json" if LABELLED else given


def given_classifier(wildcards):
    """The classifier if the config names one and there are contigs: what needs no sample to be there."""
    return classifier_file(wildcards) if config["classifier"] and CONTIG_SAMPLES else []


def outcome(wildcards):
    """Which samples are done and which are called: known when list_failures has run, and Snakemake asks again then."""
    return failures.read_outcome(checkpoints.list_failures.get().output.failures, SAMPLES, CALLED, LABELLED)


def called(wildcards):
    """Which samples are called; asked only when `classify_small` has run, where there is one."""
    found = outcome(wildcards).called
    if found and IN_ONE_PROCESS:
        checkpoints.classify_small.get()
    return found
