"""Recovery of a cut model without labels and without training."""
