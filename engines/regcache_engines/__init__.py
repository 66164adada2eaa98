"""Room 3: run a RegCache bundle with nothing but numpy and a runtime."""
