"""What pgrepl costs, measured beside PostgreSQL's own tools in the same run."""
