"""The texts that people read: forms, notices, events, and records in words.

Nothing in here reads a database or names a customer: notices, artifacts and logs outlive the order
and are seen by many.
"""
