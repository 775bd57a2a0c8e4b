"""A pattern as one page to look at in a browser, without a connection."""

from .page import write_page

__all__ = ["write_page"]
