"""The command ``checkout``: one question or act of the people who run the shop, one subcommand.

Nothing here decides anything about an order: commands ask tasks and flows, and print what they say.
"""
