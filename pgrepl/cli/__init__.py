"""The command line: one module per command group. It parses options, calls the library and prints; it runs no SQL."""
