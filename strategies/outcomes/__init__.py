"""Analyses of outcomes over sites: the server's part."""
