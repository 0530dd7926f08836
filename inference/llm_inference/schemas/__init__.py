"""Requests and responses of the API, as far as this server honours them.

Know shapes and bounds, no engine. A parameter is honoured or refused by name, never ignored: what
the API knows and this server does not is accepted only with the value that changes nothing.
"""
