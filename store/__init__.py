"""What the checkout stands on: models, database, saga log, settings, messages, errors, clients.

Nothing in here knows Prefect flows or tasks.
"""
