"""Parts of the checkout of one order."""
