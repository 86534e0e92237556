"""Audit, figures, stories, timelines, receipts and notices for people.

Nothing in here changes stock, points, money or an order's course.
"""
