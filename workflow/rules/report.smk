rule summarize:
    input:
        script=script("summarize"),
        schema=source("schemas/samples.schema.yaml"),
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
        '"${{HOLDFAST_PYTHON:-python}}" {input.script:q} {input.sheet:q} --schema {input.schema:q}'
        " --results {params.results:q} --output {output.summary:q} 2>&1 | tee {log:q}"


rule draw:
    input:
        script=script("draw_report"),
        schema=source("schemas/samples.schema.yaml"),
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
        spool=SPOOL,
        threshold=config["threshold"],
        projection=config["projection"],
        seed=config["seed"],
    shell:
        '"${{HOLDFAST_PYTHON:-python}}" {input.script:q} {input.sheet:q} --schema {input.schema:q}'
        " --results {params.results:q} --spool {params.spool:q} --threshold {params.threshold}"
        " --projection {params.projection} --seed {params.seed} --template {input.page:q}"
        " --captions {input.captions:q} 2>&1 | tee {log:q}"
