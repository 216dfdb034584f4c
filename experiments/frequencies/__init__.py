"""Allele frequencies of a network: the command, and a Beacon v2 endpoint over the table."""
