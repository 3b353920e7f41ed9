"""What is counted over all samples, and the report that is drawn from it."""
