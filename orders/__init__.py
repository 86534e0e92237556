"""What accepts orders, owns them and hands them over: one by one, in batches, from files.

It may ask the steps for their retries, and knows no flow.
"""
