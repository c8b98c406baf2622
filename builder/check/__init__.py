"""Is a release what it says, and what changed since another?"""
