"""Acceptance, ownership and handover of orders, single or in batches.

It may ask the steps for their retries, and knows no flow.
"""
