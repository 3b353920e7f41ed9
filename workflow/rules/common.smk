import os
import re
import shlex
import sys
from functools import partial
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.io import sourcecache_entry

# Every file of the package by name: what is not named is not there when the workflow is imported from a URL.
PACKAGE = [
    workflow.source_path(f"../scripts/holdfast/{module}.py")
    for module in (
        "__init__",
        "arrays",
        "batching",
        "blocks",
        "calls",
        "checkpoint",
        "classifier",
        "configuration",
        "consumer",
        "crate",
        "device",
        "dnabert_s",
        "documents",
        "embedder",
        "embeddings",
        "encoder",
        "errors",
        "esm2",
        "fasta",
        "figures",
        "files",
        "fleet",
        "frames",
        "kernels",
        "layout",
        "ledger",
        "manifest",
        "models",
        "overview",
        "pace",
        "packed",
        "page",
        "pickled",
        "plan",
        "pool",
        "prepared",
        "progress",
        "projection",
        "provenance",
        "pth",
        "reader",
        "readers",
        "receipt",
        "reference",
        "screen",
        "sensors",
        "sequences",
        "settings",
        "spool",
        "standing",
        "status",
        "steps",
        "summary",
        "synthetic",
        "tally",
        "ticker",
        "tokens",
        "training",
        "uniprot",
        "weights",
        "worker",
    )
]

for imported in [name for name in sys.modules if name.partition(".")[0] == "holdfast"]:
    del sys.modules[imported]  # of a module beside this one, which may be of another version
sys.path.insert(0, str(Path(PACKAGE[0]).parents[1]))

from holdfast import configuration, consumer, models, plan as planning, provenance, standing, ticker  # noqa: E402
from holdfast.errors import HoldfastError  # noqa: E402

if not workflow.deployment_settings.deployment_method:
    planning.use_this_python()


MODIFIER = workflow.modifier
IS_MODULE = not MODIFIER.is_main_snakefile()


def place(path):
    """Where a path of this workflow is: the same, or below the prefix with which a module is imported."""
    return MODIFIER.path_modifier.replace_prefix(path)


def source(path):
    """A file of this workflow, as the input of a rule, with a name that is the same wherever the workflow came from."""
    return ancient(sourcecache_entry(workflow.source_path(f"../{path}"), f"holdfast/workflow/{path}"))


def script(name):
    """An entry point, as the input of a rule; the package lies beside it."""
    return source(f"scripts/{name}.py")


def gpus():
    """The N of --resources gpu=N, or None when nothing was said."""
    asked = workflow.global_resources.get("gpu")
    return None if asked is None else asked.value


def decide():
    """Check config and samples; decide in the main process what is pending, read that decision in jobs."""
    try:
        where = "its config" if IS_MODULE else configuration.HERE
        settings = configuration.with_defaults(config, source("schemas/config.schema.yaml"), where)
        samples = configuration.read_samples(settings["samples"], source("schemas/samples.schema.yaml"))
        configuration.check(settings, samples)
        if not workflow.is_main_process:
            return settings, samples, planning.read(place)
        if not IS_MODULE:  # in a module, files may be made by rules of the workflow around it
            configuration.check_files(configuration.name_of(settings["samples"]), samples)
        plan = planning.make(settings, samples, gpus(), workflow.resource_settings.cores, place)
        provenance.at_exit(plan.directory, lambda: workflow.scheduler and not (workflow.dryrun or workflow.touch))
        return settings, samples, plan
    except HoldfastError as error:
        raise WorkflowError(f"module '{MODIFIER.namespace}': {error}" if IS_MODULE else str(error)) from None


config, SAMPLES, PLAN = decide()
SERVICE = config["pool"]["lifecycle"] == "service"
SPOOL = config["pool"]["spool"] or place(planning.DEFAULT_SPOOL)
PATIENCE = "" if config["pool"]["patience_s"] is None else f"--patience-s {config['pool']['patience_s']}"
MODELS = {model: config["models"][model] for model in configuration.models_in_use(SAMPLES.values())}
CONTIG_SAMPLES = [entry.sample for entry in SAMPLES.values() if entry.kind == "contigs"]
LABELLED = {entry.sample: entry.label for entry in SAMPLES.values() if entry.label}
TRAINS = bool(LABELLED) and config["classifier"] is None
CALLED = [name for name in CONTIG_SAMPLES if config["classifier"] or (TRAINS and name not in LABELLED)]
FIGURES = {  # of the report: name, which is also its caption's, to category and label
    "outcomes": ("Calls", "What became of every record"),
    **({"scores": ("Calls", "Contig scores"), "lengths": ("Calls", "Contig length and call")} if CALLED else {}),
    **({"frames": ("Embeddings", "Open frames per chunk")} if CONTIG_SAMPLES else {}),
    "embeddings": ("Embeddings", "Projected to a plane"),
    **({"training": ("Classifier", "Training"), "confusion": ("Classifier", "Held-out frames")} if TRAINS else {}),
    "throughput": ("Pool", "Throughput and use of the devices"),
    "load": ("Pool", "Loading models against embedding"),
}


container: config["container"]


if workflow.is_main_process and PLAN.batches:
    name = MODIFIER.namespace if IS_MODULE else "holdfast"
    ticker.start(workflow, name, partial(standing.of_run, PLAN, SAMPLES, config, place))


wildcard_constraints:
    sample="|".join(map(re.escape, SAMPLES)),
    model="|".join(models.MODELS),


def prepared_models(wildcards):
    """model.json of every model in use: prepared by a rule, or where the config names a prepared directory."""
    directories = (planning.directory_of(entry["weights"], model, place) for model, entry in MODELS.items())
    return [local(f"{directory}/model.json") for directory in directories]


def local_source(wildcards):
    """The checkpoint as an input, so that a newer file is prepared again; a hub id or a synthetic model is none."""
    weights = MODELS[wildcards.model]["weights"]
    return local(weights) if os.path.exists(weights) else []


def file_made_outside(wildcards):
    """In a module the sample's file, so that Snakemake notices a rule around that makes it anew; otherwise nothing."""
    return local(SAMPLES[wildcards.sample].fasta) if IS_MODULE else []


def embeddings_of(label):
    return [f"results/{name}/embeddings.h5" for name, known in LABELLED.items() if known == label]


def given_classifier(wildcards):
    """The classifier if the config names one: what needs no sample to be there."""
    return classifier_file(wildcards) if config["classifier"] else []


def classifier_file(wildcards):
    """The classifier as safetensors: given, converted from VirNucPro's .pth once for all samples, or trained."""
    given = config["classifier"]
    if given is None:
        return "results/classifier/classifier.safetensors"
    return local(given) if given.endswith(".safetensors") else "resources/classifier.safetensors"


def virnucpro_files(pattern):
    """VirNucPro's own two files, if the config asks for them."""
    names = ("prediction_results.txt", "prediction_results_highestscore.csv")
    return [f"{pattern}/{name}" for name in names] if config["output_virnucpro"] else []


def targets(wildcards):
    """What `rule all` asks for."""
    wanted = [f"results/{name}/embeddings.h5" for name in SAMPLES]
    if config["export"]:
        wanted += [
            f"results/{entry.sample}/{config['export']}/{model}.h5"
            for entry in SAMPLES.values()
            for model in models.KINDS[entry.kind].models
        ]
    for name in CALLED:
        wanted += [f"results/{name}/{table}.tsv" for table in ("frames", "chunks", "contigs")]
    return [*wanted, "results/summary.tsv", "results/report.html"]
