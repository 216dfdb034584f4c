"""Persons who do not exist. Never reads a value of a real one."""
