"""A plugin that is broken on purpose; it must harm nothing until it is used."""
