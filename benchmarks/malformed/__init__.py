"""Malformed inputs by the thousand: each must be skipped or refused as documented. ``run.py`` is the program."""
