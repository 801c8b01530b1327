"""HTTP between the rooms: a server in a thread, and how a running server is asked. Importing it is light."""

from statepool.web.client import get_json, open_url
from statepool.web.server import HttpServer, shows_key, url_of, uvicorn_server

__all__ = ["HttpServer", "get_json", "open_url", "shows_key", "url_of", "uvicorn_server"]
