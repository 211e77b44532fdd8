"""How the package is imported: names when they are asked for, modules by their old paths too.

Imports nothing but the standard library."""
