"""Options of the report."""

from dataclasses import dataclass

from distill.common.options import option


@dataclass(frozen=True)
class PageOptions:
    """What the page of answers shows."""

    page_records: int = option(
        "Test prompts per category on the page that shows answers side by side. The selection is stable as data grow.",
        200,
        minimum=0,
        when="0 for the fixed questions alone; more records make the page larger.",
    )
