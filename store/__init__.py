"""Models, database, saga log, settings, messages, errors and clients.

Nothing in here knows Prefect flows or tasks.
"""
