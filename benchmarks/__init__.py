"""The measurements behind the figures in the documents, each with its command."""
