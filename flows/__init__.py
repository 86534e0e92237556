"""The flows, one module each.

Their parts are in rooms beside them: `order` for one checkout, `batches` for many orders in one
run, `runs` for Prefect's runs of an order, `actions` for what people do by hand.
"""
