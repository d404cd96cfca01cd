"""Codecs: bytes that are shorter and mean the same, or almost.

A codec of the `data` contract takes an array or bytes and returns one framed stream; its length is its cost, and decoding is part of every
measurement. Lossless codecs race on bits per dimension, all bytes counted; a learned one carries its model's errors in the bill, never in the data.
"""
