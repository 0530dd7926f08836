"""torch and transformers, imported without what only compiling and exporting models needs.

Shared by the server and by the build that proves its models. Imports nothing by itself.
"""
