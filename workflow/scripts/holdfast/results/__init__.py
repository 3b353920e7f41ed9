"""Files of results: embeddings and their export, the classifier and its training, calls."""
