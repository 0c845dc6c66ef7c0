"""What a job reports to `make status`."""

from distill.common import progress


class Reported:
    """Stands for the job's file; keeps all figures, however soon they follow each other.

    Attributes:
        figures: what was written, in order.
    """

    def __init__(self, monkeypatch):
        self.figures = []
        monkeypatch.setattr(progress, "get_progress_file", lambda: self)

    def is_due(self):
        return True

    def write(self, figures):
        self.figures.append(figures)

    def get_ends(self):
        """Return (first, last) figures by the name of what was counted."""
        names = dict.fromkeys(one["what"] for one in self.figures)
        by_name = {name: [one for one in self.figures if one["what"] == name] for name in names}
        return {name: (found[0], found[-1]) for name, found in by_name.items()}
