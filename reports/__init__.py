"""What people read: the audit, figures, an order's story, its form and receipt, notices.

Nothing in here changes stock, points, money or an order's course.
"""
