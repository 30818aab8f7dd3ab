"""The command line: a skin over the library. Exit 0 pass, 1 failed check, 2 usage or bad input."""
