"""Parts of a batch, many orders in one run."""
