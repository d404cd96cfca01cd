"""Fewer tokens through the same network: drop, merge or skip what a layer would hardly change."""
