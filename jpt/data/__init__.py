"""Rows of text from wherever they are, tokenised and put into batches; numpy only."""
