"""Soft prompts: how they start, how they are stored, several as one array; no model code."""
