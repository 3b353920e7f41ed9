FIGURES = {  # of the report: name, which is also its caption's, to category and label
    "outcomes": ("Calls", "What became of every record"),
    **({"scores": ("Calls", "Contig scores"), "lengths": ("Calls", "Contig length and call")} if CALLED else {}),
    **({"frames": ("Embeddings", "Stop-free frames per chunk")} if CONTIG_SAMPLES else {}),
    "embeddings": ("Embeddings", "Projected to a plane"),
    **({"calibration": ("Classifier", "Calibration")} if CALLED else {}),
    **({"training": ("Classifier", "Training"), "confusion": ("Classifier", "Held-out frames")} if TRAINS else {}),
    "throughput": ("Pool", "Throughput and use of the devices"),
    "load": ("Pool", "Loading models against embedding"),
}


rule summarize:
    input:
        holdfast=ENTRY,
        sheet=local(PLAN.sheet),
        failures="results/failures.tsv",
        receipts=expand(RESULT, sample=SAMPLES, file="receipt.json"),
        embeddings=lambda wildcards: expand(RESULT, sample=outcome(wildcards).done, file="embeddings.h5"),
        contigs=lambda wildcards: expand(RESULT, sample=called(wildcards), file="contigs.tsv"),
        classifier=lambda wildcards: classifier_file(wildcards) if outcome(wildcards).called else [],
    output:
        summary=report(
            "results/summary.tsv", caption="../report/summary.rst", category="Tables", labels={"figure": "Samples"}
        ),
    log:
        "logs/summarize.log",
    localrule: True
    conda:
        "../../envs/tables.yaml"
    params:
        results=lambda wildcards, output: os.path.dirname(output.summary),
        trained="--trained" if TRAINS else "",
    shell:
        '"${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} summarize {input.sheet:q} --results {params.results:q}'
        " --failures {input.failures:q} --classifier {input.classifier:q} {params.trained} --output {output.summary:q} 2>&1 | tee {log:q}"


rule draw:
    input:
        holdfast=ENTRY,
        page=source("report/page.html"),
        captions=[source(f"report/{name}.rst") for name in FIGURES],
        sheet=local(PLAN.sheet),
        summary="results/summary.tsv",
        failures="results/failures.tsv",
        receipts=expand(RESULT, sample=SAMPLES, file="receipt.json"),
        embeddings=lambda wildcards: expand(RESULT, sample=outcome(wildcards).done, file="embeddings.h5"),
        contigs=lambda wildcards: expand(RESULT, sample=called(wildcards), file="contigs.tsv"),
        classifier=lambda wildcards: classifier_file(wildcards) if outcome(wildcards).called else [],
        calibration=lambda wildcards: calibration_file(wildcards) if outcome(wildcards).called else [],
    output:
        page=report(
            "results/report.html",
            caption="../report/page.rst",
            category="All on one page",
            labels={"figure": "Figures, captions, contigs"},
        ),
        figures=[
            report(
                f"results/figures/{name}.svg",
                caption=f"../report/{name}.rst",
                category=category,
                labels={"figure": label},
            )
            for name, (category, label) in FIGURES.items()
        ],
    log:
        "logs/draw.log",
    conda:
        "../../envs/umap.yaml" if config["projection"] == "umap" else "../../envs/report.yaml"
    params:
        results=lambda wildcards, output: os.path.dirname(output.page),
        trained="--trained" if TRAINS else "",
        spool=lambda wildcards: SPOOL,
        runs=lambda wildcards: place(".holdfast/runs"),
        calls=json.dumps(config["calls"]),
        projection=config["projection"],
        seed=config["seed"],
    shell:
        '"${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} draw {input.sheet:q} --results {params.results:q}'
        " --failures {input.failures:q} --classifier {input.classifier:q} {params.trained} --calibration {input.calibration:q}"
        " --calls {params.calls:q} --summary {input.summary:q} --runs {params.runs:q} --spool {params.spool:q}"
        " --projection {params.projection} --seed {params.seed} --template {input.page:q}"
        " --captions {input.captions:q} 2>&1 | tee {log:q}"


# The last job, so that one broken sample withholds nothing from the others.
rule check_samples:
    input:
        holdfast=ENTRY,
        failures="results/failures.tsv",
        summary="results/summary.tsv",
        page="results/report.html",
    output:
        checked=touch(".holdfast/checked"),
    log:
        "logs/check_samples.log",
    localrule: True
    conda:
        "../../envs/tables.yaml"
    shell:
        '"${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} check-samples {input.failures:q} 2>&1 | tee {log:q}'
