"""A fork server for flow runs.

It imports Prefect and the flows once and forks a child for each run.
"""
