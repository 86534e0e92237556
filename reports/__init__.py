"""What people read: audit, figures, stories, timelines, receipts and notices.

Nothing in here changes stock, points, money or an order's course.
"""
