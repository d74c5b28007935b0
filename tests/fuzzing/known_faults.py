"""Arguments whose errors do not name them yet: faults of the package, to be mended.

A value of a wrong type reaches Python or NumPy, whose error does not know the argument;
with `[array]`, only a NumPy array does. Nothing may be added here: mend the package.
"""

KNOWN_FAULTS: dict[str, str] = {}
