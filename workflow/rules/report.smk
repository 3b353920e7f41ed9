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
