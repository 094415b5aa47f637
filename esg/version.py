"""The version of ESG, in a module that imports nothing, so that every part of ESG can name it."""

__version__ = "0.1.0"
