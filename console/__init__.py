"""The subcommands of `checkout`, one module each.

Nothing here decides anything about an order: commands ask tasks and flows, and print what they say.
"""
