"""Control flow and calls: branches, loops and local functions decided, merged or put in place."""
