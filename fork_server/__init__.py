"""A fork server for flow runs: it imports Prefect and the flows once and forks for each run."""
