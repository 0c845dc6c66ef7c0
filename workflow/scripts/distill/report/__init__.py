"""The report: figures, tables as text, and the page of answers. May import evaluation and common."""
