"""Checks a deployment: settings, store, broker, results, workers. It changes nothing but a key of its own."""
