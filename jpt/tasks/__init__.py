"""What is asked of a model: tasks, templates, label words, metrics."""
