"""Adapters of the simulated engine: vLLM's routes to load and unload one, and which model names it answers to.

As vLLM does, it refuses a name that is taken, does not know one that is not loaded, and names in the list of models
whose child an adapter is.
"""

from typing import Any

from aiohttp import web


class FakeAdapters:
    """`loaded` holds path by name. `refuses`, unless empty, is the answer to each load."""

    def __init__(self) -> None:
        self.loaded: dict[str, str] = {}
        self.refuses = ""

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)

    def cards(self, model: str) -> list[dict[str, Any]]:
        return [{"id": name, "object": "model", "root": path, "parent": model} for name, path in self.loaded.items()]

    def answers_to(self, asked: object, model: str) -> bool:
        return asked is None or asked == model or asked in self.loaded

    async def _load(self, request: web.Request) -> web.Response:
        words = await request.json()
        name = words["lora_name"]
        if self.refuses:
            return refuse(500, "InternalServerError", self.refuses)
        if name in self.loaded:
            return refuse(400, "InvalidUserInput", f"The lora adapter '{name}' has already been loaded.")
        self.loaded[name] = words["lora_path"]
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        if self.loaded.pop(name, None) is None:
            return refuse(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")


def refuse(status: int, kind: str, message: str) -> web.Response:
    error = {"message": message, "type": kind, "param": None, "code": status}
    return web.json_response({"error": error}, status=status)


def unknown_model(name: object) -> web.Response:
    """vLLM's answer to a request for a model or adapter that it does not serve."""
    error = {"message": f"The model `{name}` does not exist.", "type": "NotFoundError", "param": "model", "code": 404}
    return web.json_response({"error": error}, status=404)
