"""Offline stand-ins for what the internet gives: torch's CPU wheel, models, the hub, a base image.

The project's files name the real things and default to them. Where one of those cannot be
reached, this package makes a replacement out of packages and hands it over through the same
build arguments a closed network would use. Nothing in the product knows that it exists.
"""
