"""SQL on a release: the queries of the project and those of its users."""
