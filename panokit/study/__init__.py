"""Studies: methods compared on the same prompts and seeds, measured, and reported."""
