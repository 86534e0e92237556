"""The Prefect runs of an order, their states, pauses and restarts."""
