"""What is deployed: servers, and in ``asgi`` the app for an ASGI host."""
