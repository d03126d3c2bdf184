"""Atomic writes and the containers that tensors come in; knows neither models nor prompts."""
