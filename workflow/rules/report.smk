FIGURES = {  # of the report: name, which is also its caption's, to category and label
    "outcomes": ("Calls", "What became of every record"),
    **({"scores": ("Calls", "Contig scores"), "lengths": ("Calls", "Contig length and call")} if CALLED else {}),
    **({"frames": ("Embeddings", "Stop-free frames per chunk")} if CONTIG_SAMPLES else {}),
    "embeddings": ("Embeddings", "Projected to a plane"),
    **({"training": ("Classifier", "Training"), "confusion": ("Classifier", "Held-out frames")} if TRAINS else {}),
    "throughput": ("Pool", "Throughput and use of the devices"),
    "load": ("Pool", "Loading models against embedding"),
}


rule summarize:
    input:
        holdfast=ENTRY,
        sheet=local(PLAN.sheet),
        receipts=expand("results/{sample}/receipt.json", sample=SAMPLES),
        embeddings=expand("results/{sample}/embeddings.h5", sample=SAMPLES),
        contigs=expand("results/{sample}/contigs.tsv", sample=CALLED),
    output:
        summary="results/summary.tsv",
    log:
        "logs/summarize.log",
    localrule: True
    conda:
        "../../envs/tables.yaml"
    params:
        results=lambda wildcards, output: os.path.dirname(output.summary),
    shell:
        '"${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} summarize {input.sheet:q} --results {params.results:q}'
        " --output {output.summary:q} 2>&1 | tee {log:q}"


rule draw:
    input:
        holdfast=ENTRY,
        page=source("report/page.html"),
        captions=[source(f"report/{name}.rst") for name in FIGURES],
        sheet=local(PLAN.sheet),
        summary="results/summary.tsv",
        receipts=expand("results/{sample}/receipt.json", sample=SAMPLES),
        embeddings=expand("results/{sample}/embeddings.h5", sample=SAMPLES),
        contigs=expand("results/{sample}/contigs.tsv", sample=CALLED),
        training=["results/classifier/history.tsv", "results/classifier/confusion.tsv"] if TRAINS else [],
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
        spool=lambda wildcards: SPOOL,
        calls=json.dumps(config["calls"]),
        projection=config["projection"],
        seed=config["seed"],
    shell:
        '"${{HOLDFAST_PYTHON:-python}}" {input.holdfast:q} draw {input.sheet:q} --results {params.results:q}'
        " --spool {params.spool:q} --calls {params.calls:q}"
        " --projection {params.projection} --seed {params.seed} --template {input.page:q}"
        " --captions {input.captions:q} 2>&1 | tee {log:q}"
