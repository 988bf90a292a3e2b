"""Which data, which columns, which labels: one file a task."""
