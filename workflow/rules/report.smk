rule summarize:
    input:
        script=script("summarize"),
        sheet=config["samples"],
        schema=workflow.source_path("../schemas/samples.schema.yaml"),
        receipts=expand("results/{sample}/receipt.json", sample=SAMPLES),
        embeddings=expand("results/{sample}/embeddings.h5", sample=SAMPLES),
        contigs=expand("results/{sample}/contigs.tsv", sample=CALLED),
    output:
        summary="results/summary.tsv",
    log:
        "logs/summarize.log",
    conda:
        "../../envs/tables.yaml"
    shell:
        '"${{HOLDFAST_PYTHON:-python}}" {input.script:q} {input.sheet:q} --schema {input.schema:q} --output {output.summary:q} 2>&1 | tee {log:q}'
