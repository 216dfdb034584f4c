"""Allele frequencies over sites: the server's part."""
