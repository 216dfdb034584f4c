"""Answers to messages: the ClientApp. Decides nothing."""
