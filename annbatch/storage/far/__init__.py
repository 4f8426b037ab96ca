"""Stores that are far away: object stores and web servers.

A far array is the same chunk table as a local one, with an object for a file. What is different is how bytes come: the
ranges that a request needs are known before the first byte, so they are planned together (:mod:`.ranges`), fetched many at
a time (:mod:`.fetch`, :mod:`.http`), maybe kept on a local disk (:mod:`.cache`), and decoded by the same engine as they
arrive (:mod:`.reading`).
"""
