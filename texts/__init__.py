"""Texts of forms, notices, events and saga records.

Nothing in here reads a database or names a customer: notices, artifacts and logs outlive the order
and are seen by many.
"""
