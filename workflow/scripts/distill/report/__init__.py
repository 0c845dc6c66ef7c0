"""What people look at: figures, tables as text, the page of answers. May import evaluation and common."""
