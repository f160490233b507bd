"""What the simulation looks for."""


class Violation(AssertionError):
    """A promise was broken."""
